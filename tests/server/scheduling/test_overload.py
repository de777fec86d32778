"""Overload, played: offered more than it can, a model delivers all that it can, wastes nothing, and stays short."""

from collections import Counter

import pytest

from inference.server.request import Flow, Priority
from inference.server.scheduling.admission import OverloadRule
from tests.server.scheduling.simulation import Request, Simulation, Stream, Tally

UNARY = Flow(Priority.INTERACTIVE, "caller")


def play(model: Simulation, seconds: float, *, further: float = 3.0) -> Tally:
    """Play, and a while longer: what is computed at the end of the time must be known to be answered."""
    return model.run(seconds + further)


@pytest.mark.fault("L1")
@pytest.mark.parametrize("factor", [1.25, 2.0, 4.0])
@pytest.mark.parametrize(
    ("rate", "rows", "deadline"),
    [
        (4.0, 1, 10.0),
        (4.0, 1, 1.0),
        (4.0, 8, 10.0),
        (200.0, 1, 10.0),
        (200.0, 1, 1.0),
        (200.0, 8, 10.0),
        (200.0, 8, 1.0),
    ],
)
def test_goodput_does_not_fall_in_overload(rate: float, rows: int, deadline: float, factor: float) -> None:
    """At 1.25, 2 and 4 times its capacity a model delivers 95 % of it in every window, and computes nothing in vain."""
    seconds, window = (75.0, 15.0) if rate == 4.0 else (12.0, 5.0)
    begin = 15.0 if rows / rate > 1 else 2.0
    model = Simulation(1 / rate)
    model.open_loop(UNARY, factor * rate / rows, rows, deadline)
    tally = play(model, seconds)
    assert min(tally.delivered(window, begin, seconds)) / rate >= 0.95
    assert tally.wasted_rows / tally.computed_rows <= 0.03
    assert {one.outcome for one in tally.requests} <= {"OK", "QUEUE_FULL", ""}


@pytest.mark.fault("L1")
@pytest.mark.parametrize("rows", [1, 8])
def test_goodput_holds_when_requests_come_at_random(rows: int) -> None:
    """As a Poisson process at twice the capacity."""
    model = Simulation(0.005)
    model.open_loop(UNARY, 400.0 / rows, rows, 1.0, jitter=1.0)
    tally = play(model, 12.0)
    assert min(tally.delivered(5.0, 2.0, 12.0)) / 200.0 >= 0.95
    assert tally.wasted_rows / tally.computed_rows <= 0.03


@pytest.mark.fault("L1")
@pytest.mark.parametrize("noise", [0.1, 0.3])
def test_goodput_holds_with_a_device_of_varying_speed(noise: float) -> None:
    """Calls that take up to a third longer or shorter, and preparation of 20 ms a request."""
    model = Simulation(0.005, overhead_seconds=0.02, noise=noise, prepare_seconds=0.02)
    model.open_loop(UNARY, 400.0, 1, 1.0)
    tally = play(model, 12.0)
    capacity = 64 / (0.02 + 64 * 0.005)
    assert tally.computed_rows / tally.busy_seconds >= 0.97 * capacity, "calls are as large as they may be"
    assert tally.busy_seconds >= 0.95 * 15.0
    assert tally.wasted_rows / tally.computed_rows <= 0.03


@pytest.mark.fault("L1")
@pytest.mark.parametrize("rows", [1, 8])
def test_goodput_holds_when_answers_come_later_than_the_device_computes_them(rows: int) -> None:
    """Decoding, frames and a busy machine take 0.17 s of a deadline of 1 s: what is admitted is answered in time."""
    model = Simulation(0.005, max_call_rows=8, noise=0.2, prepare_seconds=0.02, reply_seconds=0.15)
    model.open_loop(UNARY, 400.0 / rows, rows, 1.0)
    tally = play(model, 12.0)
    assert min(tally.delivered(5.0, 2.0, 12.0)) / 200.0 >= 0.95
    assert tally.wasted_rows / tally.computed_rows <= 0.03


@pytest.mark.fault("L1")
def test_what_no_server_could_answer_in_time_is_refused_at_once() -> None:
    """Eight rows of 0.25 s with a deadline of 1 s: nothing of it is computed."""
    model = Simulation(0.25)
    model.open_loop(UNARY, 1.0, 8, 1.0)
    tally = model.run(30.0)
    assert tally.count("DEADLINE_TOO_SHORT") == len(tally.requests)
    assert tally.computed_rows <= 8, "self-tests, whether it still costs as much"


@pytest.mark.parametrize("factor", [1.25, 2.0, 4.0])
def test_the_queue_is_short_in_lasting_overload(factor: float) -> None:
    """With deadlines of ten seconds, callers wait for a second at most once the overload is noticed."""
    model = Simulation(0.005)
    model.open_loop(UNARY, 200 * factor, 1, 10.0)
    tally = model.run(19.0)

    def is_late(request: Request) -> bool:
        return 12.0 < request.arrived < 17.0 or request.arrived > 25.0

    assert tally.quantile(0.5, is_late) < 1.0
    assert tally.quantile(0.99, is_late) < 1.5


