"""`make bench-swap`: the effect of swaps and crashes on callers, with the demo model.

Sixteen clients without retries, 10 s deadlines, every attempt counted, every answer compared with that of
the revision's engine without a server. Swaps between v1.0.0 and v1.0.1 (the same weights with permuted answers): first
while the clients call as often as the server answers, then at a share of this; then two in a row; then the active
runner is killed (SIGKILL): while another one stands by, and in the windows in which none does; then stopped (SIGSTOP).
"""

import argparse
import os
import signal
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

from common.paths import CONTROL_SOCKET, run_folder
from dev.bench.standby_window import MAX_GAP_MS, format_updates, measure_deaths, measure_updates, wait_standby
from dev.chaos.usage import Look, look
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
SETTLE_SECONDS, STEADY_SECONDS = 2.0, 0.5
MAX_SWAP_GAP_MS, MAX_SLOWER = 50, 1.5  # besides one call; of p99 while a candidate loads
WIDTH = 130  # characters
MIN_DISAGREEMENT = 0.3


@dataclass(frozen=True, slots=True)
class Row:
    """One operation under load."""

    what: str
    gap_ms: float  # longest time without any answer
    aim_ms: float  # 0: none
    p99_ms: str = ""  # in the steady state, and while a candidate loads
    is_missed: bool = False


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--swaps", type=int, default=20, help="with as many calls as the server answers")
    parser.add_argument("--calm-swaps", type=int, default=50, help="with a share of these calls")
    parser.add_argument("--rounds", type=int, default=3, help="of two updates in a row, and of kills without a standby")
    parser.add_argument(
        "--programs", action="store_true", help="start each runner as a program: no [runner] fork_server"
    )
    parser.add_argument("--share", type=float, default=0.4, help="of the calls that the server answers")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="hotslot-") as folder:
        return measure(Path(folder), options)


def measure(folder: Path, options: argparse.Namespace) -> int:
    """The whole run; 0 if nothing failed."""
    swaps, calm_swaps, share = options.swaps, options.calm_swaps, options.share
    permute_directory(SHAPES / "v1.0.0", folder / "v1.0.1")
    state = folder / "state"
    bundles = seal_revisions(state, {"v1.0.0": SHAPES / "v1.0.0", "v1.0.1": folder / "v1.0.1"})
    items = golden_items(ITEMS)
    answers = {name: answers_of(state, bundle, items) for name, bundle in bundles.items()}
    disagreement = differing(answers["v1.0.0"], answers["v1.0.1"])
    questions, expected = [asked for _, asked in items], expected_of(answers, items)
    digests = [bundles[name].bundle_digest for name in ("v1.0.1", "v1.0.0")]
    control = ControlClient(str(run_folder(state) / CONTROL_SOCKET))
    extra = "fork_server = false\n" if options.programs else ""
    settings = SETTINGS.format(state=state, port=PORT).replace("[runner]\n", f"[runner]\n{extra}")
    with running_server(folder, settings) as process:
        control.wait_ready()
        with Load(f"127.0.0.1:{PORT}", questions, expected, CLIENTS, pace=0.0, tolerance=TOLERANCE) as load:
            wait_standby(control)
            time.sleep(SETTLE_SECONDS)
            held = held_mib(process.pid)
            rows = [swap_many(control, load, digests, swaps, f"{swaps} swaps, as many calls as are answered")]
            load.pace = pace_for(load, share)
            looks = [look(process.pid)]
            rows.append(
                swap_many(control, load, digests, calm_swaps, f"{calm_swaps} swaps, {share:.0%} of these calls")
            )
            looks.append(look(process.pid))
            load.pace = 0.0
            updates = measure_updates(control, digests, options.rounds)
            rows += end_in_windows(control, load, digests, options.rounds)
            rows.append(end_runner(control, load, signal.SIGKILL, MAX_GAP_MS))
            rows.append(end_runner(control, load, signal.SIGSTOP, 0))
        control.close()
    report = load.report()
    show(rows, report, disagreement, looks)
    print(f"all processes of the server, one model and a standby: {held:.0f} MiB (PSS)")
    if updates:
        print(format_updates(updates))
    return 1 if report.failed or report.wrong or disagreement < MIN_DISAGREEMENT else 0


def pace_for(load: Load, share: float) -> float:
    """The pause of each client with which they call a share as often as without one."""
    before, began = load.answers, time.monotonic()
    time.sleep(SETTLE_SECONDS)
    rate = (load.answers - before) / (time.monotonic() - began)
    one = CLIENTS / rate  # seconds of a call while all clients call, most of it waiting for each other
    return max(0.0, CLIENTS / (share * rate) - share * one)


