"""What the server holds for its callers is bounded, and let go when they leave."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from common.clock import SystemClock
from common.errors import DeadlineMissed, NotReady
from dev.harness.answers import question
from dev.harness.stack import DEADLINE_SECONDS, ENTAILMENT, Stack
from dev.harness.waiting import eventually
from inference.server.api.entailment import EntailmentApi
from inference.server.api.interceptors import Call, current_call
from inference.server.api.predict import PredictApi, PredictRules
from inference.server.api.reading import MessageReader, read_in_turn
from inference.server.api.stream import StreamRules
from inference.server.api.task import InputLimits
from inference.server.model.models import Models
from inference.server.scheduling.held_bytes import CALL_BYTES, MAX_SMALL, HeldBytes, HeldRules
from tests.server.scheduling.uploads import Arrival
from tests.server.simulated_connections import SimCalls, SimConnections, SimMemory
from tests.server.simulator import World
from tests.server.stream_caller import StreamCaller
from tests.server.test_stream import wait_still
from tests.stack.wire import item_message

MAX_OUTSTANDING = 8


def open_stream(world: World, caller: StreamCaller) -> "asyncio.Task[None]":
    """A stream on a simulated model."""
    rules = PredictRules(InputLimits(1000, 100), StreamRules(MAX_OUTSTANDING), max_deadline_seconds=60.0)
    held = HeldBytes(HeldRules(1 << 20, 1 << 20, 12.0), SimConnections(), SimMemory(), SimCalls())
    api = PredictApi(
        EntailmentApi(), Models([world.manager]), rules, world.clock, world.events.append, world.drain, held
    )
    return asyncio.create_task(api.stream_predict(None, caller.context))


@pytest.mark.fault("L4")
@pytest.mark.parametrize("message", [b"\xff", b""], ids=["no protobuf", "no items"])
async def test_malformed_messages_of_a_caller_that_never_reads_are_read_no_further(
    tmp_path: Path, message: bytes
) -> None:
    """Answers to malformed messages count as outstanding; once the caller reads them, its stream is read on."""
    world = await World(tmp_path).serving()
    caller = StreamCaller([message] * 100)
    stream = open_stream(world, caller)
    await world.settle()
    assert caller.sent == MAX_OUTSTANDING

    caller.read_answers(100)
    await stream

    assert len(caller.results) == 100


async def test_a_cancelled_request_drops_its_payload(tmp_path: Path) -> None:
    """The picture of a caller that has left is not kept while the runner computes it."""
    world = await World(tmp_path).serving()
    world.holds_items = True
    computed, waiting = world.ask("computed"), [world.ask("waiting") for _ in range(7)]
    await world.settle()

    for request in (computed, *waiting):
        world.manager.requests.cancel(request)

    assert {request.payload.size_bytes for request in (computed, *waiting)} == {0}
    assert world.manager.requests.intake.admission.size_bytes == 0


class SlowCall:
    """A call whose message has not arrived, in the form of gRPC's context."""

    def __init__(self) -> None:
        self.arrived: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self.taken: list[bytes] = []  # gRPC has freed its own copy of them
        self.context: Any = SimpleNamespace(peer=lambda: "caller", read=self._read)
        self.held = HeldBytes(HeldRules(1 << 20, 1 << 20, 12.0), SimConnections(), SimMemory(), SimCalls())

    async def read(self) -> bytes | None:
        """Read the message as a handler does."""
        with MessageReader(self.context, self.held, SystemClock()) as reader:
            return await reader.read()

    async def _read(self) -> bytes:
        raw = await self.arrived
        self.taken.append(raw)
        return raw


async def test_a_message_that_arrives_for_a_cancelled_reader_is_taken_from_grpc() -> None:
    """GRPC would keep it for ever. The reader ends at once, and its reservation with it."""
    call = SlowCall()
    reader = asyncio.create_task(call.read())
    await asyncio.sleep(0)

    reader.cancel()
    await asyncio.wait([reader])
    held = call.held.total
    call.arrived.set_result(b"late")
    await asyncio.sleep(0)

    assert reader.cancelled()
    assert (held, call.taken) == (0, [b"late"])


async def test_a_reader_that_is_cancelled_when_its_message_has_arrived_takes_it_from_grpc() -> None:
    """The message and the cancellation may come in one turn of the loop."""
    call = SlowCall()
    reader = asyncio.create_task(call.read())
    await asyncio.sleep(0)

    call.arrived.set_result(b"just now")
    reader.cancel()
    await asyncio.wait([reader])
    await asyncio.sleep(0)

    assert reader.cancelled()
    assert call.taken == [b"just now"]


async def test_an_upload_that_is_too_slow_ends_for_its_reader_and_is_taken_from_grpc_later() -> None:
    """The reader gets the error of the upload at once; gRPC's read goes on without it."""
    call = SlowCall()
    reader = asyncio.create_task(call.read())
    await asyncio.sleep(0)

    call.held.tick(SystemClock().monotonic() + 60.0)
    await asyncio.wait([reader])
    call.arrived.set_result(b"late")
    await asyncio.sleep(0)

    assert isinstance(reader.exception(), DeadlineMissed)
    assert call.taken == [b"late"]


async def test_a_read_that_fails_fails_for_its_reader() -> None:
    """An error of gRPC's own is not taken for an end of the wait."""
    call = SlowCall()
    reader = asyncio.create_task(call.read())
    await asyncio.sleep(0)

    call.arrived.set_exception(ConnectionError("reset"))
    await asyncio.wait([reader])

    assert isinstance(reader.exception(), ConnectionError)
    assert call.held.total == 0


