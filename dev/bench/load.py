"""`make bench-load`: measures time and memory of repeated loads of a large OFA by a runner.

The model has 473 M parameters with random weights, sealed in float32 and in bfloat16, in the page cache. The runner is
started as the server starts it: imports, load and warm-up, then requests. Memory is the resident memory of the process,
including the mapped weights, minus that after the imports, as a share of the weights. A load that callers wait for uses
all threads; a load beside a serving model uses one (last column of the table). "Serving" is measured after `--requests`
requests of one statement and one request of 32. The request of 32 statements is then sent through a server with three
deadlines. Finally `--cycles` runners are started one after another: the last is compared with the first, and the memory
left in the parent process is measured.
"""

import argparse
import asyncio
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

from common.bundle import Bundle
from dev.bench.large_model import large_bundle, say, warm
from dev.bench.large_request import ask
from hotslot.runner.v1 import runner_pb2
from inference.server.runner_client.process import RunnerProcess
from inference.server.runner_client.protocol import RunnerEnding
from inference.server.runner_client.start import RunnerSpec

PICTURE = Path("tests/ofa/pictures/colour.png").read_bytes()
STATEMENT = "there are two birds."
MANY = 32  # statements of the largest request
LIMIT_SECONDS = 600.0
MIB = 1 << 20
AIMS = ("aims", "", "≤ 2 s", "", "< 1.15", "< 1.4", "", "")


@dataclass(slots=True)
class Taken:
    """The measurements of one runner."""

    imports: float  # seconds from its start to its Hello
    base: int  # bytes resident then
    load: float = 0.0  # seconds from the wish to load until it can answer, warm-up included
    first: float = 0.0  # seconds of the first answer
    peak: int = 0  # bytes, the highest until then
    serving: int = 0  # bytes after the requests
    own: int = 0  # of `serving`, what is no mapped file
    many: float = 0.0  # seconds of the request with many statements


@dataclass(slots=True)
class Ear:
    """Receives the events of a runner."""

    hello: runner_pb2.Hello | None = None
    loaded: runner_pb2.LoadOutcome | None = None
    outcomes: dict[int, runner_pb2.ItemOutcome] = field(default_factory=dict)
    ending: RunnerEnding | None = None
    heard: asyncio.Event = field(default_factory=asyncio.Event)

    def on_hello(self, hello: runner_pb2.Hello) -> None:
        """The runner is ready to load."""
        self.hello = hello
        self.heard.set()

    def on_load_progress(self, progress: runner_pb2.LoadProgress) -> None:
        """Ignored."""

    def on_load_outcome(self, outcome: runner_pb2.LoadOutcome) -> None:
        """The load has succeeded or failed."""
        self.loaded = outcome
        self.heard.set()

    def on_items_reply(self, reply: runner_pb2.ItemsReply) -> None:
        """Answers have arrived."""
        self.outcomes.update({outcome.item_id: outcome for outcome in reply.outcomes})
        self.heard.set()

    def on_heartbeat(self, heartbeat: runner_pb2.Heartbeat) -> None:
        """Ignored."""

    def on_end(self, ending: RunnerEnding) -> None:
        """The runner has ended."""
        self.ending = ending
        self.heard.set()

    async def until(self, fact: Callable[[], object]) -> None:
        """Wait until an event makes `fact` true.

        Raises:
            RuntimeError: the runner ended first.
        """
        async with asyncio.timeout(LIMIT_SECONDS):
            while not fact():
                if self.ending is not None:
                    raise RuntimeError(f"the runner ended: {self.ending.detail}")
                self.heard.clear()
                await self.heard.wait()


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cycles", type=int, default=50, help="runners one after another, in bfloat16")
    parser.add_argument("--requests", type=int, default=10, help="answers before memory is read as serving")
    parser.add_argument("--threads", type=int, default=0, help="of a runner; 0: as many as there are CPUs")
    options = parser.parse_args()
    table = Table(title="one runner with a large OFA (473 M parameters); memory as a share of its weights")
    for title in ("precision", "imports", "load", "first answer", "peak", "serving", "32 statements", "load beside"):
        table.add_column(title, justify="right")
    for precision in ("float32", "bfloat16"):
        folder, bundle = large_bundle(precision)
        weights = weights_of(bundle)
        warm(folder / file.name for file in bundle.files)
        say(f"loading {precision}")
        taken = asyncio.run(life(folder, precision, options.threads, options.requests))
        beside = asyncio.run(life(folder, precision, options.threads, 0, is_awaited=False))
        table.add_row(precision, *row_of(taken, weights), f"{beside.load:.2f} s")
    table.add_section()
    table.add_row(*AIMS)
    Console().print(table)
    Console().print(ask(bundle, precision, PICTURE, [STATEMENT] * MANY))
    Console().print(cycles(folder, weights, options.cycles, options.threads))
    return 0


