"""One batch on a toy engine: outcomes, retries and replies, without a process."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime

import pytest

from hotslot.runner.v1 import runner_pb2
from inference.row_cost import RowCost
from inference.runner.batch import BatchRun, DeviceLost, ExecutionContext
from inference.runner.engines.base import Item, PreparedItem, Progress, RowRange, RowResult
from inference.runner.plan import CallLimits
from inference.runner.prepare import PendingBatch, PendingItem
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
    """A batch on a toy engine, and the replies."""

    def __init__(self, engine: ToyEngine, *items: tuple[str, int], max_rows: int = 8) -> None:
        self.clock = StandingClock()
        self.replies: list[runner_pb2.BatchReply] = []
        self.cleared = 0
        self.items = [PendingItem(number, math.inf, None) for number in range(1, len(items) + 1)]
        for item, (name, rows) in zip(self.items, items, strict=True):
            item.prepared = ToyItem(name, rows)
        self.batch = PendingBatch(1, self.items, 0.0)
        self.batch.is_prepared.set()
        progress = DeviceProgress(self.clock)
        limits = CallLimits(max_rows, 0.0)
        self.context = ExecutionContext(
            engine, limits, RowCost(0.0), self.clear_cache, progress, self.clock, lambda *_, **__: None
        )

    def clear_cache(self) -> None:
        self.cleared += 1

    def run(self) -> list[str]:
        """Compute the batch; return each item's answer kind or failure reason, in order."""
        BatchRun(self.context, self.batch, self.replies.append).run()
        assert [reply.done for reply in self.replies] == [False] * (len(self.replies) - 1) + [True]
        sent = [outcome for reply in self.replies for outcome in reply.outcomes]
        assert len(sent) == len({outcome.item_id for outcome in sent}), "an item has two outcomes"
        words = {outcome.item_id: outcome.failure.reason or outcome.WhichOneof("outcome") for outcome in sent}
        return [str(words[item.item_id]) for item in self.items]


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
    assert scene.replies[-1].rows == 32


def test_items_are_answered_as_soon_as_they_are_complete() -> None:
    """A small item does not wait for the large one after it."""
    scene = Scene(ToyEngine(), ("small", 1), ("large", 20))
    scene.run()
    assert [[outcome.item_id for outcome in reply.outcomes] for reply in scene.replies] == [[1], [], [2]]


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
    """The remaining rows of a large item are not computed."""
    scene = Scene(engine := ToyEngine(), ("a", 32), ("b", 1))
    scene.items[0].deadline = 101.0
    engine.on_call = lambda _: setattr(scene.clock, "time", scene.clock.time + 0.6)
    assert scene.run() == ["DEADLINE_EXPIRED", "entailment"]
    assert len(engine.calls) == 3


def test_items_refused_in_preparation_are_answered_before_the_first_call() -> None:
    """They do not wait for the other items' device call."""
    scene = Scene(ToyEngine(), ("refused", 1), ("good", 1))
    scene.items[0].fail(("IMAGE_UNREADABLE", "no picture"), "image.content")
    assert scene.run() == ["IMAGE_UNREADABLE", "entailment"]
    assert [[outcome.item_id for outcome in reply.outcomes] for reply in scene.replies] == [[1], [2]]
    assert scene.replies[0].outcomes[0].failure.field == "image.content"


def test_a_lost_device_ends_the_batch() -> None:
    """Nothing is answered on a device whose context is broken; the process must exit."""

    def lost(_: Call) -> None:
        raise AcceleratorError

    scene = Scene(ToyEngine(lost), ("a", 1))
    with pytest.raises(DeviceLost):
        scene.run()
    assert scene.replies == []


def test_computed_seconds_are_the_sum_of_the_item_s_calls() -> None:
    """An item counts the calls it was part of, the batch counts all of them."""
    engine = ToyEngine()
    scene = Scene(engine, ("a", 1), ("b", 16))
    engine.on_call = lambda _: setattr(scene.clock, "time", scene.clock.time + 1.0)
    scene.run()
    seconds = {outcome.item_id: outcome.computed_seconds for reply in scene.replies for outcome in reply.outcomes}
    assert seconds == {1: 1.0, 2: 3.0}
    assert scene.replies[-1].computed_seconds == 3.0


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
