"""Fairness, played: interactive calls beside saturating streams, callers with weights and quotas."""

import pytest

from inference.server.request import Flow, Priority
from inference.server.scheduling.fair_queue import Caller, CallerRules, Quota
from tests.server.scheduling.simulation import Request, Simulation, Stream

UNARY = Flow(Priority.INTERACTIVE, "unary")


def is_unary(request: Request) -> bool:
    """Whether a request was no stream item."""
    return request.stream is None


@pytest.mark.fault("L2")
@pytest.mark.parametrize("rows", [1, 32])
@pytest.mark.parametrize("count", [1, 10, 20])
@pytest.mark.parametrize(
    ("row_seconds", "overhead_seconds", "unary_rate", "seconds"),
    [(0.005, 0.0, 20.0, 20.0), (0.25, 0.0, 0.4, 120.0), (0.002, 0.02, 10.0, 15.0)],
)
def test_a_unary_call_waits_for_the_running_device_call_only(
    count: int, rows: int, row_seconds: float, overhead_seconds: float, unary_rate: float, seconds: float
) -> None:
    """Beside 1, 10 and 20 streams: p99 within 3 × (its own time + a device call), nothing refused, the device busy."""
    model = Simulation(row_seconds, overhead_seconds=overhead_seconds)
    for number in range(1, count + 1):
        Stream(model, number, rows)
    model.open_loop(UNARY, unary_rate, 1, 30.0)
    tally = model.run(seconds)
    device_call = overhead_seconds + row_seconds * model.call_rows
    own = overhead_seconds + row_seconds
    assert tally.quantile(0.99, is_unary) <= 3 * (own + device_call)
    assert {one.outcome for one in tally.requests} == {"OK", ""}
    assert tally.busy_seconds >= 0.97 * (seconds - device_call)


