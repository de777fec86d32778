"""`make bench-traces`: what traces cost the server: off, 1 % and all calls, in turn, with an engine that does nothing.

One server is switched between the rows while it runs: two processes of the same program differ by more than traces
cost. The CPU time of a call counts, with that of sending its spans: it depends less on what else the machine does.
"""

import argparse
import os
import runpy
import signal
import sys
import tempfile
import time
from pathlib import Path
from statistics import mean, median

import psutil
from rich.console import Console
from rich.table import Table

from dev.bench import server as bench
from dev.harness.collector import simulated_collector

LOAD = ("unary", 16, 1)
SHARES = {"off": 0.0, "off again": 0.0, "1 %": 0.01, "all": 1.0}
BASE = "off"
SWITCH = "HOTSLOT_BENCH_SHARE"  # environment: the file with the share, which the server reads at SIGUSR1
SEND_SECONDS = 1.5  # until the spans of the last call have been sent


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0, help="length of each row")
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    os.sched_setaffinity(0, {1 % (os.cpu_count() or 1)})
    rows: dict[str, list[tuple[float, float]]] = {name: [] for name in SHARES}
    with simulated_collector() as collector, tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        os.environ[SWITCH] = str(folder / "share")
        traces = f'[traces]\nendpoint = "127.0.0.1:{collector.port}"\nshare = 1.0\n'
        with bench.server(folder, traces, "dev.bench.traces") as process:
            bench.measure(folder, process, LOAD, 2.0)  # warm
            for number in range(options.rounds):
                for name in list(SHARES) if number % 2 == 0 else reversed(SHARES):
                    rows[name].append(_measure(folder, process, SHARES[name], options.seconds))
                    collector.requests.clear()
    show(rows)
    return 0


def _measure(folder: Path, process: psutil.Process, share: float, seconds: float) -> tuple[float, float]:
    """Microseconds of CPU time of a call, and calls a second.

    Raises:
        RuntimeError: a call failed.
    """
    (folder / "share").write_text(str(share), encoding="utf-8")
    process.send_signal(signal.SIGUSR1)
    time.sleep(0.2)
    clock = ~process.pid << 3 | 2  # the CPU time of that process, to the nanosecond
    before = time.clock_gettime(clock)
    row = bench.measure(folder, process, LOAD, seconds)
    time.sleep(SEND_SECONDS)
    spent = time.clock_gettime(clock) - before
    if row.failed:
        raise RuntimeError(f"{row.failed} calls failed")
    return 1e6 * spent / row.answered, row.per_second


def show(rows: dict[str, list[tuple[float, float]]]) -> None:
    """Print the table."""
    table = Table(title=f"traces, one core, 16 clients, an engine that does nothing, load {os.getloadavg()[0]:.1f}")
    for heading in ("traces", "calls/s", "CPU µs a call", "fewest", "median of pairs", "mean of pairs"):
        table.add_column(heading, justify="left" if heading == "traces" else "right")
    for name, several in rows.items():
        spent = [one for one, _ in several]
        pairs = [100 * (one / off - 1) for one, (off, _) in zip(spent, rows[BASE], strict=True)]
        rate = median(rate for _, rate in several)
        table.add_row(
            *(name, f"{rate:.0f}", f"{median(spent):.0f}", f"{min(spent):.0f}"),
            *(f"{median(pairs):+.1f} %", f"{mean(pairs):+.1f} %"),
        )
    Console(width=120).print(table)


def serve() -> None:
    """Serve; the share of recorded calls is read anew at SIGUSR1."""
    from common.traces import Sampler  # noqa: PLC0415  of the server
    from inference.server import server  # noqa: PLC0415
    from inference.server.access import Metadata  # noqa: PLC0415
    from inference.server.api.interceptors import Call, CallInterceptor  # noqa: PLC0415
    from inference.server.api.reading import Context  # noqa: PLC0415
    from inference.server.events import CallStarted  # noqa: PLC0415

    path, below = Path(os.environ.pop(SWITCH)), ""

    class Switched(CallInterceptor):
        """Decides with the latest share."""

        def _begin(self, context: Context, metadata: Metadata, event: CallStarted, traced_below: str) -> Call:
            del traced_below
            return super()._begin(context, metadata, event, below)

    def switch(*_: object) -> None:
        nonlocal below
        below = Sampler(float(path.read_text(encoding="utf-8"))).below

    vars(server)["CallInterceptor"] = Switched
    signal.signal(signal.SIGUSR1, switch)
    sys.argv = ["inference.server.main"]
    runpy.run_module("inference.server.main", run_name="__main__")


if __name__ == "__main__":
    if SWITCH in os.environ:
        serve()
    else:
        sys.exit(main())
