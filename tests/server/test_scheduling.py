"""Scheduling in a model's life: who is let in, who is next, through requests, slots and simulated runners."""

import asyncio
import contextlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from common.errors import DeadlineMissed, Overloaded
from hotslot.entailment.v1 import entailment_pb2
from inference.server.api import stream
from inference.server.api.entailment import ENTAILMENT
from inference.server.api.interceptors import current_call
from inference.server.api.predict import PredictApi, PredictRules, TaskStream
from inference.server.api.reading import MessageReader
from inference.server.api.stream import MAX_BUSY_SECONDS, ItemStream, StreamRules
from inference.server.api.task import InputLimits
from inference.server.compose import build_callers
from inference.server.control.report import build_model_state
from inference.server.events import OverloadChanged
from inference.server.model.models import Models
from inference.server.request import Flow, PendingRequest, Priority
from inference.server.scheduling.admission import Capacity, Refusal
from inference.server.scheduling.fair_queue import Caller, CallerRules, Quota, Source
from inference.server.scheduling.held_bytes import HeldBytes, HeldRules
from inference.server.scheduling.turns import GRANT_SECONDS, MAX_AHEAD, TURN_ROWS, Reader
from inference.server.settings import ServerSettings
from tests.server.simulated_connections import SimCalls, SimConnections, SimMemory
from tests.server.simulator import UNIT_SECONDS, ManualClock, World, ask
from tests.server.stream_caller import StreamCaller
from tests.stack.refusal import status_refusal


def source(name: str, *, stream: int = 0, quota: float = 0.0, now: float = 0.0) -> Source:
    """The source of a caller's unary calls, or of one of its streams."""
    caller = Caller(CallerRules(name), Quota(quota, now) if quota else None)
    return Source(caller, caller.stream_flow(stream)) if stream else caller.unary_source


def send(world: World, statement: str, origin: Source, seconds: float = 30.0) -> PendingRequest:
    """Send a request of a caller."""
    return world.manager.requests.predict(ask(statement), world.clock.seconds + seconds, origin)


async def test_callers_are_served_in_turn(tmp_path: Path) -> None:
    """A caller with ten requests and one with two share the runner from the first on."""
    world = await World(tmp_path, capacity=Capacity(100, 100_000)).serving()
    runner = world.runner(world.active.name)
    world.holds_items = True
    for number in range(10):
        send(world, f"greedy {number}", source("greedy", stream=1))
    for number in range(2):
        send(world, f"modest {number}", source("modest", stream=2))
    await world.settle()
    assert [statement.split()[0] for statement in runner.received[-8:]].count("modest") == 2


async def test_an_interactive_request_is_next(tmp_path: Path) -> None:
    """However many stream items wait."""
    world = await World(tmp_path, capacity=Capacity(100, 100_000)).serving()
    runner = world.runner(world.active.name)
    world.holds_items = True
    for number in range(20):
        send(world, f"bulk {number}", source("a", stream=1))
    await world.settle()
    send(world, "interactive", source("b"))
    await world.settle()
    assert runner.received[-1] == "interactive"


async def test_a_request_that_would_be_late_is_refused_at_once(tmp_path: Path) -> None:
    """With the time after which there is room for it; a patient one is admitted."""
    world = await World(tmp_path, capacity=Capacity(100, 100_000)).serving()
    world.holds_items = True
    for number in range(7):
        send(world, f"waits {number}", source("a"))
    await world.settle()
    with pytest.raises(Overloaded) as caught:
        send(world, "hurried", source("a"), seconds=3 * UNIT_SECONDS)
    assert caught.value.reason == "QUEUE_FULL"
    assert 0 < (caught.value.retry_after_seconds or 0.0) < 10 * UNIT_SECONDS
    assert not send(world, "patient", source("a"), seconds=1.0).is_done
    counted = [dict(row.refused) for row in build_model_state(world.manager, world.clock).stats]
    assert counted == [{"QUEUE_FULL": 1}]


