"""The fair queue: who is next, how much is ahead."""

from collections import Counter
from collections.abc import Callable, Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.server.request import Flow, Priority
from inference.server.scheduling.fair_queue import FairQueue

INTERACTIVE, BULK = Priority.INTERACTIVE, Priority.BULK


class Backlog:
    """Flows that always have a request waiting; counts the rows that each is served."""

    def __init__(self, flows: dict[Flow, int], queue: FairQueue[tuple[Flow, int]] | None = None) -> None:
        self.queue: FairQueue[tuple[Flow, int]] = FairQueue() if queue is None else queue
        self.rows = dict(flows)
        self.served: Counter[Flow] = Counter()
        self.number = 0
        for flow in flows:
            self.put(flow)
            self.put(flow)

    def put(self, flow: Flow) -> None:
        self.number += 1
        self.queue.put((flow, self.number), self.rows[flow], flow)

    def serve(self, rows: int) -> Counter[Flow]:
        """Serve about this many rows; each request served is followed by another of its flow."""
        until = sum(self.served.values()) + rows
        while sum(self.served.values()) < until:
            item = self.queue.pop()
            assert item is not None
            self.served[item[0]] += self.rows[item[0]]
            self.put(item[0])
        return self.served


def share(served: Counter[Flow], chosen: Callable[[Flow], bool]) -> float:
    """The share of the rows that some flows were served."""
    return round(sum(rows for flow, rows in served.items() if chosen(flow)) / sum(served.values()), 2)


def drain(queue: FairQueue[str]) -> list[str]:
    """What waits, in the order of service."""
    items = []
    while (item := queue.pop()) is not None:
        items.append(item)
    return items


def test_a_flow_is_served_first_in_first_out() -> None:
    """Within a flow nothing overtakes, whatever its size."""
    queue: FairQueue[str] = FairQueue()
    for name, rows in (("a", 32), ("b", 1), ("c", 8)):
        queue.put(name, rows, Flow(BULK, "x", stream=1))
    assert drain(queue) == ["a", "b", "c"]


def test_callers_share_rows_not_requests() -> None:
    """A caller of 32 rows a request gets as many rows as one of a single row."""
    small, large = Flow(BULK, "small"), Flow(BULK, "large")
    served = Backlog({small: 1, large: 32}).serve(6400)
    assert share(served, lambda flow: flow is small) == 0.5


def test_callers_share_by_weight() -> None:
    """Weight 3 gets three times the rows of weight 1."""
    heavy, light = Flow(BULK, "heavy", weight=3.0), Flow(BULK, "light", weight=1.0)
    served = Backlog({heavy: 4, light: 4}).serve(8000)
    assert share(served, lambda flow: flow is heavy) == 0.75


def test_a_weight_that_was_changed_holds_for_what_comes_then() -> None:
    """Although the caller was known with another one, and has a request waiting with it."""
    heavy, light = Flow(BULK, "heavy", weight=1.0), Flow(BULK, "light", weight=1.0)
    backlog = Backlog({heavy: 4, light: 4})
    changed = Flow(BULK, "heavy", weight=3.0)
    backlog.rows[changed] = backlog.rows.pop(heavy)
    backlog.put(changed)
    while (item := backlog.queue.pop()) is not None and item[0] != changed:
        backlog.put(light)
    backlog.put(changed)
    backlog.put(changed)
    served = backlog.serve(8000)
    assert share(served, lambda flow: flow is changed) == pytest.approx(0.75, abs=0.01)


def test_more_streams_do_not_give_a_caller_more() -> None:
    """Ten streams of one caller share what one stream of another gets."""
    greedy = [Flow(BULK, "greedy", stream=number) for number in range(1, 11)]
    modest = Flow(BULK, "modest", stream=11)
    served = Backlog(dict.fromkeys([*greedy, modest], 8)).serve(16_000)
    assert share(served, lambda flow: flow is modest) == 0.5
    assert {share(served, lambda flow, one=one: flow is one) for one in greedy} == {0.05}  # type: ignore[misc]


def test_interactive_requests_are_sure_of_their_share_and_of_no_more() -> None:
    """While both priorities wait, each gets the configured share."""
    queue: FairQueue[tuple[Flow, int]] = FairQueue(interactive_share=0.7)
    unary, streams = Flow(INTERACTIVE, "a"), [Flow(BULK, "b", stream=number) for number in range(1, 21)]
    served = Backlog({unary: 1, **dict.fromkeys(streams, 32)}, queue).serve(30_000)
    assert share(served, lambda flow: flow is unary) == 0.7


def test_no_share_is_left_unused() -> None:
    """Bulk requests get everything while no interactive one waits."""
    stream = Flow(BULK, "b", stream=1)
    served = Backlog({stream: 32}).serve(3200)
    assert served[stream] == 3200


