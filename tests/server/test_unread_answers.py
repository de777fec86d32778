"""Callers that open a window of no bytes, so that nothing of an answer can be sent to them."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from common.clock import SystemClock
from dev.harness.http2_caller import Http2Caller, message
from inference.server.api.entailment import EntailmentApi
from inference.server.api.grpc_server import OpenCalls, make_server
from inference.server.api.interceptors import Callers, CallInterceptor
from inference.server.api.predict import PredictApi, PredictRules
from inference.server.api.standard_services import HEALTH_SERVICE, REFLECTION, HealthApi, ReflectionApi
from inference.server.api.stream import StreamRules
from inference.server.api.task import InputLimits
from inference.server.connections import TcpConnections
from inference.server.health import HealthRegistry
from inference.server.model.models import Models
from inference.server.scheduling.held_bytes import HeldBytes, HeldRules
from inference.server.scheduling.unread import LOOK_SECONDS, MIN_UNREAD, UNREAD_SECONDS
from tests.server.simulated_connections import SimCalls, SimConnections, SimMemory
from tests.server.simulator import World

pytestmark = pytest.mark.fault("L26")
LIMIT_SECONDS = 20.0
LOOK_PAUSE_SECONDS = 2 * LIMIT_SECONDS * LOOK_SECONDS / UNREAD_SECONDS  # between looks: no answer is late by them
CHECK, WATCH = f"/{HEALTH_SERVICE}/Check", f"/{HEALTH_SERVICE}/Watch"
REFLECT = f"/{REFLECTION}/ServerReflectionInfo"
STREAM = "/hotslot.entailment.v1.EntailmentService/StreamPredict"
LIST_SERVICES = b":\0"
IDS = {"x-request-id": "mine"}


class Server:
    """The public server of a simulated model, whose looks at memory a test makes."""

    def __init__(self, world: World) -> None:
        self.calls, network = OpenCalls(), TcpConnections()
        self.held = HeldBytes(HeldRules(1 << 30, 1 << 20, 12.0), network, SimMemory(), self.calls)
        health = HealthRegistry([""])
        clock, emit = SystemClock(), world.events.append
        rules = PredictRules(InputLimits(1000, 100), StreamRules(8), max_deadline_seconds=60.0)
        predict = PredictApi(EntailmentApi(), Models([world.manager]), rules, clock, emit, world.drain, self.held)
        services = [predict.handlers(), HealthApi(health).handlers(), *ReflectionApi([]).handlers()]
        interceptor = CallInterceptor(clock, emit, lambda *_: None, Callers((), "", 0.0), self.held)
        self.grpc = make_server(interceptor.wrap, (), services, lambda _: None, self.calls)
        network.port = self.port = self.grpc.add_insecure_port("127.0.0.1:0")
        self.now = 0.0

    def look(self) -> int:
        """Look once more; returns how many calls there are."""
        self.now += LOOK_SECONDS
        self.held.unread.tick(self.now, self.held.calls, 0)
        return self.calls.count

    def wait(self, seconds: float) -> None:
        """Looks at what is unread, without a wait."""
        for _ in range(round(seconds / LOOK_SECONDS)):
            self.look()


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    """It accepts calls."""
    made = Server(await World(tmp_path).serving())
    await made.grpc.start()
    yield made
    await made.grpc.stop(0)


@contextlib.asynccontextmanager
async def unwilling(server: Server, path: str, count: int, body: bytes = b"") -> AsyncIterator[Http2Caller]:
    """A caller with so many calls, of whose answers it takes nothing."""
    async with Http2Caller(server.port, window=0) as caller:
        for _ in range(count):
            number = caller.open(path, IDS)
            await caller.send(number, message(body), end=path not in (STREAM, REFLECT))
            await caller.wait_answer(number)
        yield caller


async def until(condition: Callable[[], bool], pause_seconds: float = 0.005) -> None:
    """Wait for what gRPC's threads do."""
    async with asyncio.timeout(LIMIT_SECONDS):
        while not condition():  # noqa: ASYNC110  no event tells it
            await asyncio.sleep(pause_seconds)


