"""A real server that may hold 32 MiB, and callers that hang up, never end a message, or send the largest pictures.

The bounds of `make bench-memory` with wide limits, for a busy machine: what these callers send is three times as much.
"""

import asyncio
import contextlib
import gzip
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from dev.bench.memory import MIB, PREDICT, read_mib, unary
from dev.harness.answers import question
from dev.harness.http2_caller import CallEndedError, Http2Caller, message
from dev.harness.metrics import value_of
from dev.harness.stack import DEADLINE_SECONDS, Stack
from dev.harness.waiting import eventually

LIMIT_MIB = 32
CALLERS, PICTURE_MIB = 12, 8


@pytest.fixture(scope="module")
def small_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A server with a low limit of what it holds."""
    settings = {"max_waiting_bytes": LIMIT_MIB * MIB}
    with Stack(tmp_path_factory.mktemp("small"), settings, runner={"min_timeout_seconds": 30.0}) as stack:
        stack.check(question(image=bytes(PICTURE_MIB * MIB)))
        yield stack


@contextlib.contextmanager
def holds_little(stack: Stack) -> Iterator[None]:
    """The server's memory grows by less than twice its limit; it then answers, and holds nothing for the callers."""
    base = read_mib(stack, "VmRSS")
    yield
    assert read_mib(stack, "VmHWM") - base < 2 * LIMIT_MIB
    stack.check(question())
    eventually(lambda: value_of(stack, "hotslot_held_bytes") < MIB, what="what callers held is gone")


async def ask_together(port: int, ask: Callable[[Http2Caller], Awaitable[object]]) -> None:
    """Each caller has a connection of its own, which stays until all are done."""

    async def run(caller: Http2Caller) -> None:
        with contextlib.suppress(CallEndedError):
            await ask(caller)

    async with contextlib.AsyncExitStack() as hold:
        callers = [await hold.enter_async_context(Http2Caller(port)) for _ in range(CALLERS)]
        await asyncio.wait_for(asyncio.gather(*map(run, callers)), DEADLINE_SECONDS)


@pytest.mark.fault("L5")
def test_callers_that_hang_up_during_a_long_call_hold_no_memory(small_server: Stack) -> None:
    """Only the caller that stays is computed."""
    answered = value_of(small_server, "hotslot_items_total", outcome="answered")

    async def ask_and_leave(caller: Http2Caller) -> None:
        number = caller.open(PREDICT)
        await asyncio.wait_for(caller.send(number, unary(PICTURE_MIB * MIB), end=True), 0.5)

    async def hang_up(caller: Http2Caller) -> None:
        with contextlib.suppress(TimeoutError):
            await ask_and_leave(caller)
        await caller.__aexit__(None, None, None)

    with holds_little(small_server):
        long = small_server.entailment.Predict.future(question("!slow 5").request(), timeout=DEADLINE_SECONDS)
        asyncio.run(ask_together(small_server.port, hang_up))
        assert not long.done()
        assert len(long.result().results) == 1
    assert value_of(small_server, "hotslot_items_total", outcome="answered") == answered + 2


@pytest.mark.fault("L6")
def test_uploads_that_never_end_are_ended(small_server: Stack) -> None:
    """Each stops before its last bytes; another caller is answered meanwhile."""
    whole = unary(PICTURE_MIB * MIB)

    async def stop_short(caller: Http2Caller) -> None:
        number = caller.open(PREDICT)
        await caller.send(number, whole[:-100])
        await caller.wait_answer(number)

    async def go_on() -> None:
        uploads = asyncio.create_task(ask_together(small_server.port, stop_short))
        await asyncio.to_thread(small_server.check, question())
        await uploads

    def slow_uploads() -> list[dict[str, Any]]:
        return small_server.process.events("call_ended", grpc_code="DeadlineExceeded", reason="UPLOAD_TOO_SLOW")

    before = len(slow_uploads())
    with holds_little(small_server):
        asyncio.run(go_on())
    eventually(lambda: len(slow_uploads()) > before, what="the log names an upload that was too slow")


@pytest.mark.fault("I7")
def test_many_small_gzip_bombs_hold_no_memory(small_server: Stack) -> None:
    """Each is as large as a message may be when it is unpacked, and arrives whole before anything is measured."""
    packed = message(gzip.compress(bytes(31 * MIB), 9), is_compressed=True)

    async def send(caller: Http2Caller) -> None:
        for path in (PREDICT, "/grpc.health.v1.Health/Check"):
            numbers = [caller.open(path, {"grpc-encoding": "gzip"}) for _ in range(4)]
            await asyncio.gather(*(caller.send(number, packed, end=True) for number in numbers), return_exceptions=True)
            await asyncio.gather(*(caller.wait_answer(number) for number in numbers))

    with holds_little(small_server):
        asyncio.run(ask_together(small_server.port, send))
    assert small_server.check(question()) == "r1"


@pytest.mark.fault("L7")
def test_many_pictures_of_the_largest_size_are_answered_in_turn(small_server: Stack) -> None:
    """Three times as much as the server may hold: who waits for too long on a busy machine is told so."""
    before = len(small_server.process.events("call_ended"))

    def codes_since(number: int) -> list[str]:
        return [line["grpc_code"] for line in small_server.process.events("call_ended")[number:]]

    async def ask(caller: Http2Caller) -> None:
        number = caller.open(PREDICT)
        await caller.send(number, unary(PICTURE_MIB * MIB, "!slow 0.1"), end=True)
        await caller.wait_answer(number)

    with holds_little(small_server):
        asyncio.run(ask_together(small_server.port, ask))
    eventually(lambda: codes_since(before).count("OK") > CALLERS // 2, what="most of them are answered")
    assert set(codes_since(before)) <= {"OK", "ResourceExhausted"}