async def test_a_stream_item_waits_where_a_unary_call_is_refused(tmp_path: Path) -> None:
    """Streams are held back by reading, not refused."""
    world = await World(tmp_path, capacity=Capacity(100, 100_000)).serving()
    world.holds_items = True
    for number in range(7):
        send(world, f"waits {number}", source("a", stream=1))
    await world.settle()
    assert not send(world, "item", source("a", stream=1), seconds=3 * UNIT_SECONDS).is_done


async def test_a_caller_over_its_quota_is_refused_until_it_is_within_it(tmp_path: Path) -> None:
    """Others are not."""
    world = await World(tmp_path, capacity=Capacity(100, 100_000)).serving()
    shop = source("shop", quota=2.0, now=world.clock.seconds)
    for _ in range(2):
        send(world, "within", shop)
    with pytest.raises(Overloaded) as caught:
        send(world, "beyond", shop)
    assert caught.value.reason == "QUOTA_EXCEEDED"
    send(world, "other", source("other"))
    world.clock.seconds += caught.value.retry_after_seconds or 0.0
    send(world, "again", shop)


async def test_a_cost_that_locks_callers_out_is_measured_again(tmp_path: Path) -> None:
    """A load under pressure measured a hundred times too much: a self-test within two seconds corrects it."""
    world = await World(tmp_path, capacity=Capacity(100, 100_000)).serving()
    dispatcher = world.manager.machine.slots[world.active.name].dispatcher
    await world.wait(3.0)
    for _ in range(2):
        dispatcher.cost.learn(100 * UNIT_SECONDS, 1)
    with pytest.raises(DeadlineMissed) as caught:
        send(world, "hurried", source("a"), seconds=0.2)
    assert (caught.value.reason, caught.value.retry_after_seconds) == ("DEADLINE_TOO_SHORT", None)
    before = world.runner(world.active.name).received.count("self-test")
    await world.wait(1.5)
    assert world.runner(world.active.name).received.count("self-test") == before + 1
    answered = send(world, "hurried", source("a"), seconds=0.2)
    await world.settle()
    assert answered.outcome.result().outcome


async def test_overload_is_reported_when_it_begins_and_when_it_ends(tmp_path: Path) -> None:
    """As an event, once each."""
    world = await World(tmp_path, capacity=Capacity(100, 100_000)).serving()
    world.holds_items = True
    for _ in range(40):
        with contextlib.suppress(Overloaded):
            send(world, "more", source("a"), seconds=1.0)
        await world.wait(0.1)
    world.holds_items = False
    world.runner(world.active.name).compute()
    await world.wait(4.0)
    changes = [event.is_overloaded for event in world.events if isinstance(event, OverloadChanged)]
    assert changes == [True, False]


def message(*items: tuple[str, str]) -> bytes:
    """A message of items, each with its model and its statement."""
    rows = []
    for model, statement in items:
        request = entailment_pb2.PredictRequest(model=model, statements=[statement])
        request.image.content = b"picture"
        rows.append(entailment_pb2.StreamItem(item_id=statement, request=request))
    return entailment_pb2.StreamPredictRequest(items=rows).SerializeToString()


def stream_messages(name: str, count: int) -> list[bytes]:
    """Messages of one item each."""
    return [message(("", f"{name} {number}")) for number in range(count)]


def hold_bytes(max_bytes: int = 1 << 30) -> HeldBytes:
    """What counts the bytes of messages."""
    return HeldBytes(HeldRules(max_bytes, 1 << 25, 12.0), SimConnections(), SimMemory(), SimCalls())


def build_api(world: World, *others: World, held: HeldBytes, max_outstanding: int = 32) -> PredictApi:
    """The API of the world's model, and of those of others."""
    rules = PredictRules(InputLimits(1000, 100), StreamRules(max_outstanding), max_deadline_seconds=60.0)
    models = Models([world.manager, *(other.manager for other in others)])
    return PredictApi(ENTAILMENT, models, rules, world.clock, world.events.append, world.drain, held)


def open_stream(
    world: World,
    caller: StreamCaller,
    *others: World,
    of: Caller | None = None,
    max_outstanding: int = 32,
    max_bytes: int = 1 << 30,
) -> "asyncio.Task[None]":
    """A stream of a caller on the world's model, and on those of others."""
    held = hold_bytes(max_bytes)
    api = build_api(world, *others, held=held, max_outstanding=max_outstanding)
    if of is not None:
        current_call.get().caller = of

    async def run() -> None:
        with MessageReader(caller.context, held, world.clock) as reader:
            await ItemStream(caller.context, TaskStream(api), api.rules.stream, world.drain, reader).run()

    return asyncio.create_task(run())