@pytest.mark.parametrize(("prepare_seconds", "noise"), [(0.0, 0.0), (0.002, 0.0), (0.0, 0.3)])
def test_unary_calls_beside_a_batch_share_no_device_call_with_it(prepare_seconds: float, noise: float) -> None:
    """As beside `hotslot batch`, where a call costs no overhead: sooner than a full call ends, and no row is lost."""
    model = Simulation(0.0025, max_call_rows=8, prepare_seconds=prepare_seconds, noise=noise)
    for number in (1, 2):
        Stream(model, number, 1)
    for rows, rate in ((1, 12.0), (8, 4.0)):
        model.open_loop(UNARY, rate, rows, 10.0, jitter=1.0)
    tally = model.run(60.0)
    own_time = {rows: (rows + model.max_call_rows) * model.row_seconds for rows in (1, 8)}  # and one device call
    factors = sorted(one.seconds / own_time[one.rows] for one in tally.requests if is_unary(one) and one.outcome)
    assert factors[len(factors) // 2] <= 1
    assert factors[int(0.99 * len(factors))] <= 2.5
    assert tally.computed_rows >= 0.99 * 60.0 / model.row_seconds


def test_a_unary_call_beside_another_model_waits_for_few_of_its_calls() -> None:
    """Every call waits for one of the other model; one row is not passed over for full calls, which look cheap then."""
    other, own_row = 0.16, 0.005
    model = Simulation(own_row, max_call_rows=8, prepare_seconds=0.001)
    model.other_call_seconds = other
    sizes = iter(lambda: model.random.choice((1, 1, 1, 8)), 0)
    for number in range(4):
        flow = Flow(Priority.INTERACTIVE, f"unary {number}")
        model.closed_loop(flow, sizes, 10.0, pause=lambda: model.random.uniform(0.2, 0.3))
    tally = model.run(120.0)
    factors = sorted(one.seconds / (one.rows * own_row + other) for one in tally.requests if one.outcome)
    assert {one.outcome for one in tally.requests} == {"OK", ""}
    assert factors[int(0.99 * len(factors))] <= 3.3
    assert factors[-1] <= 3.6


def test_streams_of_small_items_beside_streams_of_large_ones_get_the_same_rows() -> None:
    """Between the streams of a caller rows are shared, not messages."""
    model = Simulation(0.005)
    small, large = Stream(model, 1, 8), Stream(model, 2, 32)
    tally = model.run(30.0)
    rows = [tally.rows_of(lambda one, stream=stream: one.stream is stream) for stream in (small, large)]  # type: ignore[misc]
    assert min(rows) / max(rows) > 0.8


@pytest.mark.parametrize("rows", [1, 8])
def test_ten_streams_of_a_caller_get_the_same_rows_over_ten_seconds(rows: int) -> None:
    """One whose items were all answered reads at once, but no more than its share."""
    model = Simulation(0.005, max_call_rows=8)
    streams = [Stream(model, number, rows) for number in range(10)]
    tally = model.run(12.0)
    found = [tally.rows_of(lambda one, stream=stream: one.stream is stream and one.ended > 2.0) for stream in streams]  # type: ignore[misc]
    assert sum(found) > 1900
    assert min(found) / max(found) > 0.7


def test_many_streams_of_one_caller_get_no_more_than_one_of_another() -> None:
    """Callers share first, then their streams."""
    model = Simulation(0.005)
    for number in range(1, 11):
        Stream(model, number, 8, Caller(CallerRules("greedy")))
    Stream(model, 11, 8, Caller(CallerRules("modest")))
    tally = model.run(30.0)
    rows = [tally.rows_of(lambda one, name=name: one.flow.caller == name) for name in ("greedy", "modest")]  # type: ignore[misc]
    assert rows[1] / rows[0] > 0.9


@pytest.mark.parametrize("rows", [1, 8, 32])
def test_a_caller_that_comes_later_gets_its_share_and_no_more(rows: int) -> None:
    """Nothing is owed for the time before, whether the others read in their turns or one item after the other."""
    model = Simulation(0.005, max_call_rows=8)
    early, late = Caller(CallerRules("early")), Caller(CallerRules("late"))
    for number in range(10):
        Stream(model, number, rows, early)
    Stream(model, 10, rows, late, begin=15.0)
    tally = model.run(30.0)
    found = tally.rows_of(lambda one: one.flow.caller == "late") / tally.rows_of(lambda one: one.arrived > 15.0)
    assert found == pytest.approx(0.5, abs=0.1)


def test_weights_share_the_device() -> None:
    """A caller of weight 3 gets three times the rows of one of weight 1."""
    model = Simulation(0.005)
    Stream(model, 1, 16, Caller(CallerRules("heavy", weight=3.0)))
    Stream(model, 2, 16, Caller(CallerRules("light")))
    tally = model.run(30.0)
    rows = [tally.rows_of(lambda one, name=name: one.flow.caller == name) for name in ("heavy", "light")]  # type: ignore[misc]
    assert rows[0] / rows[1] == pytest.approx(3.0, rel=0.1)


def test_unary_calls_in_overload_leave_streams_their_share() -> None:
    """Interactive calls go first, and take no more than their share while streams wait."""
    model = Simulation(0.005)
    Stream(model, 1, 8)
    model.open_loop(UNARY, 400.0, 1, 5.0)
    tally = model.run(30.0)
    assert tally.rows_of(is_unary) / 30.0 / 200.0 == pytest.approx(0.5, abs=0.06)


def test_a_quota_holds_streams_and_unary_calls() -> None:
    """Twenty rows a second each: the stream waits, the unary caller is refused and told when to come back."""
    model = Simulation(0.005)
    batch = Caller(CallerRules("batch"), Quota(20.0, 0.0))
    model.callers["shop"] = shop = Caller(CallerRules("shop"), Quota(20.0, 0.0))
    Stream(model, 1, 8, batch)
    model.open_loop(shop.unary_source.flow, 50.0, 1, 5.0)
    tally = model.run(30.0)
    for name in ("batch", "shop"):
        assert tally.rows_of(lambda one, name=name: one.flow.caller == name) / 30.0 == pytest.approx(20.0, rel=0.15)  # type: ignore[misc]
    assert tally.count("QUOTA_EXCEEDED", lambda one: one.stream is not None) == 0
    refused = [one for one in tally.requests if one.outcome == "QUOTA_EXCEEDED"]
    assert len(refused) > 600
    assert all(one.retry_seconds is not None and 0 < one.retry_seconds <= 0.2 for one in refused)
