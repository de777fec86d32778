"""One batch on the device, in memory: who is answered, who is not, and why."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime

import pytest

from hotslot.runner.v1 import runner_pb2
from inference.row_cost import RowCost
from inference.runner.batch import BatchRun, Bench, DeviceLost
from inference.runner.engines.base import Chunk, Item, Progress, UnitResult
from inference.runner.plan import CallLimits
from inference.runner.prepare import PendingBatch, PendingItem
from inference.runner.reporting import Pulse
from inference.wire import EntailmentScores


class StandingClock:
    """Time that goes only when a test says so."""

    def __init__(self) -> None:
        self.time = 100.0

    def monotonic(self) -> float:
        return self.time

    def now(self) -> datetime:
        raise NotImplementedError


@dataclass(frozen=True)
class Rows:
    """A prepared item of so many rows."""

    name: str
    rows: int


class NoMemory(Exception):
    """Not named like any library's: the bench is told how to know it."""


class Lost(Exception):
    """The device is gone."""


@dataclass
class ToyEngine:
    """Answers at once; fails as `on_call` says."""

    on_call: Callable[[Sequence[Chunk]], None] = lambda _: None
    values: dict[str, float] = field(default_factory=dict)
    calls: list[list[tuple[str, int, int]]] = field(default_factory=list)
    device: str = "cpu"
    precision: str = "float32"
    max_call_rows: int = 8

    def prepare(self, item: Item) -> Rows:
        raise NotImplementedError

    def compute(self, chunks: Sequence[Chunk]) -> list[tuple[UnitResult, ...]]:
        self.calls.append([(chunk.prepared.name, chunk.start, chunk.stop) for chunk in chunks])  # type: ignore[attr-defined]
        self.on_call(chunks)
        return [tuple(self._score(chunk.prepared, row) for row in range(chunk.start, chunk.stop)) for chunk in chunks]

    def _score(self, prepared: object, row: int) -> EntailmentScores:
        assert isinstance(prepared, Rows)
        return EntailmentScores(self.values.get(prepared.name, float(row)), 0.0, 0.0)

    def warm_up(self, progress: Progress) -> None:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError


class Table:
    """A bench, a batch on it, and what was said."""

    def __init__(self, engine: ToyEngine, *items: tuple[str, int], max_rows: int = 8) -> None:
        self.clock = StandingClock()
        self.replies: list[runner_pb2.BatchReply] = []
        self.cleared = 0
        self.items = [PendingItem(number, math.inf, None) for number in range(1, len(items) + 1)]
        for item, (name, rows) in zip(self.items, items, strict=True):
            item.prepared = Rows(name, rows)
        self.batch = PendingBatch(1, self.items, 0.0)
        self.batch.is_prepared.set()
        pulse = Pulse(self.clock)
        limits = CallLimits(max_rows, 0.0)
        self.bench = Bench(engine, limits, RowCost(0.0), self, pulse, self.clock, lambda *_, **__: None)

    def is_out_of_memory(self, error: BaseException) -> bool:
        return isinstance(error, NoMemory)

    def is_device_lost(self, error: BaseException) -> bool:
        return isinstance(error, Lost)

    def clear_cache(self) -> None:
        self.cleared += 1

    def run(self) -> list[str]:
        """Compute it; what came of each item, in the items' order."""
        BatchRun(self.bench, self.batch, self.replies.append).run()
        assert [reply.done for reply in self.replies] == [False] * (len(self.replies) - 1) + [True]
        told = [outcome for reply in self.replies for outcome in reply.outcomes]
        assert len(told) == len({outcome.item_id for outcome in told}), "an item was told twice"
        words = {outcome.item_id: outcome.failure.reason or outcome.WhichOneof("outcome") for outcome in told}
        return [str(words[item.item_id]) for item in self.items]


def test_small_items_share_one_call_and_one_reply() -> None:
    """Four requests of one statement cost one device call."""
    engine = ToyEngine()
    table = Table(engine, ("a", 1), ("b", 1), ("c", 1), ("d", 1))
    assert table.run() == ["entailment"] * 4
    assert engine.calls == [[("a", 0, 1), ("b", 0, 1), ("c", 0, 1), ("d", 0, 1)]]
    assert len(table.replies) == 1


def test_a_large_item_is_cut_and_put_together_in_order() -> None:
    """32 statements in four calls; one answer with 32 results in the statements' order."""
    table = Table(ToyEngine(), ("a", 32))
    table.run()
    [outcome] = table.replies[-1].outcomes
    assert [float(row) for row in range(32)] == [score.yes for score in outcome.entailment.scores]
    assert table.replies[-1].rows == 32


def test_items_are_answered_as_soon_as_they_are_whole() -> None:
    """A small item does not wait for the large one behind it."""
    table = Table(ToyEngine(), ("small", 1), ("large", 20))
    table.run()
    assert [[outcome.item_id for outcome in reply.outcomes] for reply in table.replies] == [[1], [], [2]]