def test_an_interactive_request_overtakes_all_streams_that_wait() -> None:
    """It is next, however long the others have waited."""
    backlog = Backlog({Flow(BULK, "b", stream=number): 32 for number in range(1, 21)})
    backlog.serve(3200)
    unary = Flow(INTERACTIVE, "a")
    backlog.queue.put((unary, 0), 1, unary)
    assert backlog.queue.peek() == (unary, 0)


def test_an_idle_caller_saves_no_credit() -> None:
    """After a long silence a caller gets its share, not what it left to others."""
    busy, late = Flow(BULK, "busy"), Flow(BULK, "late")
    backlog = Backlog({busy: 4})
    backlog.serve(100_000)
    before = backlog.served[busy]
    backlog.rows[late] = 4
    backlog.put(late)
    backlog.put(late)
    served = backlog.serve(4000)
    assert abs(served[late] - (served[busy] - before)) <= 8


def test_new_callers_without_end_do_not_starve_one_that_waits() -> None:
    """A connection for each request gives nobody a way past a caller that keeps its connection."""
    queue: FairQueue[str] = FairQueue()
    for number in range(3):
        queue.put(f"old{number}", 4, Flow(INTERACTIVE, "old"))
    order = []
    for number in range(20):
        queue.put(f"new{number}", 4, Flow(INTERACTIVE, f"new{number}"))
        order.append(queue.pop())
    assert [name for name in order if name and name.startswith("old")] == ["old0", "old1", "old2"]


def test_a_removed_request_is_not_served_and_not_charged() -> None:
    """A caller that cancels keeps its place for what it sends then."""
    queue: FairQueue[str] = FairQueue()
    for name in ("a", "b"):
        queue.put(name, 32, Flow(BULK, "x"))
    queue.put("c", 1, Flow(BULK, "y"))
    assert queue.remove("a")
    assert not queue.remove("a")
    assert (len(queue), queue.rows) == (2, 33)
    assert queue.remove("b")
    queue.put("d", 1, Flow(BULK, "x"))
    assert drain(queue) == ["c", "d"]
    assert (len(queue), queue.rows) == (0, 0)


def test_a_charge_moves_a_flow_back() -> None:
    """Rows that were larger than expected are paid later."""
    queue: FairQueue[str] = FairQueue()
    first, second = Flow(BULK, "a", stream=1), Flow(BULK, "a", stream=2)
    for number in range(3):
        queue.put(f"first{number}", 1, first)
        queue.put(f"second{number}", 1, second)
    assert queue.pop() == "first0"
    queue.charge(first, 2)
    assert [queue.pop() for _ in range(5)] == ["second0", "second1", "second2", "first1", "first2"]


def test_rows_before_counts_what_is_owed_to_others_and_no_more() -> None:
    """Another caller's backlog, and one request more, count up to the share that it has while the request waits."""
    queue: FairQueue[str] = FairQueue()
    for number in range(10):
        queue.put(f"x{number}", 32, Flow(BULK, "x", stream=1))
    queue.pop()
    assert queue.rows_before(Flow(BULK, "x", stream=1), 4) == 288.0
    assert queue.rows_before(Flow(BULK, "x", stream=2), 4) == 0.0
    assert queue.rows_before(Flow(BULK, "y"), 4) == 0.0
    assert queue.rows_before(Flow(INTERACTIVE, "z"), 4) == 0.0
    assert queue.rows_before(Flow(BULK, "y"), 100) == 168.0
    assert queue.rows_before(Flow(BULK, "y", weight=4.0), 100) == 18.0
    assert queue.rows_before(Flow(BULK, "y"), 1000) == 320.0


def test_many_callers_that_come_once_leave_nothing_behind() -> None:
    """The queue's memory does not grow with the callers that were there."""
    queue: FairQueue[int] = FairQueue()
    for number in range(5000):
        queue.put(number, 1, Flow(INTERACTIVE, f"caller{number}"))
        assert queue.pop() == number
    children = queue._root.children[INTERACTIVE].children  # noqa: SLF001
    assert len(children) < 200


_flows = st.builds(
    Flow,
    st.sampled_from(Priority),
    st.sampled_from("abc"),
    weight=st.just(1.0),
    stream=st.integers(0, 2),
)
_steps = st.lists(
    st.one_of(
        st.tuples(st.just("put"), _flows, st.integers(1, 32)),
        st.tuples(st.just("pop"), st.none(), st.just(0)),
        st.tuples(st.just("remove"), st.none(), st.integers(0, 50)),
        st.tuples(st.just("charge"), _flows, st.integers(-4, 32)),
    ),
    max_size=80,
)


