"""`make bench-calls`: what a server delivers, as a share of what its engine computes when it is called in full calls.

Callers are in a closed loop. First an engine that sleeps, so that the server and the load generator have the CPUs. Then
the demo model, on a core of its own; the server and the load generator have the other one.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

from common.bundle import bundle_folder, read_bundle
from common.paths import CONTROL_SOCKET, run_folder
from dev.harness.control import ControlClient
from dev.harness.demo_model import SETTINGS, SHAPES, golden_items, seal_revisions
from dev.harness.device_calls import DeviceCall, read_device_calls
from dev.harness.loadgen import Group, Played, play
from dev.harness.numbers import percentile
from dev.harness.process import list_runners, running_server
from dev.harness.scripted_engine import CALLS_VARIABLE, load_scripted, make_scripted_bundle
from dev.harness.stack import Stack
from hotslot.entailment.v1 import entailment_pb2 as pb
from inference.runner.engines.base import EntailmentItem, LoadOptions, RowRange
from inference.runner.process import keep_freed_memory

PICTURE = os.urandom(10_000)
CALL_ROWS = 8
CONNECTIONS = 4
WARM_SECONDS = 1.0  # left out at the start of each load
BARE_SECONDS = 1.0
ITEMS = 64  # of the demo model's golden set
PORT = 50174
SERVER_CORE, ENGINE_CORE = 0, 1


@dataclass(frozen=True, slots=True)
class Case:
    """An engine, and how many callers it has."""

    callers: int
    call_seconds: float  # of a device call, besides its rows
    row_seconds: float
    prepare_seconds: float = 0.0
    rows: int = 1  # of each request

    @property
    def script(self) -> dict[str, float]:
        """The engine's script."""
        return {
            "call_seconds": self.call_seconds,
            "row_seconds": self.row_seconds,
            "prepare_seconds": self.prepare_seconds,
            "max_call_rows": CALL_ROWS,
        }


@dataclass(frozen=True, slots=True)
class Measured:
    """What came of a case."""

    case: Case
    bare: float  # rows a second of the engine in full calls
    delivered: float  # rows a second that were answered
    call_rows: float  # mean
    busy: float  # share of the time in which the device computed
    gaps: Sequence[float]  # seconds between two device calls
    latency: float  # p50, seconds
    failed: int

    @property
    def share(self) -> float:
        """Delivered, as a share of bare."""
        return self.delivered / self.bare


