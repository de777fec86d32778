"""`make bench-memory`: the server's resident memory while callers misbehave, against its limit `max_waiting_bytes`.

Each row has a server of its own, with the scripted engine. The base is read at rest after ordinary traffic: 16 unary
callers and 8 streams with pictures of 100 KB, on four connections, for five seconds. Without it, code and buffers that
any concurrent call needs for the first time would count as the attack's. The first column is after a few single calls.
Allowed: base + 1.3 × the limit at any time (the kernel's own peak), and 10 % above base ten seconds later, while those
callers who stay are still connected. With `--times 2` each server is attacked twice: what leaks is there twice.

    make bench-memory ARGS="--only idle --times 2"
"""

import argparse
import asyncio
import contextlib
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from dev.harness.answers import question
from dev.harness.http2_caller import CallEndedError, Http2Caller, message
from dev.harness.loadgen import Group, play
from dev.harness.stack import ENTAILMENT, Stack
from hotslot.entailment.v1 import entailment_pb2 as pb

MIB = 1 << 20
PREDICT, STREAM = f"/{ENTAILMENT}/Predict", f"/{ENTAILMENT}/StreamPredict"
PEAK_FACTOR, LATER_FACTOR, LATER_SECONDS = 1.3, 1.1, 10.0
UNARY_CALLERS, STREAMS, CONNECTIONS, ORDINARY_BYTES, ORDINARY_SECONDS = 16, 8, 4, 100_000, 5.0
REST_SECONDS = 5.0  # before the base is read
POUR_SECONDS = 6.0  # for callers that never stop by themselves
Hold = contextlib.AsyncExitStack  # closes the callers that stay


@dataclass(frozen=True, slots=True)
class Attack:
    """One way to misbehave. `run` returns when nothing more is sent; callers that stay are left open in `Hold`."""

    name: str
    run: Callable[[int, Hold], Awaitable[object]]


@dataclass(frozen=True, slots=True)
class Row:
    """The server's resident memory, MiB."""

    name: str
    first: float  # after single calls
    base: float
    peak: float  # of all attacks
    later: tuple[float, ...]  # of each attack
    limit: float

    @property
    def is_kept(self) -> bool:
        """Whether both bounds were kept."""
        return self.peak <= self.base + PEAK_FACTOR * self.limit and max(self.later) <= LATER_FACTOR * self.base