@given(_steps)
@settings(max_examples=150, deadline=None, derandomize=True)
def test_nothing_is_lost_or_served_twice(steps: Iterable[tuple[str, Flow | None, int]]) -> None:
    """Whatever is put is popped once, in order within its flow, unless removed; counts agree at each step."""
    queue: FairQueue[int] = FairQueue()
    waiting: dict[int, tuple[Flow, int]] = {}
    for number, (step, flow, value) in enumerate(steps):
        if step == "put" and flow is not None:
            queue.put(number, value, flow)
            waiting[number] = (flow, value)
        elif step == "charge" and flow is not None:
            queue.charge(flow, value)
        elif step == "remove":
            chosen = sorted(waiting)[value % len(waiting)] if waiting else -1
            assert queue.remove(chosen) == (waiting.pop(chosen, None) is not None)
        elif step == "pop":
            expected = queue.peek()
            item = queue.pop()
            assert item == expected
            assert (item is None) == (not waiting)
            if item is not None:
                served, _ = waiting.pop(item)
                assert [other for other, (its, _) in waiting.items() if its == served and other < item] == []
        assert (len(queue), queue.rows) == (len(waiting), sum(rows for _, rows in waiting.values()))
    assert queue.take_all() == list(waiting)
    assert (len(queue), queue.rows, queue.pop()) == (0, 0, None)


@given(
    st.lists(st.tuples(st.sampled_from("abcd"), st.integers(1, 32), st.sampled_from([0.5, 1.0, 3.0])), min_size=2),
    st.integers(50, 400),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_callers_that_always_wait_are_never_further_apart_than_a_request(
    rows: list[tuple[str, int, float]], services: int
) -> None:
    """Rows ÷ weight of any two differ by at most their two largest requests."""
    flows = {Flow(BULK, name, weight): size for name, size, weight in {row[0]: row for row in rows}.values()}
    backlog = Backlog(flows)
    for _ in range(services):
        backlog.serve(1)
        tags = {flow: backlog.served[flow] / flow.weight for flow in flows}
        for one, its_rows in flows.items():
            for other, other_rows in flows.items():
                bound = its_rows / one.weight + other_rows / other.weight
                assert abs(tags[one] - tags[other]) <= bound + 1e-6


@given(_steps, _flows, st.integers(1, 32))
@settings(max_examples=150, deadline=None, derandomize=True)
def test_rows_before_is_what_is_served_before(steps: list[tuple[str, Flow | None, int]], flow: Flow, rows: int) -> None:
    """The estimate for a new request is as near as the sizes of requests allow, if none comes after it."""
    queue: FairQueue[int] = FairQueue()
    sizes: dict[int, tuple[Flow, int]] = {}
    for number, (step, its, value) in enumerate(steps):
        if step == "put" and its is not None:
            queue.put(number, value, its)
            sizes[number] = its, value
        elif step == "pop":
            queue.pop()
    expected = queue.rows_before(flow, rows)
    waiting = {its for number, (its, _) in sizes.items() if number in queue}
    queue.put(-1, rows, flow)
    actual = 0
    while (item := queue.pop()) != -1:
        assert item is not None
        actual += sizes[item][1]
    assert -32 * (len(waiting) + 1) <= expected - actual <= 32 * (2 * len(waiting) + 1)


def test_rows_before_counts_requests_that_come_later_and_go_first() -> None:
    """A flow that is ahead of the others waits for one further request of each."""
    queue: FairQueue[tuple[Flow, int]] = FairQueue()
    flows = [Flow(INTERACTIVE, f"caller{number}") for number in range(8)]
    for turn in range(3):
        for flow in flows:
            queue.put((flow, turn), 8, flow)
        if turn == 0:
            queue.pop()
    mine = (flows[-1], 3)
    expected = queue.rows_before(flows[-1], 8)
    queue.put(mine, 8, flows[-1])
    actual = 0
    while (item := queue.pop()) != mine:
        assert item is not None
        actual += 8
        if item[0] is not flows[-1]:
            queue.put((item[0], item[1] + 10), 8, item[0])
    assert actual <= expected <= actual + 64


@pytest.mark.parametrize("waiting", [1, 3])
def test_with_many_callers_the_estimate_looks_at_their_sums(waiting: int) -> None:
    """A thousand callers with a few requests each: not less than what is served before, and not twice as much."""
    queue: FairQueue[tuple[int, int]] = FairQueue()
    for turn in range(waiting):
        for number in range(1000):
            queue.put((number, turn), 4, Flow(INTERACTIVE, f"caller{number}"))
    for _ in range(500):
        queue.pop()
    mine = Flow(INTERACTIVE, "caller700")
    expected = queue.rows_before(mine, 4)
    queue.put((-1, 0), 4, mine)
    actual = 0
    while queue.pop() != (-1, 0):
        actual += 4
    assert actual <= expected <= 2 * actual + 4000
