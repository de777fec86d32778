"""`make bench-call`: where the server's CPU time of a unary call goes, in microseconds by part.

The server of `bench-server`, 16 callers, 100 KB, an engine that does nothing. A timer of the process's CPU time samples
what the thread of the event loop executes; samples in which it waits are the CPU time of other threads, and of the
kernel while it polls.
"""

import argparse
import collections
import json
import os
import runpy
import signal
import sys
import tempfile
from pathlib import Path
from types import FrameType

from rich.console import Console
from rich.table import Table

from dev.bench import server as bench

SAMPLE_SECONDS = 0.001
COUNTS = "HOTSLOT_BENCH_COUNTS"  # environment: where the server writes its samples
OTHERS, GRPC = "polling; threads of gRPC, the log and the metrics", "gRPC's Python, steps of tasks"
PARTS = (  # the first row with a file of the stack, from the innermost function outwards
    ("log line", ("common/logs.py", "event_log.py")),
    ("metrics and events", ("common/metrics.py", "server/metrics.py", "server/events.py", "model/stats.py")),
    ("frames to and from the runner", ("inference/wire.py", "runner_client/channel.py", "runner_client/process.py")),
    ("check of the runner's numbers", ("runner_client/replies.py",)),
    ("cost of device calls", ("inference/call_cost.py", "device_share.py")),
    ("queue and dispatch", ("dispatcher.py", "in_flight.py", "fair_queue.py")),
    ("admission, route, leases", ("admission.py", "route.py", "pair.py", "slot.py", "requests.py")),
    ("records of a request", ("server/request.py", "common/records.py")),
    ("read of the message, what is held", ("reading.py", "held_bytes.py")),
    ("parse, check, answer", ("convert.py", "entailment.py", "predict.py", "models.py", "task.py")),
    ("id, caller, end of the call", ("interceptors.py", "access.py")),
    ("accept calls", ("grpc_server.py",)),
    (OTHERS, ("selectors.py",)),
)


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        counts = Path(name, "counts")
        os.environ[COUNTS] = str(counts)
        with bench.server(Path(name), module="dev.bench.call_parts") as process:
            bench.measure(Path(name), process, ("unary", 16, 1), 2.0)  # warm
            process.send_signal(signal.SIGUSR1)
            row = bench.measure(Path(name), process, ("unary", 16, 1), options.seconds)
        samples: dict[str, int] = json.loads(counts.read_text(encoding="utf-8"))
    show(row, samples)
    return 1 if row.failed else 0


def show(row: bench.Row, samples: dict[str, int]) -> None:
    """Print the parts, the largest first."""
    total = sum(samples.values())
    title = f"server's CPU time of a call: {1000 * row.cpu_ms:.0f} µs, {row.per_second:.0f} calls/s"
    table = Table(title=f"{title}, {total} samples, load {os.getloadavg()[0]:.1f}")
    for heading in ("part", "µs", "share"):
        table.add_column(heading, justify="left" if heading == "part" else "right")
    for part, count in sorted(samples.items(), key=lambda pair: -pair[1]):
        table.add_row(part, f"{1000 * row.cpu_ms * count / total:.0f}", f"{100 * count / total:.0f} %")
    Console(width=120).print(table)


def find_part(frame: FrameType | None) -> str:
    """The part that a stack belongs to."""
    while frame is not None:
        path = frame.f_code.co_filename
        for part, files in PARTS:
            if path.endswith(files):
                return part
        frame = frame.f_back
    return GRPC


def serve() -> None:
    """Serve; sample from SIGUSR1 on, and write the counts at the end."""
    counts: collections.Counter[str] = collections.Counter()

    def sample(_number: int, frame: FrameType | None) -> None:
        counts[find_part(frame)] += 1

    def begin(*_: object) -> None:
        signal.setitimer(signal.ITIMER_PROF, SAMPLE_SECONDS, SAMPLE_SECONDS)

    path = Path(os.environ.pop(COUNTS))  # the runner is another process
    signal.signal(signal.SIGPROF, sample)
    signal.signal(signal.SIGUSR1, begin)
    sys.argv = ["inference.server.main"]
    try:
        runpy.run_module("inference.server.main", run_name="__main__")
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        path.write_text(json.dumps(counts), encoding="utf-8")


if __name__ == "__main__":
    if COUNTS in os.environ:
        serve()
    else:
        sys.exit(main())