def main() -> int:
    """Measure and print; 1 if a bound was not kept."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--limit-mib", type=int, default=128, help="max_waiting_bytes, in MiB")
    parser.add_argument("--only", default="", help="rows whose name contains this")
    parser.add_argument("--times", type=int, default=1, help="attacks on each server, one after another")
    options = parser.parse_args()
    rows = []
    for attack in ATTACKS:
        if options.only in attack.name:
            with tempfile.TemporaryDirectory(prefix="hotslot-") as folder:
                rows.append(measure(Path(folder), attack, options.limit_mib, options.times))
            show(rows[-1:])
    show(rows)
    return 0 if all(row.is_kept for row in rows) else 1


def measure(folder: Path, attack: Attack, limit_mib: int, times: int) -> Row:
    """One attack, or several, on a server of its own."""
    settings: dict[str, Any] = {"max_waiting_bytes": limit_mib * MIB}
    with Stack(folder, server=settings, runner={"min_timeout_seconds": 30.0}) as stack:
        for size in (100, 100_000, 1_000_000) * 10:
            stack.check(question(image=bytes(size)))
        time.sleep(1.0)
        first = read_mib(stack, "VmRSS")
        call_as_usual(stack)
        time.sleep(REST_SECONDS)
        base = read_mib(stack, "VmRSS")
        Path(f"/proc/{stack.process.pid}/clear_refs").write_text("5", encoding="ascii")  # resets VmHWM
        later = tuple(asyncio.run(run(attack, stack)) for _ in range(times))
        peak = read_mib(stack, "VmHWM")
        stack.check(question())
        return Row(attack.name, first, base, peak, later, limit_mib)


def call_as_usual(stack: Stack) -> None:
    """Ordinary traffic for some seconds; all of it is answered."""
    requests = [question(image=bytes(ORDINARY_BYTES)).request()]
    groups = [
        Group("unary", requests, clients=UNARY_CALLERS),
        Group("streams", requests, mode="stream", clients=STREAMS, window=4, leave=True),
    ]
    played = play(stack.address, groups, ORDINARY_SECONDS, stack.folder, CONNECTIONS)
    assert played.of("unary"), "no unary call has ended"
    assert played.of("streams"), "no item has ended"
    assert all(one.is_answer for one in played.outcomes), "ordinary traffic was refused"


async def run(attack: Attack, stack: Stack) -> float:
    """Run an attack; returns the resident memory ten seconds after its end."""
    async with Hold() as hold:
        await attack.run(stack.port, hold)
        await asyncio.sleep(LATER_SECONDS)
        return read_mib(stack, "VmRSS")


def read_mib(stack: Stack, name: str) -> float:
    """A value of /proc/PID/status of the server, MiB."""
    lines = Path(f"/proc/{stack.process.pid}/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) / 1024


# The attacks.


async def malformed_never_read(port: int, hold: Hold) -> None:
    """Malformed stream messages of callers that never read."""
    await pour(port, hold, message(b"\xff" * 100), streams=10)


async def valid_never_read(port: int, hold: Hold) -> None:
    """Valid stream messages of callers that never read."""
    item = pb.StreamItem(item_id="", request=question(*["a"] * 32, image=bytes(100_000)).request())
    await pour(port, hold, message(pb.StreamPredictRequest(items=[item]).SerializeToString()), streams=10)


async def pictures_never_read(port: int, hold: Hold) -> None:
    """Messages of 15 MiB in streams while the engine is busy."""
    await one_long_call(port, hold)
    names = iter(range(10**9))

    def next_message() -> bytes:
        item = pb.StreamItem(item_id=f"{next(names)}", request=question(image=bytes(15 * MIB)).request())
        return message(pb.StreamPredictRequest(items=[item]).SerializeToString())

    await pour(port, hold, next_message, streams=6)


async def hang_up(port: int, hold: Hold) -> None:
    """125 requests of 8 MiB whose callers hang up during a call of 8 s."""
    await one_long_call(port, hold)
    whole = unary(8 * MIB)

    async def come_and_go() -> None:
        with contextlib.suppress(CallEndedError):
            async with Http2Caller(port) as caller:
                await caller.send(caller.open(PREDICT), whole, end=True)
                await asyncio.sleep(0.02)

    for _ in range(25):
        await asyncio.gather(*(come_and_go() for _ in range(5)))


async def large_pictures(port: int, hold: Hold) -> None:
    """30 pictures of 15 MiB at once, each of a caller that waits for its answer."""
    whole = unary(15 * MIB, "!slow 0.2")

    async def ask() -> None:
        with contextlib.suppress(CallEndedError):
            caller = await hold.enter_async_context(Http2Caller(port))
            number = caller.open(PREDICT)
            await caller.send(number, whole, end=True)
            await asyncio.wait_for(caller.wait_answer(number), 30.0)

    await asyncio.gather(*(ask() for _ in range(30)))


async def incomplete(port: int, hold: Hold, connections: int, path: str) -> None:
    """60 uploads of 15 MiB that stop before their last bytes, and stay."""
    whole = unary(15 * MIB) if path == PREDICT else stream_message(15 * MIB)
    callers = [await hold.enter_async_context(Http2Caller(port)) for _ in range(connections)]

    async def upload(number: int) -> None:
        caller = callers[number % connections]
        with contextlib.suppress(CallEndedError):
            await caller.send(caller.open(path), whole[:-100])

    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(asyncio.gather(*map(upload, range(60))), 4 * POUR_SECONDS)


async def idle_streams(port: int, hold: Hold, head: bytes, connections: int = 12, streams: int = 250) -> None:
    """Streams that send the head of a message and stay idle."""

    async def stay(caller: Http2Caller) -> None:
        with contextlib.suppress(CallEndedError):
            await caller.send(caller.open(STREAM), head)

    async def open_all() -> None:
        for _ in range(connections):
            caller = await hold.enter_async_context(Http2Caller(port))
            await asyncio.gather(*(stay(caller) for _ in range(streams)))

    with contextlib.suppress(TimeoutError, OSError):
        await asyncio.wait_for(open_all(), 4 * POUR_SECONDS)


async def one_outlives(port: int, hold: Hold) -> None:
    """Messages with 64 items of 200 KB, of which one takes 8 s."""

    async def ask(caller: Http2Caller, number: int) -> None:
        words = ["!slow 8" if number == 0 else "waits"]
        items = [pb.StreamItem(item_id="0", request=question(*words, image=bytes(200_000)).request())]
        refused = question("", image=bytes(200_000)).request()
        items += [pb.StreamItem(item_id=f"{place}", request=refused) for place in range(1, 64)]
        await caller.send(caller.open(STREAM), message(pb.StreamPredictRequest(items=items).SerializeToString()))

    for number in range(16):
        with contextlib.suppress(CallEndedError):
            await ask(await hold.enter_async_context(Http2Caller(port)), number)


async def unread_answers(port: int, hold: Hold) -> None:
    """1,000 unary calls whose answers are not read."""
    whole = unary(100)
    for _ in range(4):
        caller = await hold.enter_async_context(Http2Caller(port, reads=False))
        for _ in range(250):
            with contextlib.suppress(CallEndedError):
                await caller.send(caller.open(PREDICT), whole, end=True)


HEAD = message(bytes(8 * MIB))[: 120 << 10]
ATTACKS = [
    Attack("malformed messages, never read", malformed_never_read),
    Attack("valid messages, never read", valid_never_read),
    Attack("pictures of 15 MiB in 6 streams, engine busy", pictures_never_read),
    Attack("125 × 8 MiB, hung up during one call", hang_up),
    Attack("30 × 15 MiB", large_pictures),
    Attack("60 incomplete uploads, 1 connection", lambda port, hold: incomplete(port, hold, 1, PREDICT)),
    Attack("60 incomplete uploads, 60 connections", lambda port, hold: incomplete(port, hold, 60, PREDICT)),
    Attack("60 incomplete messages in streams, 1 connection", lambda port, hold: incomplete(port, hold, 1, STREAM)),
    Attack("60 incomplete messages in streams, 60 connections", lambda port, hold: incomplete(port, hold, 60, STREAM)),
    Attack("3,000 idle streams", lambda port, hold: idle_streams(port, hold, b"\0")),
    Attack("3,000 idle streams with a full window", lambda port, hold: idle_streams(port, hold, HEAD)),
    Attack("64 items a message, one outlives the rest", one_outlives),
    Attack("1,000 unread answers", unread_answers),
]


def unary(size: int, statement: str = "two red circles") -> bytes:
    """The message of a unary call with a picture of a size."""
    return message(question(statement, image=bytes(size)).request().SerializeToString())


def stream_message(size: int) -> bytes:
    """A stream message with one item."""
    item = pb.StreamItem(item_id="one", request=question(image=bytes(size)).request())
    return message(pb.StreamPredictRequest(items=[item]).SerializeToString())


async def one_long_call(port: int, hold: Hold) -> None:
    """Make the engine busy for 8 s."""
    caller = await hold.enter_async_context(Http2Caller(port))
    await caller.send(caller.open(PREDICT), unary(100, "!slow 8"), end=True)
    await asyncio.sleep(0.3)


async def pour(port: int, hold: Hold, content: bytes | Callable[[], bytes], streams: int) -> None:
    """Send messages in several streams, each on a connection that never reads, for some seconds."""

    async def send_all() -> None:
        caller = await hold.enter_async_context(Http2Caller(port, reads=False))
        number = caller.open(STREAM)
        with contextlib.suppress(CallEndedError):
            while True:
                await caller.send(number, content if isinstance(content, bytes) else content())

    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(asyncio.gather(*(send_all() for _ in range(streams))), POUR_SECONDS)


def show(rows: list[Row]) -> None:
    """Print the table."""
    table = Table(title="resident memory of the server, MiB")
    for name in ("attack", "single calls", "base", "limit", "peak", "allowed", "10 s later", "allowed", "kept"):
        table.add_column(name, justify="left" if name == "attack" else "right")
    for row in rows:
        table.add_row(
            row.name, f"{row.first:.1f}", f"{row.base:.1f}", f"{row.limit:.0f}", f"{row.peak:.0f}",
            f"{row.base + PEAK_FACTOR * row.limit:.0f}", ", ".join(f"{one:.1f}" for one in row.later),
            f"{LATER_FACTOR * row.base:.1f}",
            "yes" if row.is_kept else "NO",
        )  # fmt: skip
    Console(width=140).print(table)


if __name__ == "__main__":
    sys.exit(main())
