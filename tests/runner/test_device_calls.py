"""Items on a toy engine: device calls, outcomes, retries and replies, without a process."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime

import pytest

from hotslot.runner.v1 import runner_pb2
from inference.call_cost import CallCost
from inference.runner.calls import DeviceCalls, DeviceLost, ExecutionContext
from inference.runner.engines.base import Item, PictureFormat, PreparedItem, Progress, RowRange, RowResult
from inference.runner.items import PendingItem, ReceivedItems
from inference.runner.plan import CallLimits
from inference.runner.reporting import DeviceProgress
from inference.wire import EntailmentScores

Call = Sequence[RowRange[PreparedItem]]


class StandingClock:
    """A clock that only tests advance."""

    def __init__(self) -> None:
        self.time = 100.0

    def monotonic(self) -> float:
        return self.time

    def now(self) -> datetime:
        raise NotImplementedError


@dataclass(frozen=True)
class ToyItem:
    """A prepared item of `rows` rows."""

    name: str
    rows: int


class AcceleratorError(RuntimeError):
    """Has the name of torch's error, by which the runner recognises a lost device."""


@dataclass
class ToyEngine:
    """Answers at once; fails as `on_call` says."""

    on_call: Callable[[Call], None] = lambda _: None
    values: dict[str, float] = field(default_factory=dict)
    calls: list[list[tuple[str, int, int]]] = field(default_factory=list)
    device: str = "cpu"
    precision: str = "float32"
    max_call_rows: int = 8
    pictures: PictureFormat | None = None

    def prepare(self, item: Item) -> ToyItem:
        raise NotImplementedError

    def compute(self, chunks: Call) -> list[tuple[RowResult, ...]]:
        self.calls.append([(chunk.item.name, chunk.start, chunk.stop) for chunk in chunks])  # type: ignore[attr-defined]
        self.on_call(chunks)
        return [tuple(self._score(chunk.item, row) for row in range(chunk.start, chunk.stop)) for chunk in chunks]

    def _score(self, prepared: object, row: int) -> EntailmentScores:
        assert isinstance(prepared, ToyItem)
        return EntailmentScores(self.values.get(prepared.name, float(row)), 0.0, 0.0)

    def warm_up(self, progress: Progress) -> None:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError


def _ignore(*_: object, **__: object) -> None:
    """A log that keeps nothing."""


class Scene:
    """Prepared items on a toy engine, and the replies."""

    def __init__(self, engine: ToyEngine, *items: tuple[str, int], max_rows: int = 8) -> None:
        self.clock = StandingClock()
        self.replies: list[runner_pb2.ItemsReply] = []
        self.cleared = 0
        self.names: set[str] = set()
        progress = DeviceProgress(self.clock)
        limits = CallLimits(max_rows, 0.0)
        self.context = ExecutionContext(
            engine, limits, CallCost(0.0), self.clear_cache, progress, self.clock, lambda *_, **__: None
        )
        self.calls = DeviceCalls(self.context, self.replies.append)
        self.items: list[PendingItem] = []
        for name, rows in items:
            self.add(name, rows)

    def add(self, name: str, rows: int, priority: int = 0, deadline: float = math.inf) -> None:
        """Add a prepared item."""
        number = len(self.items) + 1
        self.items.append(PendingItem(number, priority, number, deadline, None, prepared=ToyItem(name, rows)))
        self.calls.add(self.items[-1])

    def add_once(self, name: str, rows: int) -> None:
        """Add an item unless one of this name was added."""
        if name not in self.names:
            self.names.add(name)
            self.add(name, rows)

    def clear_cache(self) -> None:
        self.cleared += 1

    def run(self) -> list[str]:
        """Compute all items; return each one's answer kind or failure reason, in order."""
        while self.calls:
            self.calls.run_one()
        sent = [outcome for reply in self.replies for outcome in reply.outcomes]
        assert len(sent) == len({outcome.item_id for outcome in sent}), "an item has two outcomes"
        words = {outcome.item_id: outcome.failure.reason or outcome.WhichOneof("outcome") for outcome in sent}
        return [str(words[item.item_id]) for item in self.items]


