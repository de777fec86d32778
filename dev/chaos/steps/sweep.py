"""K4: the updater is killed at every system call that makes something durable.

For each of fsync, fdatasync, rename, unlink and unlinkat, and for every N of them in one whole update (a first
install, a second revision, one that is rolled back): a process is killed as it enters the N-th call, or the call fails
with EIO or ENOSPC; a second process continues, and the result must be the same as without the fault, in the journal
and in its witness.
"""

import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from common.bundle import bundle_folder, hash_file, read_bundle, read_committed
from dev.chaos.catalog import Findings, Skipped, Task
from dev.chaos.cycle import BAD, Cycle
from dev.harness.revisions import MODEL, publish_scripted
from updater.core.record import ModelRecord, Stage
from updater.core.witness import protect
from updater.settings import JOURNAL_NAME
from updater.store.state_folder import STATE_ENTRIES
from updater.store.witness import read_witness, witness_path

CALLS = ("fsync", "fdatasync", "rename", "unlink", "unlinkat")
OLD, GOOD, WORSE = "v1.0.0", "v1.1.0", f"v1.1.0+{BAD}"
LIMIT_SECONDS = 120.0
LIVES_AT_ONCE = 2
_CALL = re.compile(r"^(?:\d+ +)?(\w+)\(")


@dataclass(frozen=True, slots=True)
class Point:
    """One fault at one system call."""

    revision: str  # that is published
    call: str
    number: int  # from 1
    fault: str  # "signal=SIGKILL" or "error=…"


def run(task: Task) -> Findings:
    """Run all points, or `count` of them, evenly spread."""
    if shutil.which("strace") is None:
        raise Skipped("strace is not there: apt-get install strace")
    points = list(_points(task.folder))
    points = points[:: max(1, len(points) // task.count)] if task.count else points
    with ThreadPoolExecutor(LIVES_AT_ONCE) as pool:
        ends = list(pool.map(lambda numbered: _try(task.folder, *numbered), enumerate(points)))
    findings = Findings(count=len(points))
    for fault in sorted({point.fault for point in points}):
        counted = Counter(point.call for point in points if point.fault == fault)
        told = ", ".join(f"{call} {counted[call]}" for call in CALLS if counted[call])
        findings.numbers[fault] = f"{sum(counted.values())} ({told})"
    findings.troubles = [f"{point}: {end}" for point, end in zip(points, ends, strict=True) if end]
    return findings


def _points(folder: Path) -> Iterator[Point]:
    """All points, from the calls of a cycle without faults."""
    for revision in (OLD, GOOD, WORSE):
        template = _template(folder, revision)
        run = folder / f"count-{revision}"
        shutil.copytree(template, run)
        trace = folder / f"trace-{revision}"
        done = _strace(run, ["-o", str(trace), "-e", f"trace={','.join(CALLS)}"])
        if done.returncode:
            raise RuntimeError(f"the undisturbed cycle failed: {done.stderr[-2000:]}")
        found = [_CALL.match(line) for line in trace.read_text().splitlines()]
        counted = Counter(match[1] for match in found if match is not None)
        for call in CALLS:
            faults = ["signal=SIGKILL"]
            faults += ["error=EIO", "error=ENOSPC"] if call in ("fsync", "fdatasync", "rename") else []
            for fault in faults:
                yield from (Point(revision, call, number, fault) for number in range(1, counted[call] + 1))


def _template(folder: Path, revision: str) -> Path:
    """A folder in which one revision is committed and the next is published; nothing is committed for the first."""
    template = folder / f"template-{revision}"
    if not template.exists():
        publish_scripted(template / "hub", OLD)
        if revision != OLD:
            cycle = Cycle(template)
            cycle.run()
            cycle.journal.close()
            publish_scripted(template / "hub", revision)
    return template


def _try(folder: Path, number: int, point: Point) -> str:
    """Inject one fault, let a second process continue, and check the result.

    Returns:
        What is wrong; empty if nothing is.
    """
    run = folder / f"run-{number}"
    shutil.copytree(_template(folder, point.revision), run)
    try:
        inject = f"inject={point.call}:{point.fault}:when={point.number}"
        done = _strace(run, ["-o", "/dev/null", "-e", inject])
        is_kill = point.fault.startswith("signal")
        if not is_kill and done.returncode:
            return f"the disturbed life ended with {done.returncode}: {done.stderr[-500:]}"
        return _wrong_between(run, point.revision) or _wrong_at_the_end(run, point.revision)
    except Exception as error:  # noqa: BLE001  every failure is reported with its point
        return f"{type(error).__name__}: {error}"
    finally:
        shutil.rmtree(run, ignore_errors=True)


def _wrong_between(run: Path, revision: str) -> str:
    """Check the state that the server sees while no updater runs: the pointer names a complete bundle."""
    row = read_committed(run / "state").get(MODEL)
    if row is None:
        return "" if revision == OLD else "the committed pointer is gone"
    read_bundle(bundle_folder(run / "state", row.bundle_digest))
    return ""


def _wrong_at_the_end(run: Path, revision: str) -> str:
    cycle = Cycle(run)
    try:
        record = cycle.run()
    finally:
        cycle.journal.close()
    state = run / "state"
    row = read_committed(state)[MODEL]
    wanted = OLD if BAD in revision else revision
    if record.stage is not Stage.IDLE or record.committed is None:
        return f"it rests in {record.stage}: {record.update}"
    if (row.revision, record.committed.revision, record.min_version) != (wanted, wanted, wanted):
        return f"pointer {row.revision}, record {record.committed.revision}, floor {record.min_version}, not {wanted}"
    if cycle.serving != row.bundle_digest:
        return "the serving revision is not the committed one"
    if (BAD in revision) != any(entry.revision == revision for entry in record.quarantine):
        return f"quarantine: {[entry.revision for entry in record.quarantine]}"
    bundle = read_bundle(bundle_folder(state, row.bundle_digest))
    for file in bundle.files:
        if hash_file(bundle_folder(state, row.bundle_digest) / file.name) != file:
            return f"{file.name} of the committed bundle is damaged"
    strays = {path.name for path in state.iterdir() if not path.name.startswith(".")} - STATE_ENTRIES
    left = list((state / "incoming").glob("*"))
    return f"left behind: {strays or left}" if strays or left else _wrong_witness(state, record)


def _wrong_witness(state: Path, record: ModelRecord) -> str:
    witness = read_witness(witness_path(state / JOURNAL_NAME))
    is_good = witness is not None and witness.state_of(MODEL) == protect(record)
    return "" if is_good else f"the witness has {witness}"


def _strace(run: Path, options: list[str]) -> "subprocess.CompletedProcess[str]":
    command = ["strace", "-f", "-qq", *options, sys.executable, "-m", "dev.chaos.cycle", str(run)]
    return subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_SECONDS, check=False)