async def test_an_answered_call_counts_until_its_caller_has_taken_the_answer(server: Server) -> None:
    """Its handler is done, and the log says OK; gRPC keeps it."""
    async with unwilling(server, CHECK, 3) as caller:
        await until(lambda: len(server.calls.find_answered()) == 3)
        assert (server.held.calls, server.calls.count) == (0, 3)

        for number in (1, 3, 5):
            caller.take(number)
        await until(lambda: server.calls.count == 0)

        assert caller.ended == 3


async def test_a_caller_that_takes_no_answer_is_disconnected(server: Server) -> None:
    """After a time in which a slow one would have taken some; gRPC then forgets its calls."""
    async with unwilling(server, CHECK, 3) as caller, Http2Caller(server.port) as other:
        await until(lambda: len(server.calls.find_answered()) == 3)
        server.wait(UNREAD_SECONDS - LOOK_SECONDS)
        await asyncio.sleep(0.05)
        assert server.calls.count == 3

        server.wait(2 * LOOK_SECONDS)
        await caller.wait_closed()
        await until(lambda: server.calls.count == 0)

        await other.wait_answer(await ask(other))


async def test_a_caller_that_takes_other_answers_stays_connected(server: Server) -> None:
    """One call of it is stuck; the others are answered, and taken, between two looks."""
    async with unwilling(server, CHECK, 1) as caller:
        await until(lambda: len(server.calls.find_answered()) == 1)
        for _ in range(4):
            server.wait(UNREAD_SECONDS / 3)
            taken = caller.ended
            caller.take(await ask(caller))
            await until(lambda: caller.ended > taken and server.calls.count == 1)  # noqa: B023  called in this round
        assert caller.ended == 4

        server.wait(UNREAD_SECONDS + 2 * LOOK_SECONDS)
        await caller.wait_closed()


async def ask(caller: Http2Caller) -> int:
    """A call of a caller that takes its answers."""
    number = caller.open(CHECK)
    await caller.send(number, message(b""), end=True)
    return number


@pytest.mark.parametrize(
    ("path", "body"),
    [(CHECK, b""), (WATCH, b""), (REFLECT, LIST_SERVICES), (STREAM, b"\xff")],
    ids=["unary", "watch", "reflection", "malformed stream message"],
)
async def test_too_many_answers_that_nobody_takes_are_ended(server: Server, path: str, body: bytes) -> None:
    """Of unary calls, and of streams that wait in a write: a message of the latter is answered without a device."""
    each = MIN_UNREAD // 3 + 1
    async with contextlib.AsyncExitStack() as hold:
        callers = [await hold.enter_async_context(unwilling(server, path, each, body)) for _ in range(2)]
        await until(lambda: server.calls.count == 2 * each)
        server.wait(4 * LOOK_SECONDS)
        await asyncio.sleep(0.05)
        assert server.calls.count == 2 * each

        callers.append(await hold.enter_async_context(unwilling(server, path, each, body)))
        await until(lambda: server.calls.count == 3 * each)
        await until(lambda: server.look() == 2 * each, LOOK_PAUSE_SECONDS)
        await until(lambda: sorted(caller.ended for caller in callers) == [0, 0, each])
    await until(lambda: server.calls.count == 0)
    assert server.held.calls == 0


async def test_ids_that_cannot_be_sent_count_as_unread() -> None:
    """They go out before the status: a caller that does not even read its socket keeps the handlers waiting."""
    network = SimConnections()
    held = HeldBytes(HeldRules(1 << 20, 1 << 20, 12.0), network, SimMemory(), SimCalls())
    clock, emitted = SystemClock(), list[object]()
    interceptor = CallInterceptor(clock, emitted.append, lambda *_: None, Callers((), "", 0.0), held)

    async def answer(_messages: object, _context: object) -> bytes:
        return b""

    async def send(_metadata: object) -> None:
        await asyncio.Event().wait()

    handler: Any = interceptor.wrap(grpc.stream_unary_rpc_method_handler(answer), "service", "method")
    context = SimpleNamespace(
        invocation_metadata=IDS.items, time_remaining=lambda: None, peer=lambda: "caller", send_initial_metadata=send
    )
    calls = [asyncio.create_task(handler.stream_unary(None, context)) for _ in range(MIN_UNREAD + 1)]
    await asyncio.sleep(0)
    for number in range(2):
        held.tick(number * LOOK_SECONDS)
    for call in calls:
        call.cancel()
    await asyncio.wait(calls)

    assert network.closed == ["caller"]