def test_out_of_memory_is_split_until_it_fits() -> None:
    """What did not fit is halved until it does; no later call is as large as one that did not fit."""

    def two_fit(chunks: Sequence[Chunk]) -> None:
        if sum(chunk.rows for chunk in chunks) > 2:
            raise NoMemory

    engine = ToyEngine(two_fit)
    table = Table(engine, ("a", 8), ("b", 2))
    assert table.run() == ["entailment", "entailment"]
    assert [sum(stop - start for _, start, stop in call) for call in engine.calls] == [8, 4, 2, 2, 2, 2, 2]
    assert table.cleared == 2
    answers = {outcome.item_id: outcome.entailment.scores for reply in table.replies for outcome in reply.outcomes}
    assert list(range(8)) == [score.yes for score in answers[1]]


def test_out_of_memory_at_one_row_fails_that_item_alone() -> None:
    """Its neighbours are answered."""

    def b_never_fits(chunks: Sequence[Chunk]) -> None:
        if any(chunk.prepared.name == "b" for chunk in chunks):  # type: ignore[attr-defined]
            raise NoMemory

    table = Table(ToyEngine(b_never_fits), ("a", 2), ("b", 3), ("c", 1))
    assert table.run() == ["entailment", "OUT_OF_MEMORY", "entailment"]


def test_an_engine_s_error_hits_one_item_alone() -> None:
    """A call that raises is repeated item by item; nobody fails for his neighbour."""

    def b_breaks(chunks: Sequence[Chunk]) -> None:
        if any(chunk.prepared.name == "b" for chunk in chunks):  # type: ignore[attr-defined]
            raise ZeroDivisionError

    table = Table(ToyEngine(b_breaks), ("a", 1), ("b", 20), ("c", 1))
    assert table.run() == ["entailment", "ENGINE_FAILED", "entailment"]


def test_results_of_the_wrong_length_are_the_engine_s_failure() -> None:
    """A wrong number of results is never shifted to the wrong statement."""
    engine = ToyEngine()
    engine.compute = lambda chunks: [() for _ in chunks]  # type: ignore[method-assign]
    assert Table(engine, ("a", 2)).run() == ["ENGINE_FAILED"]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_never_answered(value: float) -> None:
    """NaN and infinities fail the item, and what is left of it is not computed."""
    engine = ToyEngine(values={"bad": value})
    assert Table(engine, ("bad", 20), ("good", 1)).run() == ["NOT_FINITE", "entailment"]
    assert [("bad", 0, 8)] in engine.calls
    assert len(engine.calls) == 2


def test_expired_and_cancelled_items_cost_no_call() -> None:
    """What nobody waits for is dropped before the device sees it."""
    engine = ToyEngine()
    table = Table(engine, ("expired", 1), ("cancelled", 1), ("wanted", 1))
    table.items[0].deadline = table.clock.time
    table.items[1].is_cancelled = True
    assert table.run() == ["DEADLINE_EXPIRED", "CANCELLED", "entailment"]
    assert engine.calls == [[("wanted", 0, 1)]]


def test_an_item_that_expires_amid_its_calls_is_dropped() -> None:
    """The rest of a large item is not computed for nobody."""
    table = Table(engine := ToyEngine(), ("a", 32), ("b", 1))
    table.items[0].deadline = 101.0
    engine.on_call = lambda _: setattr(table.clock, "time", table.clock.time + 0.6)
    assert table.run() == ["DEADLINE_EXPIRED", "entailment"]
    assert len(engine.calls) == 3


def test_items_refused_in_preparation_are_told_before_the_device_begins() -> None:
    """They do not wait for their neighbours' device call."""
    table = Table(ToyEngine(), ("refused", 1), ("good", 1))
    table.items[0].fail(("IMAGE_UNREADABLE", "no picture"), "image.content")
    assert table.run() == ["IMAGE_UNREADABLE", "entailment"]
    assert [[outcome.item_id for outcome in reply.outcomes] for reply in table.replies] == [[1], [2]]
    assert table.replies[0].outcomes[0].failure.field == "image.content"


def test_a_lost_device_ends_the_batch() -> None:
    """Nothing is answered on a device whose context is broken; the process must go."""

    def lost(_: Sequence[Chunk]) -> None:
        raise Lost

    table = Table(ToyEngine(lost), ("a", 1))
    with pytest.raises(DeviceLost):
        table.run()
    assert table.replies == []


def test_computed_seconds_are_those_of_the_item_s_calls() -> None:
    """An item is charged the calls it was part of, the batch all of them."""
    engine = ToyEngine()
    table = Table(engine, ("a", 1), ("b", 16))
    engine.on_call = lambda _: setattr(table.clock, "time", table.clock.time + 1.0)
    table.run()
    seconds = {outcome.item_id: outcome.computed_seconds for reply in table.replies for outcome in reply.outcomes}
    assert seconds == {1: 1.0, 2: 3.0}
    assert table.replies[-1].computed_seconds == 3.0


def test_call_size_follows_the_measured_cost() -> None:
    """When rows turn out slow, calls shrink to the bound of time."""
    engine = ToyEngine()
    table = Table(engine, ("a", 64))
    table.bench.limits = CallLimits(8, 4.0)
    engine.on_call = lambda chunks: setattr(table.clock, "time", table.clock.time + 1.0 * chunks[0].rows)
    table.run()
    sizes = [stop - start for [(_, start, stop)] in engine.calls]
    assert sizes[0] == 8
    assert sizes[-2] == 4