@pytest.mark.parametrize("is_contended", [True, False])
def test_an_item_says_whether_another_model_waits_for_the_device(is_contended: bool) -> None:  # noqa: FBT001
    """The newest one counts."""
    scene, received = Scene(ToyEngine(), ("a", 1)), ReceivedItems()
    item = received.add(runner_pb2.Item(item_id=2, seconds_left=60.0, is_device_contended=is_contended), 0.0)
    item.prepared = ToyItem("b", 1)
    scene.calls.add(item)
    assert scene.context.gathering.is_device_contended is is_contended


def test_small_items_share_one_call_and_one_reply() -> None:
    """Four requests of one statement cost one device call."""
    engine = ToyEngine()
    scene = Scene(engine, ("a", 1), ("b", 1), ("c", 1), ("d", 1))
    assert scene.run() == ["entailment"] * 4
    assert engine.calls == [[("a", 0, 1), ("b", 0, 1), ("c", 0, 1), ("d", 0, 1)]]
    assert len(scene.replies) == 1


def test_a_large_item_is_cut_and_put_together_in_order() -> None:
    """32 statements in four calls; one answer with 32 results in the statements' order."""
    scene = Scene(ToyEngine(), ("a", 32))
    scene.run()
    [outcome] = scene.replies[-1].outcomes
    assert [float(row) for row in range(32)] == [score.yes for score in outcome.entailment.scores]
    assert outcome.computed_rows == 32
    assert [call.rows for reply in scene.replies for call in reply.calls] == [8] * 4


def test_items_are_answered_as_soon_as_they_are_complete() -> None:
    """A small item does not wait for the large one after it."""
    scene = Scene(ToyEngine(), ("small", 1), ("large", 20))
    scene.run()
    assert [[outcome.item_id for outcome in reply.outcomes] for reply in scene.replies] == [[1], [], [2]]


def test_an_item_joins_the_next_call_although_others_came_before() -> None:
    """A call takes what is prepared when the device is free: nothing is bound to an earlier group."""
    engine = ToyEngine()
    scene = Scene(engine, ("a", 1), max_rows=4)
    engine.on_call = lambda _: scene.add_once("late", 1)
    scene.add("b", 6)
    scene.run()
    assert engine.calls == [
        [("a", 0, 1), ("b", 0, 3)],
        [("b", 3, 6), ("late", 0, 1)],
    ]


def test_items_of_a_lower_number_of_priority_go_first() -> None:
    """Also between the calls of a large item that has begun."""
    engine = ToyEngine()
    scene = Scene(engine, max_rows=4)
    scene.add("bulk", 8, priority=1)
    engine.on_call = lambda _: scene.add_once("urgent", 2)
    assert scene.run() == ["entailment", "entailment"]
    assert engine.calls == [[("bulk", 0, 4)], [("urgent", 0, 2)], [("bulk", 4, 8)]]


def test_an_item_that_cannot_be_computed_in_time_costs_no_call() -> None:
    """Its deadline has not passed, but at the lowest cost that was measured it would."""
    engine = ToyEngine()
    scene = Scene(engine, ("first", 4), max_rows=4)
    engine.on_call = lambda chunks: setattr(scene.clock, "time", scene.clock.time + sum(c.rows for c in chunks))
    scene.add("hopeless", 3, deadline=106.5)
    scene.add("in time", 2, deadline=106.5)
    assert scene.run() == ["entailment", "DEADLINE_EXPIRED", "entailment"]
    assert engine.calls == [[("first", 0, 4)], [("in time", 0, 2)]]


def test_a_call_without_memory_is_halved_until_it_fits() -> None:
    """No later call is as large as one that did not fit."""

    def two_fit(chunks: Call) -> None:
        if sum(chunk.rows for chunk in chunks) > 2:
            raise MemoryError

    engine = ToyEngine(two_fit)
    scene = Scene(engine, ("a", 8), ("b", 2))
    assert scene.run() == ["entailment", "entailment"]
    assert [sum(stop - start for _, start, stop in call) for call in engine.calls] == [8, 4, 2, 2, 2, 2, 2]
    assert scene.cleared == 2
    answers = {outcome.item_id: outcome.entailment.scores for reply in scene.replies for outcome in reply.outcomes}
    assert list(range(8)) == [score.yes for score in answers[1]]


def test_out_of_memory_at_one_row_fails_that_item_alone() -> None:
    """Its neighbours are answered."""

    def b_never_fits(chunks: Call) -> None:
        if any(chunk.item.name == "b" for chunk in chunks):  # type: ignore[attr-defined]
            raise MemoryError

    scene = Scene(ToyEngine(b_never_fits), ("a", 2), ("b", 3), ("c", 1))
    assert scene.run() == ["entailment", "OUT_OF_MEMORY", "entailment"]