class SlowTaskStream(TaskStream):
    """A stream of items that take three quarters of the time for a message to check."""

    def __init__(self, api: PredictApi, clock: ManualClock) -> None:
        super().__init__(api)
        self.clock, self.begun = clock, 0

    def begin(
        self,
        item_id: str,
        request: Any,  # noqa: ANN401  as of a task
        deadline_seconds: float | None,
        *,
        is_duplicate: bool,
        refusal: Refusal | None,
    ) -> PendingRequest:
        """Accept one."""
        self.clock.seconds += 0.75 * MAX_BUSY_SECONDS
        self.begun += 1
        return super().begin(item_id, request, deadline_seconds, is_duplicate=is_duplicate, refusal=refusal)


async def wait_until(is_so: Callable[[], bool]) -> None:
    """Let the loop run until something is so."""
    for _ in range(100_000):
        if is_so():
            return
        await asyncio.sleep(0)
    raise TimeoutError


async def end_streams(streams: "list[asyncio.Task[None]]") -> None:
    """Cancel streams."""
    for reading in streams:
        reading.cancel()
    await asyncio.gather(*streams, return_exceptions=True)


@pytest.mark.fault("L2")
async def test_a_connection_of_many_streams_has_no_unary_call_refused(tmp_path: Path) -> None:
    """Of 100 streams with a message of 64 items each few are read at once, and their items take no unary places."""
    world = await World(tmp_path, capacity=Capacity(300, 1 << 30)).serving()
    world.holds_items = True
    callers = [StreamCaller([message(*(("", f"{n} {k}") for k in range(64)))]) for n in range(100)]
    streams = [open_stream(world, caller) for caller in callers]
    await world.wait(0.5)
    assert not send(world, "unary", source("other"), seconds=60.0).is_done
    assert 0 < sum(caller.sent for caller in callers) <= MAX_AHEAD + 1  # and one in its turn
    await end_streams(streams)


@pytest.mark.fault("L2")
async def test_messages_whose_items_take_long_to_check_let_other_work_go_first(tmp_path: Path) -> None:
    """In a turn of the event loop one stream of ten goes on, for two items; what it has read counts as held."""
    world = await World(tmp_path, capacity=Capacity(10_000, 1 << 30)).serving()
    held = hold_bytes()
    api = build_api(world, held=held)
    tasks = list[SlowTaskStream]()

    async def run(name: int) -> None:
        caller = StreamCaller([message(*(("", f"{name} {number}") for number in range(16)))])
        tasks.append(SlowTaskStream(api, world.clock))
        with MessageReader(caller.context, held, world.clock) as reader:
            await ItemStream(caller.context, tasks[-1], api.rules.stream, world.drain, reader).run()

    streams = [asyncio.create_task(run(name)) for name in range(10)]
    steps, counted = list[int](), list[int]()
    await wait_until(lambda: sum(task.begun for task in tasks) >= 20)
    while (before := sum(task.begun for task in tasks)) < 160:
        await asyncio.sleep(0)
        steps.append(sum(task.begun for task in tasks) - before)
        counted.append(held.message_bytes)
    assert max(steps) == 2
    assert min(counted) > 1000
    await end_streams(streams)


@pytest.mark.parametrize("count", [1, 2])
async def test_a_quota_holds_streams_whatever_models_there_are(tmp_path: Path, count: int) -> None:
    """Streams of a message of 16 rows each, of a caller with 10 rows a second: two of them are more than that."""
    world = await World(tmp_path / "a", capacity=Capacity(1000, 1 << 30)).serving()
    others = [World(tmp_path / "b", model="other")][: count - 1]
    world.holds_items = True
    limited = Caller(CallerRules("nightly"), Quota(10.0, world.clock.seconds))
    callers, streams = list[StreamCaller](), list[asyncio.Task[None]]()
    for number in range(20):
        callers.append(StreamCaller([message(*(("shapes", f"{number} {k}") for k in range(16)))]))
        streams.append(open_stream(world, callers[-1], *others, of=limited))
        await world.wait(0.05, 0.05)
    assert limited.quota_wait(world.clock.seconds) > 0
    assert 0 < world.manager.requests.intake.admission.requests <= 2 * 16
    await end_streams(streams)


