"""Memory, descriptors, threads and tasks of long-lived processes: samples, and whether they stay the same."""

from collections.abc import Sequence
from dataclasses import dataclass

import psutil

from dev.chaos.catalog import Findings
from dev.harness.metrics import read_families

MAX_MORE = 3  # descriptors, threads or tasks: what happens to be open at a look differs by a few
_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Look:
    """A sample of one process."""

    resident_mib: float
    descriptors: int
    threads: int
    tasks: int = 0  # of its event loop, if asked


def look(pid: int, metrics_port: int = 0) -> Look:
    """Take a sample of a process; with the port of a server's metrics also its tasks."""
    process = psutil.Process(pid)
    tasks = _read_tasks(metrics_port) if metrics_port else 0
    return Look(process.memory_info().rss / _MIB, process.num_fds(), process.num_threads(), tasks)


def judge(program: str, rows: Sequence[Look], max_growth: float, findings: Findings) -> None:
    """Compare the last fifth of the samples with the first fifth.

    Args:
        program: for the names of the numbers.
        rows: samples in their order, taken while the process had the same to do.
        max_growth: of the mean resident memory, as a share of it.
        findings: receives numbers and violations.
    """
    fifth = max(1, len(rows) // 5)
    first, last = rows[:fifth], rows[-fifth:]
    before, after = (sum(row.resident_mib for row in part) / len(part) for part in (first, last))
    growth = after / before - 1
    findings.numbers[f"{program}_resident_mib"] = f"{before:.1f} to {after:.1f}"
    findings.numbers[f"{program}_growth_percent"] = round(100 * growth, 2)
    findings.expect(
        so=growth <= max_growth, otherwise=f"{program} has grown by {growth:.1%}: {before:.1f} MiB at first"
    )
    for name in ("descriptors", "threads", "tasks"):
        low, high = (max(getattr(row, name) for row in part) for part in (first, last))
        if low or high:
            findings.numbers[f"{program}_{name}"] = f"{low} to {high}"
            findings.expect(so=high <= low + MAX_MORE, otherwise=f"{program} has {high} {name}, {low} at first")


def _read_tasks(port: int) -> int:
    return int(read_families(port)["hotslot_loop_tasks"].samples[0].value)
