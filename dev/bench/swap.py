"""`make bench-swap`: the effect of swaps and crashes on callers, with the demo model.

Sixteen clients without retries, 10 s deadlines, every attempt counted, every answer compared with that of
the revision's engine without a server. Swaps between v1.0.0 and v1.0.1 (the same weights with permuted answers); then
the active runner is killed (SIGKILL), then stopped (SIGSTOP).
"""

import argparse
import os
import signal
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from common.paths import CONTROL_SOCKET, run_folder
from dev.harness.answers import Scores
from dev.harness.control import ControlClient
from dev.harness.demo_model import (
    SETTINGS,
    SHAPES,
    TOLERANCE,
    answers_of,
    expected_of,
    golden_items,
    seal_revisions,
)
from dev.harness.load import Load, LoadReport
from dev.harness.process import running_server
from examples.shapes.permute import permute_directory

PORT = 50173
CLIENTS = 16
ITEMS = 200
SETTLE_SECONDS = 2.0
MIN_DISAGREEMENT = 0.3


@dataclass(frozen=True, slots=True)
class Row:
    """One operation under load."""

    what: str
    gap_ms: float  # longest time without any answer
    aim: str


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--swaps", type=int, default=20)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="hotslot-") as folder:
        return measure(Path(folder), options.swaps)


def measure(folder: Path, swaps: int) -> int:
    """The whole run; 0 if nothing failed."""
    permute_directory(SHAPES / "v1.0.0", folder / "v1.0.1")
    state = folder / "state"
    bundles = seal_revisions(state, {"v1.0.0": SHAPES / "v1.0.0", "v1.0.1": folder / "v1.0.1"})
    items = golden_items(ITEMS)
    answers = {name: answers_of(state, bundle, items) for name, bundle in bundles.items()}
    disagreement = differing(answers["v1.0.0"], answers["v1.0.1"])
    questions, expected = [asked for _, asked in items], expected_of(answers, items)
    control = ControlClient(str(run_folder(state) / CONTROL_SOCKET))
    with running_server(folder, SETTINGS.format(state=state, port=PORT)):
        control.wait_ready()
        address = f"127.0.0.1:{PORT}"
        with Load(address, questions, expected, CLIENTS, pace=0.0, tolerance=TOLERANCE) as load:
            began = time.monotonic()
            time.sleep(SETTLE_SECONDS)
            rows = [Row("steady", gap_ms(load, began), "")]
            steady = sorted(one.seconds for one in load.report().answers)
            gaps, loads = [], []
            for number in range(swaps):
                began = time.monotonic()
                loads.append(control.swap(bundles[("v1.0.1", "v1.0.0")[number % 2]].bundle_digest))
                gaps.append(gap_ms(load, began))
            one_ms = 1000 * steady[len(steady) // 2]
            rows.append(Row(f"{swaps} swaps", max(gaps), f"{one_ms:.0f} (one call) + 50"))
            rows.append(end_runner(control, load, signal.SIGKILL, "1000"))
            rows.append(end_runner(control, load, signal.SIGSTOP, "1000 + batch limit"))
        control.close()
    report = load.report()
    show(rows, report, disagreement, max(loads))
    return 1 if report.failed or report.wrong or disagreement < MIN_DISAGREEMENT else 0


def end_runner(control: ControlClient, load: Load, number: signal.Signals, aim: str) -> Row:
    """Kill or stop the active runner, and wait until the model is ready again."""
    control.wait_ready()
    time.sleep(SETTLE_SECONDS)
    pid, began = control.active_pid(), time.monotonic()
    os.kill(pid, number)
    control.wait_replaced(pid)
    time.sleep(SETTLE_SECONDS)
    return Row(f"active runner: {number.name}", gap_ms(load, began), aim)


def differing(one: Mapping[str, Scores], other: Mapping[str, Scores]) -> float:
    """Share of items on which two revisions give different labels."""
    pairs = [(a, b) for name in one for a, b in zip(one[name], other[name], strict=True)]
    return sum(a.index(max(a)) != b.index(max(b)) for a, b in pairs) / len(pairs)


def gap_ms(load: Load, since: float) -> float:
    """Longest time without an answer since a time of `time.monotonic()`, ms."""
    return 1000 * load.report().gap_between(since, time.monotonic())


def show(rows: list[Row], report: LoadReport, disagreement: float, slowest_load: float) -> None:
    """Print the table."""
    table = Table(title=f"{CLIENTS} clients without retries, demo model")
    for name in ("what", "longest gap, ms", "aim, ms"):
        table.add_column(name, justify="left" if name == "what" else "right")
    for row in rows:
        table.add_row(row.what, f"{row.gap_ms:.0f}", row.aim)
    console = Console()
    console.print(table)
    console.print(
        f"attempts {report.attempts}, failed {len(report.failed)}, "
        f"not their own revision's answer {len(report.wrong)}; "
        f"answers {dict(report.revisions)}; the revisions disagree on {disagreement:.0%} of the items; "
        f"slowest load {slowest_load:.2f} s"
    )
    for sentence in sorted(set(report.failed))[:5]:
        console.print(sentence)


if __name__ == "__main__":
    sys.exit(main())