class LateCaller(StreamCaller):
    """A caller whose stream is read for long before it sends."""

    def __init__(self, messages: Iterable[bytes], sends: asyncio.Event) -> None:
        super().__init__(messages)
        self.sends = sends

    async def _read(self) -> Any:  # noqa: ANN401  gRPC's end of stream is no message
        await self.sends.wait()
        return await super()._read()


@pytest.mark.fault("L2")
async def test_messages_beyond_a_quota_are_refused_if_many_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each holds memory, and all streams were read while the quota was not used up; few wait on."""
    monkeypatch.setattr(stream, "ACCEPT_SECONDS", 0.001)
    world = await World(tmp_path, capacity=Capacity(1000, 1 << 30)).serving()
    world.holds_items = True
    limited, sends = Caller(CallerRules("nightly"), Quota(10.0, world.clock.seconds)), asyncio.Event()
    callers, streams = list[StreamCaller](), list[asyncio.Task[None]]()
    for number in range(MAX_AHEAD + 8):
        callers.append(LateCaller([message(*(("", f"{number} {k}") for k in range(16)))], sends))
        callers[-1].read_answers(1)
        streams.append(open_stream(world, callers[-1], of=limited))
        await world.wait(0.02, 0.02)
    sends.set()
    await wait_until(lambda: sum(bool(caller.results) for caller in callers) == 8)
    errors = [status_refusal(result.error) for caller in callers for result in caller.results]
    assert {error.reason for error in errors} == {"QUOTA_EXCEEDED"}
    assert all(error.retry_seconds for error in errors)
    assert [len(caller.results) for caller in callers].count(16) == 8
    assert world.manager.requests.intake.admission.requests == 16
    await end_streams(streams)


@pytest.mark.parametrize("quota", [10.0, 0.0])
async def test_a_message_that_waits_for_its_turn_is_refused_if_memory_is_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: float
) -> None:
    """Of a caller over its quota, and of one with many streams; nothing else would end its wait."""
    monkeypatch.setattr(stream, "ACCEPT_SECONDS", 0.001)
    world = await World(tmp_path, capacity=Capacity(1000, 1 << 30)).serving()
    world.holds_items = True
    limited = Caller(CallerRules("nightly"), Quota(quota, world.clock.seconds) if quota else None)
    limited.use_quota(1000, world.clock.seconds)
    sends = asyncio.Event()
    count = 1 if quota else 2 * MAX_AHEAD
    callers = [LateCaller([message(("", f"{number}"))], sends) for number in range(count)]
    streams = list[asyncio.Task[None]]()
    for caller in callers:
        caller.read_answers(1)
        streams.append(open_stream(world, caller, of=limited, max_bytes=10))
        await world.wait(0.02, 0.02)
    sends.set()
    await wait_until(lambda: any(caller.results for caller in callers))
    reasons = {status_refusal(result.error).reason for caller in callers for result in caller.results}
    assert reasons == {"QUOTA_EXCEEDED" if quota else "QUEUE_FULL"}
    await end_streams(streams)


async def test_a_stream_waits_for_its_turn_at_each_model_that_its_messages_name(tmp_path: Path) -> None:
    """Naming an idle model first is no way past the streams that wait for another one."""
    world = await World(tmp_path / "a", capacity=Capacity(1000, 1 << 30)).serving()
    other = World(tmp_path / "b", model="other")
    world.holds_items = True
    items = [[("other" if k == 0 else "shapes", f"{n} {k}") for k in range(31)] for n in range(8)]
    caller = StreamCaller([message(*rows) for rows in items])
    reading = open_stream(world, caller, other, max_outstanding=1000)
    caller.read_answers(100)
    await world.wait(0.2)
    assert caller.sent < 4
    await end_streams([reading])


async def test_a_message_waits_for_one_turn_at_each_model_that_it_names(tmp_path: Path) -> None:
    """The turn at the first passes while the stream waits at the second, and is not waited for again."""
    world = await World(tmp_path / "a", capacity=Capacity(1000, 1 << 30)).serving()
    other = World(tmp_path / "b", model="other")
    StreamCaller([])
    api, caller = build_api(world, other, held=hold_bytes()), current_call.get().caller
    task, gates = TaskStream(api), [world.manager.requests.intake.turns, other.manager.requests.intake.turns]
    for gate in gates:
        gate.add_unsent(1000)
        assert all(gate.may_accept(Reader(caller, caller.stream_flow(1000 + n))) for n in range(MAX_AHEAD))
    waiting = asyncio.create_task(task.accept_in_turn(api.parse_items(message(("shapes", "a"), ("other", "b")))))
    for gate in gates:
        await world.settle()
        assert not waiting.done()
        gate.remove_unsent(1000)
        gate.grant()
        await world.settle()
        gate.add_unsent(1000)
        world.clock.seconds += 2 * GRANT_SECONDS
        gate.grant()
    await wait_until(waiting.done)


async def test_a_message_beyond_a_quota_waits_on_when_the_items_before_it_are_answered(tmp_path: Path) -> None:
    """Although the stream owes rows to others that wait."""
    world = await World(tmp_path, capacity=Capacity(1000, 1 << 30)).serving()
    StreamCaller([])
    api, gate = build_api(world, held=hold_bytes()), world.manager.requests.intake.turns
    limited = current_call.get().caller = Caller(CallerRules("nightly"), Quota(1.0, world.clock.seconds))
    task, items = TaskStream(api), api.parse_items(message(*(("", str(n)) for n in range(64))))
    other = Caller(CallerRules("other"))
    gate.add_unsent(1000)
    waits = [asyncio.create_task(gate.wait(Reader(other, other.stream_flow(1000))))]
    await world.settle()
    assert task.may_accept(items)
    limited.use_quota(64, world.clock.seconds)
    waits.append(asyncio.create_task(task.accept_in_turn(items)))
    await world.settle()
    task.skip_turn()
    assert task.find_refusal(is_memory_short=False) is None
    await end_streams(waits)


@pytest.mark.fault("L2")
async def test_streams_are_read_no_further_than_the_device_needs(tmp_path: Path) -> None:
    """Twenty streams could send 32 items each: little is read ahead, and the rest as it is needed."""
    world = await World(tmp_path, capacity=Capacity(100, 100_000)).serving()
    world.holds_items = True
    callers = [StreamCaller(stream_messages(f"stream{number}", 40)) for number in range(20)]
    streams = [open_stream(world, caller) for caller in callers]
    await world.wait(0.2)
    window, look_ahead = 2 * world.call_rows, TURN_ROWS
    assert sum(caller.sent for caller in callers) <= len(callers) + window + look_ahead

    world.holds_items = False
    world.runner(world.active.name).compute()
    for caller in callers:
        caller.read_answers(100)
    for _ in range(100):
        if all(reading.done() for reading in streams):
            break
        await world.wait(0.05)
    assert [len(caller.results) for caller in callers] == [40] * 20
    assert {result.WhichOneof("outcome") for caller in callers for result in caller.results} == {"response"}


def test_configured_callers_have_their_rights(tmp_path: Path) -> None:
    """By the metadata key of the settings."""
    settings = ServerSettings.model_validate(
        {
            "state_dir": tmp_path,
            "models": [{"name": "shapes"}],
            "scheduling": {"caller_metadata_key": "x-tenant"},
            "callers": [{"name": "nightly", "priority": "bulk", "weight": 2.0, "rows_per_second": 10.0}],
        }
    )
    callers = build_callers(settings, ManualClock())
    nightly = callers.find([("x-tenant", "nightly")], "peer")
    assert nightly.unary_source.flow == Flow(Priority.BULK, "nightly", 2.0)
    nightly.use_quota(20, ManualClock().seconds)
    assert nightly.quota_wait(ManualClock().seconds) == pytest.approx(1.0, abs=0.01)
    assert callers.find([], "peer").unary_source.flow == Flow(Priority.INTERACTIVE, "peer")