class Picture:
    """Something that holds bytes in memory."""


@pytest.mark.fault("L4")
async def test_an_observers_call_is_not_refused_for_what_callers_hold() -> None:
    """With a limit of 3 MiB that callers fill, a status or health call is read at once; a caller's waits."""
    call, picture, asked = SlowCall(), Picture(), []
    call.held = HeldBytes(HeldRules(3 << 20, 32 << 20, 12.0), SimConnections(), SimMemory(), SimCalls())
    call.held.hold("caller", picture, 3 << 20)

    async def get_status(request: object, _context: object) -> str:
        asked.append(request)
        return "good"

    observer = read_in_turn(grpc.unary_unary_rpc_method_handler(get_status, bytes.decode), call.held, SystemClock())
    assert observer.stream_unary is not None
    status = asyncio.create_task(observer.stream_unary(iter(()), call.context))
    waiting = asyncio.create_task(call.read())
    await asyncio.sleep(0)
    call.held.tick(SystemClock().monotonic())
    call.arrived.set_result(b"how are you")
    await asyncio.wait([status])

    assert (status.result(), asked) == ("good", ["how are you"])
    assert not waiting.done()
    waiting.cancel()


async def test_a_watch_beyond_the_budget_ends_another_one() -> None:
    """The stream of an observer that waits for news ends with UNAVAILABLE; its caller opens another one."""
    calls = [SlowCall(), SlowCall()]
    held = calls[0].held = calls[1].held
    held.rules = HeldRules(20 * CALL_BYTES - 1, 1 << 20, 12.0)
    begun: list[object] = []

    async def watch(request: object, _context: object) -> None:
        begun.append(request)
        await asyncio.Event().wait()

    observer = read_in_turn(grpc.unary_stream_rpc_method_handler(watch, bytes.decode), held, SystemClock())
    answer: Any = observer.stream_stream
    tasks: list[asyncio.Task[None]] = [asyncio.create_task(answer(iter(()), call.context)) for call in calls]
    for call in calls:
        call.arrived.set_result(b"news")
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)

    error = tasks[0].exception()
    assert isinstance(error, NotReady)
    assert (error.reason, begun, tasks[1].done(), held.calls) == ("STREAM_IDLE", ["news", "news"], False, 1)
    tasks[1].cancel()
    await asyncio.wait(tasks)
    assert (tasks[1].cancelled(), held.calls) == (True, 0)


@pytest.mark.fault("L4")
async def test_of_observers_only_some_are_read_without_waiting() -> None:
    """Nobody keeps a message of a health check small: further ones wait as pictures do."""
    held, picture = HeldBytes(HeldRules(3 << 20, 32 << 20, 12.0), SimConnections(), SimMemory(), SimCalls()), Picture()
    held.hold("caller", picture, 3 << 20)
    observers = [Arrival("observer", is_small=True) for _ in range(MAX_SMALL + 1)]

    assert [held.ask(one, 0.0) for one in observers] == [True] * MAX_SMALL + [False]


async def test_a_cancelled_call_counts_nothing_although_its_task_is_kept(tmp_path: Path) -> None:
    """A cancelled task keeps the frames of its handler: none of them refers to the picture."""
    world = await World(tmp_path).serving()
    world.holds_items = True
    call = SlowCall()
    call.context.time_remaining = lambda: 30.0
    rules = PredictRules(InputLimits(1 << 20, 100), StreamRules(MAX_OUTSTANDING), max_deadline_seconds=60.0)
    models = Models([world.manager])
    api = PredictApi(EntailmentApi(), models, rules, world.clock, world.events.append, world.drain, call.held)
    current_call.set(Call("service", "method", "unary", "id", "", 0.0, is_echoed=False, timeout=None))
    call.arrived.set_result(question(image=bytes(100_000)).request().SerializeToString())
    predicting = asyncio.create_task(api.predict(None, call.context))
    await world.settle()
    waiting = call.held.message_bytes
    call.arrived, call.taken = asyncio.get_running_loop().create_future(), []

    predicting.cancel()
    await asyncio.wait([predicting])
    world.runner("a").answer(*world.runner("a").items)
    call.held.tick(0.0)

    assert predicting.cancelled()
    assert waiting > 100_000
    assert call.held.message_bytes == 0


@pytest.mark.fault("L24")
def test_a_caller_that_leaves_during_a_write_is_cancelled(stack: Stack) -> None:
    """Ten callers that do not read their answers, and leave, are CANCELLED in the log; no crash is logged."""
    ended = len(stack.process.events("call_ended"))
    message = item_message("", b"x" * 100)
    sent = 0

    def pour() -> Iterator[bytes]:
        nonlocal sent
        while True:
            sent += 1
            yield message

    with grpc.insecure_channel(stack.address, options=[("grpc.http2.bdp_probe", 0)]) as channel:
        leave: Any = channel.stream_stream(f"/{ENTAILMENT}/StreamPredict")
        calls = [leave(pour(), timeout=DEADLINE_SECONDS) for _ in range(10)]
        wait_still(lambda: sent)
        for call in calls:
            call.cancel()

    eventually(lambda: len(stack.process.events("call_ended")) >= ended + 10, what="all calls have ended")
    assert {line["grpc_code"] for line in stack.process.events("call_ended")[ended:]} == {"Cancelled"}
    assert stack.process.events("call_crashed") == []