# An engine whose calls cost something, one of the same speed without that, and one whose items take long to prepare.
ENGINES = ((0.004, 0.002, 0.0), (0.0, 0.0025, 0.0), (0.004, 0.002, 0.004))


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=6.0, help="length of each load")
    parser.add_argument("--callers", type=int, nargs="*", default=[8, 32, 64], help="callers in a closed loop")
    parser.add_argument("--engines", type=int, nargs="*", default=range(len(ENGINES)), help="which sleeping engines")
    parser.add_argument("--no-demo", action="store_true", help="leave out the demo model")
    parser.add_argument("--bare", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.bare is not None:
        print(json.dumps(asdict(measure_bare_demo(options.bare))))
        return 0
    found = []
    for number in options.engines:
        for callers in options.callers:
            with tempfile.TemporaryDirectory() as name:
                found.append(run_case(Case(callers, *ENGINES[number]), Path(name), options.seconds))
    console = Console(width=160)
    if found:
        console.print(build_table(found))
    if not options.no_demo:
        with tempfile.TemporaryDirectory() as name:
            console.print(build_demo_table(run_demo(Path(name), options.callers, options.seconds)))
    return 1 if any(one.failed for one in found) else 0


def run_case(case: Case, folder: Path, seconds: float) -> Measured:
    """Measure the bare engine before and after the server."""
    calls = folder / "calls.jsonl"
    before = measure_bare(case, folder / "bare")
    request = pb.PredictRequest(image=pb.Image(content=PICTURE), statements=["a cat"] * case.rows)
    # A device that sleeps must not be taken for a hung one because this machine is busy.
    runner = {"min_timeout_seconds": 20}
    with Stack(folder, runner=runner, script=case.script, environment={CALLS_VARIABLE: str(calls)}) as stack:
        played = play(stack.address, [Group("calls", [request], clients=case.callers)], seconds, folder, CONNECTIONS)
    bare = statistics.mean((before, measure_bare(case, folder / "bare")))
    return summarise(case, bare, played, list(read_device_calls(calls)))


def measure_bare(case: Case, folder: Path) -> float:
    """Rows a second of the engine, called directly in full calls of prepared items."""
    bundle = make_scripted_bundle(folder, "r1", **{**case.script, "prepare_seconds": 0.0})
    engine = load_scripted(bundle_folder(folder, bundle.bundle_digest), bundle, LoadOptions("cpu", "", 1), _ignore)
    item = engine.prepare(EntailmentItem(PICTURE, ("a cat",) * CALL_ROWS, ""))
    began, rows = time.monotonic(), 0
    while time.monotonic() - began < BARE_SECONDS:
        engine.compute([RowRange(item, 0, CALL_ROWS)])
        rows += CALL_ROWS
    return rows / (time.monotonic() - began)


def summarise(case: Case, bare: float, played: Played, device_calls: Sequence[DeviceCall]) -> Measured:
    """Count what was answered and computed while the load was steady."""
    begin, end = played.began + WARM_SECONDS, played.began + played.seconds
    calls = [call for call in device_calls if begin < call.ended - call.seconds and call.ended < end]
    outcomes = [one for one in played.outcomes if begin < played.began + one.ended < end]
    answered = sum(one.rows for one in outcomes if one.is_answer)
    return Measured(
        case,
        bare,
        answered / (end - begin),
        statistics.mean(sum(count for _, count in call.rows) for call in calls),
        sum(call.seconds for call in calls) / (calls[-1].ended - calls[0].ended + calls[0].seconds),
        [after.ended - after.seconds - call.ended for call, after in pairwise(calls)],
        percentile([one.took for one in outcomes], 0.5),
        sum(not one.is_answer for one in outcomes),
    )


def build_table(found: Sequence[Measured]) -> Table:
    """Show every case."""
    table = Table(title=f"rows delivered, as a share of the bare engine in calls of {CALL_ROWS} rows")
    for title in ("engine", "callers", "bare rows/s", "delivered", "share", "rows a call", "device busy"):
        table.add_column(title, justify="right")
    for title in ("gap p50, ms", "gap p99, ms", "latency p50, ms", "failed"):
        table.add_column(title, justify="right")
    for one in found:
        case = one.case
        engine = f"{1000 * case.call_seconds:g} + {1000 * case.row_seconds:g} ms a row"
        engine += f", prepared in {1000 * case.prepare_seconds:g} ms" if case.prepare_seconds else ""
        table.add_row(
            engine,
            str(case.callers),
            f"{one.bare:.0f}",
            f"{one.delivered:.0f}",
            f"{one.share:.0%}",
            f"{one.call_rows:.1f}",
            f"{one.busy:.0%}",
            f"{1000 * percentile(one.gaps, 0.5):.2f}",
            f"{1000 * percentile(one.gaps, 0.99):.2f}",
            f"{1000 * one.latency:.1f}",
            str(one.failed),
        )
    return table


@dataclass(frozen=True, slots=True)
class Speed:
    """Rows by the clock, and by CPU time, which other processes on the machine do not change."""

    per_second: float
    per_cpu_second: float  # of the process that computes them


@dataclass(frozen=True, slots=True)
class DemoMeasured:
    """What the demo model delivered."""

    callers: int
    bare: Speed
    delivered: Speed
    call_rows: float  # mean


def run_demo(folder: Path, callers: Sequence[int], seconds: float) -> list[DemoMeasured]:
    """Measure the bare engine, each load, and the bare engine again."""
    state = folder / "state"
    bundle = seal_revisions(state, {"v1.0.0": SHAPES / "v1.0.0"})["v1.0.0"]
    requests = [asked.request() for _, asked in golden_items(ITEMS)]
    control = ControlClient(str(run_folder(state) / CONTROL_SOCKET))
    found = []
    with running_server(folder, SETTINGS.format(state=state, port=PORT)) as process:
        control.wait_ready()
        server = psutil.Process(process.pid)
        pin(server.pid, SERVER_CORE)
        for runner in list_runners(server):
            pin(runner.pid, ENGINE_CORE)
        bare = run_bare_demo(state)
        for count in callers:
            group = Group("calls", requests, clients=count)
            play(f"127.0.0.1:{PORT}", [group], WARM_SECONDS, folder, CONNECTIONS, processors=str(SERVER_CORE))
            before = control.stats(bundle.bundle_digest)
            played = play(f"127.0.0.1:{PORT}", [group], seconds, folder, CONNECTIONS, processors=str(SERVER_CORE))
            after = control.stats(bundle.bundle_digest)
            calls = sum(row.batches for row in after.costs) - sum(row.batches for row in before.costs)
            rows = sum(one.rows for one in played.outcomes if one.is_answer)
            again = run_bare_demo(state)
            computed = after.rows - before.rows
            cpu_seconds = (after.computed.ToNanoseconds() - before.computed.ToNanoseconds()) / 1e9
            delivered = Speed(rows / seconds, computed / cpu_seconds)
            found.append(DemoMeasured(count, mean_speed(bare, again), delivered, computed / calls))
            bare = again
    control.close()
    return found


def pin(pid: int, core: int) -> None:
    """Let all threads of a process run on one core."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(task.name), {core % (os.cpu_count() or 1)})


def mean_speed(one: Speed, other: Speed) -> Speed:
    """The mean of two measurements."""
    return Speed((one.per_second + other.per_second) / 2, (one.per_cpu_second + other.per_cpu_second) / 2)


def run_bare_demo(state: Path) -> Speed:
    """The speed of the demo model's engine, in a process on the engine's core."""
    command = ["taskset", "-c", str(ENGINE_CORE), sys.executable, "-m", "dev.bench.calls", "--bare", str(state)]
    printed = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout
    return Speed(**json.loads(printed))


def measure_bare_demo(state: Path) -> Speed:
    """The same, in this process."""
    from inference.runner.engines.ofa.load import load_ofa  # noqa: PLC0415  imports torch

    keep_freed_memory()
    folder = next((state / "bundles").iterdir())
    engine = load_ofa(folder, read_bundle(folder), LoadOptions("cpu", "float32", 1), _ignore)
    engine.warm_up(_ignore)
    asked = [EntailmentItem(one.image, one.statements, "") for _, one in golden_items(engine.max_call_rows)]
    rows, seconds, cpu_seconds = 0, 0.0, 0.0
    while seconds < BARE_SECONDS:
        call = [RowRange(prepared, 0, prepared.rows) for prepared in map(engine.prepare, asked)]
        began, cpu_began = time.monotonic(), time.process_time()
        engine.compute(call)
        seconds += time.monotonic() - began
        cpu_seconds += time.process_time() - cpu_began
        rows += sum(part.rows for part in call)
    return Speed(rows / seconds, rows / cpu_seconds)


def build_demo_table(found: Sequence[DemoMeasured]) -> Table:
    """Show every load."""
    table = Table(title="the demo model: rows delivered, as a share of its engine in full calls")
    for title in ("callers", "bare rows/s", "delivered", "share", "rows/s of CPU", "delivered", "share", "rows a call"):
        table.add_column(title, justify="right")
    for one in found:
        bare, delivered = one.bare, one.delivered
        clock = (bare.per_second, delivered.per_second)
        cpu = (bare.per_cpu_second, delivered.per_cpu_second)
        cells = [cell for most, got in (clock, cpu) for cell in (f"{most:.0f}", f"{got:.0f}", f"{got / most:.0%}")]
        table.add_row(str(one.callers), *cells, f"{one.call_rows:.1f}")
    return table


def _ignore(_phase: str, _share: float) -> None:
    """Progress that nobody watches."""


if __name__ == "__main__":
    raise SystemExit(main())