def test_an_engine_error_fails_one_item_only() -> None:
    """A call that raises is repeated item by item; the other items are answered."""

    def b_breaks(chunks: Call) -> None:
        if any(chunk.item.name == "b" for chunk in chunks):  # type: ignore[attr-defined]
            raise ZeroDivisionError

    scene = Scene(ToyEngine(b_breaks), ("a", 1), ("b", 20), ("c", 1))
    assert scene.run() == ["entailment", "ENGINE_FAILED", "entailment"]


def test_results_of_the_wrong_length_are_the_engine_s_failure() -> None:
    """A wrong number of results is never shifted to the wrong statement."""
    engine = ToyEngine()
    engine.compute = lambda chunks: [() for _ in chunks]  # type: ignore[method-assign]
    assert Scene(engine, ("a", 2)).run() == ["ENGINE_FAILED"]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_results_that_are_not_finite_fail_the_item(value: float) -> None:
    """NaN and infinity fail the item, and its remaining rows are not computed."""
    engine = ToyEngine(values={"bad": value})
    assert Scene(engine, ("bad", 20), ("good", 1)).run() == ["NOT_FINITE", "entailment"]
    assert [("bad", 0, 8)] in engine.calls
    assert len(engine.calls) == 2


def test_expired_and_cancelled_items_cost_no_call() -> None:
    """They are dropped before the device call."""
    engine = ToyEngine()
    scene = Scene(engine, ("expired", 1), ("cancelled", 1), ("wanted", 1))
    scene.items[0].deadline = scene.clock.time
    scene.items[1].is_cancelled = True
    assert scene.run() == ["DEADLINE_EXPIRED", "CANCELLED", "entailment"]
    assert engine.calls == [[("wanted", 0, 1)]]


def test_an_item_that_expires_between_its_calls_is_dropped() -> None:
    """The remaining rows of a large item are not computed when they would take longer than is left."""
    scene = Scene(engine := ToyEngine(), ("a", 32), ("b", 1))
    scene.items[0].deadline = 101.0
    engine.on_call = lambda _: setattr(scene.clock, "time", scene.clock.time + 0.6)
    assert scene.run() == ["DEADLINE_EXPIRED", "entailment"]
    assert engine.calls == [[("a", 0, 8)], [("b", 0, 1)]]


def test_cancelled_items_are_answered_before_the_next_call() -> None:
    """They do not wait for the other items' device call."""
    scene = Scene(ToyEngine(), ("cancelled", 1), ("good", 1))
    scene.items[0].is_cancelled = True
    assert scene.run() == ["CANCELLED", "entailment"]
    assert [[outcome.item_id for outcome in reply.outcomes] for reply in scene.replies] == [[1], [2]]


def test_a_lost_device_ends_the_runner() -> None:
    """Nothing is answered on a device whose context is broken; the process must exit."""

    def lost(_: Call) -> None:
        raise AcceleratorError

    scene = Scene(ToyEngine(lost), ("a", 1))
    with pytest.raises(DeviceLost):
        scene.run()
    assert scene.replies == []


def test_computed_seconds_are_the_sum_of_the_item_s_calls() -> None:
    """An item counts the calls that it was part of."""
    engine = ToyEngine()
    scene = Scene(engine, ("a", 1), ("b", 16))
    engine.on_call = lambda _: setattr(scene.clock, "time", scene.clock.time + 1.0)
    scene.run()
    seconds = {outcome.item_id: outcome.computed_seconds for reply in scene.replies for outcome in reply.outcomes}
    assert seconds == {1: 1.0, 2: 3.0}
    assert [call.computed_seconds for reply in scene.replies for call in reply.calls] == [1.0] * 3


def test_call_size_follows_the_measured_cost() -> None:
    """When rows turn out to be slow, calls shrink to the limit of time."""
    engine = ToyEngine()
    scene = Scene(engine, ("a", 64))
    scene.context.limits = CallLimits(8, 4.0)
    engine.on_call = lambda chunks: setattr(scene.clock, "time", scene.clock.time + 1.0 * chunks[0].rows)
    scene.run()
    sizes = [stop - start for [(_, start, stop)] in engine.calls]
    assert sizes[0] == 8
    assert sizes[-2] == 4