async def life(folder: Path, precision: str, threads: int, requests: int, *, is_awaited: bool = True) -> Taken:
    """Measure one runner from start to end; callers wait for it, or it is loaded beside a serving model."""
    ear = Ear()
    process = RunnerProcess(RunnerSpec("ofa", start_seconds=60.0, load_stall_seconds=60.0), ear)
    began = time.perf_counter()
    process.spawn()
    await ear.until(lambda: ear.hello)
    taken = Taken(time.perf_counter() - began, memory(process.pid)["VmRSS"])
    process.set_serving(is_awaited)
    began = time.perf_counter()
    process.load(
        runner_pb2.LoadBundle(
            directory=str(folder), device="cpu", precision=precision, threads=threads, max_call_seconds=2.0
        )
    )
    await ear.until(lambda: ear.loaded)
    assert ear.loaded is not None
    if ear.loaded.HasField("failure"):
        raise RuntimeError(ear.loaded.failure.message)
    taken.load = time.perf_counter() - began
    taken.first = await asked(process, ear, 1, 1)
    taken.peak = memory(process.pid)["VmHWM"]
    if requests:
        for number in range(2, requests + 1):
            await asked(process, ear, number, 1)
        taken.many = await asked(process, ear, requests + 1, MANY)
    now = memory(process.pid)
    taken.serving, taken.own = now["VmRSS"], now["RssAnon"]
    process.retire()
    await process.wait_ended()
    return taken


async def asked(process: RunnerProcess, ear: Ear, number: int, statements: int) -> float:
    """Seconds of one request.

    Raises:
        RuntimeError: it was not answered.
    """
    task = runner_pb2.EntailmentTask(statements=[STATEMENT] * statements)
    began = time.perf_counter()
    process.send_items([(runner_pb2.Item(item_id=number, seconds_left=LIMIT_SECONDS, entailment=task), PICTURE)])
    await ear.until(lambda: number in ear.outcomes)
    if ear.outcomes[number].HasField("failure"):
        raise RuntimeError(ear.outcomes[number].failure.message)
    return time.perf_counter() - began


def cycles(folder: Path, weights: int, count: int, threads: int) -> Table:
    """Load and unload repeatedly."""
    rows, left = [], []
    for _ in track(range(count), "loading and unloading", console=Console(stderr=True)):
        rows.append(asyncio.run(life(folder, "bfloat16", threads, 0)))
        left.append((memory(os.getpid())["VmRSS"], sum(1 for _ in Path("/proc/self/fd").iterdir())))
    few = max(1, min(5, count // 2))
    table = Table(title=f"{count} runners one after another, bfloat16; medians of the first and last {few}")
    for title in ("", "first", "last"):
        table.add_column(title, justify="right")
    ends = (rows[:few], rows[-few:])
    table.add_row("load", *(f"{statistics.median(row.load for row in end):.2f} s" for end in ends))
    table.add_row("peak", *(share(statistics.median(row.peak - row.base for row in end), weights) for end in ends))
    table.add_row("parent process", *(f"{left[at][0] / MIB:.0f} MiB, {left[at][1]} files" for at in (few - 1, -1)))
    return table


def row_of(taken: Taken, weights: int) -> tuple[str, ...]:
    """One line of the table."""
    return (
        f"{taken.imports:.2f} s, {taken.base / MIB:.0f} MiB",
        f"{taken.load:.2f} s",
        f"{taken.first:.2f} s",
        share(taken.peak - taken.base, weights),
        f"{share(taken.serving - taken.base, weights)} ({taken.own / MIB:.0f} MiB its own)",
        f"{taken.many:.1f} s",
    )


def share(size: float, weights: int) -> str:
    """A size, as a share of the weights."""
    return f"{size / weights:.2f}"


def weights_of(bundle: Bundle) -> int:
    """Bytes of the weights' file."""
    return sum(file.size for file in bundle.files if file.name.endswith(".safetensors"))


def memory(pid: int) -> dict[str, int]:
    """Memory of a process in bytes, by the kernel's names."""
    rows = (line.split() for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines())
    return {row[0].rstrip(":"): int(row[1]) * 1024 for row in rows if row[-1] == "kB"}


if __name__ == "__main__":
    sys.exit(main())