def swap_many(control: ControlClient, load: Load, digests: Sequence[str], swaps: int, what: str) -> Row:
    """Swap between two bundles, with pauses in which nothing but calls happens."""
    gaps = []
    steady, loading, other = (f"{phase}, {what}" for phase in ("steady", "loading", "other"))
    for number in range(swaps):
        load.phase = steady
        time.sleep(STEADY_SECONDS)
        began = time.monotonic()
        load.phase = loading
        before = control.status().active_load_id
        load_id = control.candidate(digests[number % 2])
        load.phase = other
        control.activate(load_id)
        control.commit(load_id)
        control.retire(before)
        gaps.append(gap_ms(load, began))
    load.phase = ""
    report = load.report()
    took = sorted(one.seconds for one in report.answers if one.phase == steady)
    aim = 1000 * took[len(took) // 2] + MAX_SWAP_GAP_MS
    calm, busy = 1000 * report.p99([steady]), 1000 * report.p99([loading])
    return Row(what, max(gaps), aim, f"{calm:.0f}, {busy:.0f}", max(gaps) > aim or busy > MAX_SLOWER * calm)


def end_runner(control: ControlClient, load: Load, number: signal.Signals, aim: float) -> Row:
    """Kill or stop the active runner, and wait until the model is ready again."""
    control.wait_ready()
    time.sleep(SETTLE_SECONDS)
    pid, began = control.active_pid(), time.monotonic()
    os.kill(pid, number)
    control.wait_replaced(pid)
    time.sleep(SETTLE_SECONDS)
    gap = gap_ms(load, began)
    return Row(f"active runner: {number.name}", gap, aim, is_missed=bool(aim) and gap > aim)


def end_in_windows(control: ControlClient, load: Load, digests: Sequence[str], rounds: int) -> list[Row]:
    """Kill the active runner when no process stands by; a row for each occasion, with its longest gap."""
    gaps: dict[str, list[float]] = {}
    for death in measure_deaths(control, digests, lambda since: gap_ms(load, since), rounds):
        gaps.setdefault(death.when, []).append(death.gap_ms)
    longest = {f"{len(all_gaps)} × active runner: SIGKILL {when}": max(all_gaps) for when, all_gaps in gaps.items()}
    return [Row(what, gap, MAX_GAP_MS, is_missed=gap > MAX_GAP_MS) for what, gap in longest.items()]


def held_mib(pid: int) -> float:
    """Memory of a process and all its descendants, each shared page counted once, MiB."""
    server = psutil.Process(pid)
    return sum(one.memory_full_info().pss for one in (server, *server.children(recursive=True))) / (1 << 20)


def differing(one: Mapping[str, Scores], other: Mapping[str, Scores]) -> float:
    """Share of items on which two revisions give different labels."""
    pairs = [(a, b) for name in one for a, b in zip(one[name], other[name], strict=True)]
    return sum(a.index(max(a)) != b.index(max(b)) for a, b in pairs) / len(pairs)


def gap_ms(load: Load, since: float) -> float:
    """Longest time without an answer since a time of `time.monotonic()`, ms."""
    return 1000 * load.report().gap_between(since, time.monotonic())


def show(rows: list[Row], report: LoadReport, disagreement: float, looks: list[Look]) -> None:
    """Print the table."""
    table = Table(title=f"{CLIENTS} clients without retries, demo model")
    for name in ("what", "longest gap, ms", "aim, ms", "p99 steady, while loading, ms", ""):
        table.add_column(name, justify="left" if name == "what" else "right")
    for row in rows:
        aim = f"{row.aim_ms:.0f}" if row.aim_ms else ""
        table.add_row(row.what, f"{row.gap_ms:.0f}", aim, row.p99_ms, "missed" if row.is_missed else "")
    console = Console(width=WIDTH)
    console.print(table)
    before, after = looks
    console.print(
        f"attempts {report.attempts}, failed {len(report.failed)}, "
        f"not their own revision's answer {len(report.wrong)}; "
        f"answers {dict(report.revisions)}; the revisions disagree on {disagreement:.0%} of the items; "
        f"server before and after the second row: {before.resident_mib:.1f}, {after.resident_mib:.1f} MiB, "
        f"{before.descriptors}, {after.descriptors} descriptors, {before.threads}, {after.threads} threads"
    )
    for sentence in sorted(set(report.failed))[:5]:
        console.print(sentence)


if __name__ == "__main__":
    sys.exit(main())
