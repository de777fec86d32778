"""`make bench-server`: the server's own cost, with an engine that computes nothing.

The server has one core; the load generator and the runner have the other. One run prints every row.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import grpc
import psutil
from grpc_health.v1 import health_pb2, health_pb2_grpc
from rich.console import Console
from rich.table import Table

from common.bundle import Bundle, bundle_folder, compute_bundle_digest, write_bundle
from common.engine_files import Task
from dev.harness.loadgen import Group, play
from dev.harness.numbers import percentile
from dev.harness.pointer import commit_bundle
from dev.harness.process import list_runners
from hotslot.entailment.v1 import entailment_pb2

ROOT = Path(__file__).resolve().parents[2]
PICTURE = os.urandom(100_000)
PORT = 50171
AIMS = {"calls": 1500.0, "unary_ms": 0.6, "stream_ms": 0.35, "resident_mib": 120.0}
SETTINGS = f"""
state_dir = "{{state}}"
[[models]]
name = "null"
[server]
port = {PORT}
metrics_port = -1
drain_delay_seconds = 0
max_stream_outstanding = 64
[runner]
extra_engines = {{{{ null = "dev.bench.null_engine:load" }}}}
"""


@dataclass(frozen=True, slots=True)
class Row:
    """One measured load."""

    mode: str
    clients: int
    window: int
    answered: int
    failed: int
    per_second: float
    p50_ms: float
    p99_ms: float
    cpu_ms: float  # of the server, a call or item


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0, help="length of each row")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    loads = [("unary", 1, 1), ("unary", 16, 1), ("stream", 1, 1), ("stream", 1, 16), ("stream", 16, 1)]
    with tempfile.TemporaryDirectory() as name, server(Path(name)) as process:
        measure(Path(name), process, ("unary", 4, 1), 2.0)  # warm
        rows = [measure(Path(name), process, load, options.seconds) for load in loads]
        resident = process.memory_info().rss / (1 << 20)
    if options.json:
        print(json.dumps({"rows": [asdict(row) for row in rows], "resident_mib": resident}))
    else:
        show(rows, resident)
    return 1 if any(row.failed for row in rows) else 0


@contextmanager
def server(folder: Path, more: str = "", module: str = "inference.server.main") -> Iterator[psutil.Process]:
    """A server on core 0 with its runners on core 1.

    Args:
        folder: for its state.
        more: further tables of its settings.
        module: its program.
    """
    state = folder / "state"
    bundle = seal(state)
    commit_bundle(state, bundle, "null")
    settings = folder / "hotslot.toml"
    settings.write_text(SETTINGS.format(state=state) + more)
    environment = {**os.environ, "HOTSLOT_CONFIG": str(settings)}
    with (folder / "log").open("wb") as log:
        child = subprocess.Popen(
            ["taskset", "-c", "0", sys.executable, "-m", module],  # noqa: S607
            cwd=ROOT, env=environment, stdout=log, stderr=log,
        )  # fmt: skip
    try:
        wait_until_serving(child)
        process = psutil.Process(child.pid)
        for runner in list_runners(process):
            for task in Path(f"/proc/{runner.pid}/task").iterdir():
                os.sched_setaffinity(int(task.name), {1 % (os.cpu_count() or 1)})
        yield process
    finally:
        child.terminate()
        child.wait(30)


def seal(state: Path) -> Bundle:
    """A bundle without files, for the engine that does nothing."""
    source = "sha256:" + "0" * 64
    digest = compute_bundle_digest(source, "null", "1", "float32")
    bundle = Bundle(digest, source, "v0", "null", Task.VISUAL_ENTAILMENT.value, "float32", "1", ())
    folder = bundle_folder(state, digest)
    folder.mkdir(parents=True)
    write_bundle(folder, bundle)
    return bundle


def wait_until_serving(child: subprocess.Popen[bytes]) -> None:
    """Poll the health service until it returns SERVING."""
    with grpc.insecure_channel(f"127.0.0.1:{PORT}") as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for _ in range(300):
            time.sleep(0.1)
            if child.poll() is not None:
                raise RuntimeError(f"the server has ended; does another one hold port {PORT}?")
            try:
                if stub.Check(health_pb2.HealthCheckRequest(), timeout=1).status == 1:
                    return
            except grpc.RpcError:
                pass
    raise RuntimeError("the server does not serve")


def measure(folder: Path, process: psutil.Process, load: tuple[str, int, int], seconds: float) -> Row:
    """One load, on core 1."""
    mode, clients, window = load
    request = entailment_pb2.PredictRequest(statements=["there are two red circles"])
    request.image.content = PICTURE
    before = sum(process.cpu_times()[:2])
    group = Group("callers", [request], mode, clients, window)
    played = play(f"127.0.0.1:{PORT}", [group], seconds, folder, connections=clients, processors="1")
    spent = sum(process.cpu_times()[:2]) - before
    took = [one.took for one in played.outcomes if one.is_answer]
    return Row(
        mode, clients, window, len(took), len(played.outcomes) - len(took), len(took) / seconds,
        1000 * percentile(took, 0.5), 1000 * percentile(took, 0.99), 1000 * spent / max(1, len(took)),
    )  # fmt: skip


def show(rows: list[Row], resident: float) -> None:
    """Print the table with its aims."""
    table = Table(title=f"server, one core, {len(PICTURE) // 1000} KB pictures, an engine that does nothing")
    for name in ("mode", "clients", "window", "answered", "failed", "a second", "p50 ms", "p99 ms", "CPU ms each"):
        table.add_column(name, justify="left" if name == "mode" else "right")
    for row in rows:
        table.add_row(
            row.mode, str(row.clients), str(row.window), str(row.answered), str(row.failed), f"{row.per_second:.0f}",
            f"{row.p50_ms:.2f}", f"{row.p99_ms:.2f}", f"{row.cpu_ms:.3f}",
        )  # fmt: skip
    console = Console()
    console.print(table)
    console.print(
        f"resident {resident:.0f} MiB (aim < {AIMS['resident_mib']:.0f}); aims: ≥ {AIMS['calls']:.0f} calls/s at 16 "
        f"clients, ≤ {AIMS['unary_ms']} ms a call, ≤ {AIMS['stream_ms']} ms a stream item"
    )


if __name__ == "__main__":
    sys.exit(main())