def test_overload_ends_with_the_load() -> None:
    """A second after the load has fallen to what is served, everything is admitted."""
    model = Simulation(0.005)
    model.open_loop(UNARY, 400, 1, 10.0, until=10.0)
    model.run(10.0)
    assert model.admission.overload.is_overloaded
    model.open_loop(UNARY, 150, 1, 10.0)
    model.run(10.0)
    assert not model.admission.overload.is_overloaded
    assert model.tally.count("QUEUE_FULL", lambda request: request.arrived > 15.0) == 0


@pytest.mark.parametrize("rate", [4.0, 200.0])
def test_callers_that_wait_for_their_answers_are_never_refused(rate: float) -> None:
    """Sixty-four callers, each with one request at a time, fill the queue and nothing more."""
    model = Simulation(1 / rate)
    for number in range(64):
        model.closed_loop(Flow(Priority.INTERACTIVE, f"caller{number}"), 1, 60.0)
    tally = model.run(30.0)
    assert (tally.count("QUEUE_FULL"), model.overload_seconds) == (0, 0.0)
    assert tally.busy_seconds >= 28.0


@pytest.mark.parametrize("rate", [4.0, 50.0])
def test_patient_callers_are_not_refused_in_the_overload_of_another(rate: float) -> None:
    """Refused, their repeated attempts would look like demand, and the overload would never end."""
    model = Simulation(1 / rate)
    for number in range(64):
        model.closed_loop(Flow(Priority.INTERACTIVE, f"caller{number}"), 1, 60.0)
    model.open_loop(Flow(Priority.INTERACTIVE, "flood"), 5 * rate, 1, 10.0, until=20.0)
    tally = model.run(150.0)
    answers = Counter(one.flow.caller for one in tally.requests if one.outcome == "OK" and one.arrived > 30.0)
    assert tally.count("QUEUE_FULL", lambda request: request.flow.caller != "flood") == 0
    assert not model.admission.overload.is_overloaded
    assert max(answers.values()) - min(answers[f"caller{number}"] for number in range(64)) <= 2


def test_one_caller_with_many_requests_is_let_in_again_after_the_overload_of_another() -> None:
    """Its repeated attempts look like demand; a probe ends that."""
    model = Simulation(0.02)
    for _ in range(64):
        model.closed_loop(UNARY, 1, 60.0)
    model.open_loop(Flow(Priority.INTERACTIVE, "flood"), 100.0, 1, 10.0, until=20.0)
    tally = model.run(90.0)
    assert tally.count("QUEUE_FULL", lambda request: request.arrived > 70.0) == 0


def test_a_caller_with_little_to_do_is_not_refused_in_the_overload_of_another() -> None:
    """It waits for its own share, which is short."""
    model = Simulation(0.005)
    model.open_loop(Flow(Priority.INTERACTIVE, "flood"), 800.0, 1, 10.0)
    modest = Flow(Priority.INTERACTIVE, "modest")
    model.open_loop(modest, 5.0, 1, 10.0)
    tally = model.run(20.0)
    assert tally.count("QUEUE_FULL", lambda request: request.flow is modest) == 0
    assert tally.quantile(0.99, lambda request: request.flow is modest) < 1.0


@pytest.mark.parametrize("known", [0.0, 0.01, 100.0], ids=["unknown", "hundred_times_less", "hundred_times_more"])
@pytest.mark.parametrize(
    ("rate", "rows", "deadline"), [(4.0, 1, 1.0), (4.0, 1, 10.0), (200.0, 8, 1.0), (200.0, 1, 10.0)]
)
def test_a_wrong_cost_is_corrected_within_seconds(rate: float, rows: int, deadline: float, known: float) -> None:
    """A cost that is unknown, or wrong by a factor of a hundred, neither locks callers out nor fills the queue."""
    model = Simulation(1 / rate, known_row_seconds=known / rate)
    model.open_loop(UNARY, 2 * rate / rows, rows, deadline)
    tally = play(model, 15.0)
    assert min(tally.delivered(5.0, 5.0, 15.0)) / rate >= 0.95
    assert tally.wasted_rows <= 2 * rate


def test_items_that_are_all_close_to_their_deadlines_are_computed_in_full_calls() -> None:
    """Stream items are not refused: where they wait for as long as they may, most are computed in time."""
    model = Simulation(0.005, overhead_seconds=0.05)
    for number in range(1, 9):
        Stream(model, number, 1, seconds=1.2)
    tally = model.run(20.0)
    capacity = 64 / (0.05 + 64 * 0.005)
    assert tally.computed_rows / 20.0 >= 0.85 * capacity
    assert tally.wasted_rows / tally.computed_rows <= 0.03


def test_growth_for_one_window_is_no_overload() -> None:
    """A burst fills the queue; only lasting demand above what is served is overload."""
    rule = OverloadRule(0.0)
    changes = []
    for second in range(1, 7):
        rule.on_offered(300 if second == 2 else 100)
        rule.on_served(100)
        changes.append(rule.update(0.005, float(second)))
    assert (changes, rule.is_overloaded) == ([False] * 6, False)


def test_an_idle_device_is_never_overloaded() -> None:
    """Whatever was refused or cancelled: if the device had nothing to do, there was room."""
    rule = OverloadRule(0.0)
    for second in range(1, 7):
        rule.on_offered(300)
        rule.on_served(100)
        rule.on_idle()
        rule.update(0.005, float(second))
    assert not rule.is_overloaded
