"""Circuit breakers trip, wait, probe and close; a clock that jumps changes nothing."""

import threading
from dataclasses import replace
from datetime import timedelta

import pytest

from tests.updater.core.world import World
from tests.updater.simulators import Quality
from updater.core.breaker import (
    Breaker,
    BreakerName,
    BreakerRules,
    BreakerState,
    WorkResult,
    advance,
    assume_safe,
    begin,
    compute_open_seconds,
    report,
    resume,
    trip,
)
from updater.core.effects import EffectFailure, FailureKind
from updater.core.facts import CommandKind
from updater.core.record import Stage
from updater.store.record_json import RecordUnreadable, from_json, to_json

RULES = BreakerRules(trip_after=3, first_seconds=60.0, cap_seconds=600.0, probe_seconds=30.0)
CLOSED = Breaker(BreakerName.ACTIVATION)


def opened(openings: int = 1) -> Breaker:
    """A breaker after so many openings."""
    breaker = CLOSED
    for _ in range(openings):
        breaker = replace(trip(breaker, RULES, 0.5, reason="test"), state=BreakerState.HALF_OPEN)
    return replace(breaker, state=BreakerState.OPEN)


@pytest.mark.fault("B1")
def test_a_breaker_trips_after_exactly_so_many_consecutive_failures() -> None:
    """A success between them resets the count."""
    breaker = CLOSED
    for result in (
        WorkResult.FAILURE,
        WorkResult.FAILURE,
        WorkResult.SUCCESS,
        WorkResult.FAILURE,
        WorkResult.FAILURE,
    ):
        breaker = report(breaker, result, RULES, 0.5)
        assert BreakerState.CLOSED is breaker.state
    assert BreakerState.OPEN is report(breaker, WorkResult.FAILURE, RULES, 0.5).state


@pytest.mark.fault("B2")
def test_a_half_open_breaker_allows_one_probe_of_fifty() -> None:
    """The others are refused while it is out."""
    breaker, lock, begun, refused = replace(opened(), left_seconds=0.0), threading.Lock(), [], []

    def try_it() -> None:
        nonlocal breaker
        with lock:
            try:
                breaker = begin(breaker, RULES)
                begun.append(1)
            except RuntimeError:
                refused.append(1)

    threads = [threading.Thread(target=try_it) for _ in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert (len(begun), len(refused)) == (1, 49)


@pytest.mark.fault("B3")
def test_a_probe_without_a_result_is_a_failure() -> None:
    """After its time limit: open for longer; killed with its process: open again."""
    probing = begin(replace(opened(), left_seconds=0.0), RULES)

    late = advance(probing, 31.0, RULES, 0.5)
    assert (late.state, late.openings, late.left_seconds) == (BreakerState.OPEN, 2, 120.0)

    cut_off = resume(probing, 1e9, RULES, 0.5)
    assert (cut_off.state, cut_off.openings, cut_off.left_seconds) == (BreakerState.OPEN, 1, 60.0)


@pytest.mark.fault("B5")
def test_neutral_results_neither_trip_nor_close() -> None:
    """Nor do they use up the probe."""
    breaker = report(report(CLOSED, WorkResult.FAILURE, RULES, 0.5), WorkResult.FAILURE, RULES, 0.5)
    for _ in range(10):
        breaker = report(breaker, WorkResult.NEUTRAL, RULES, 0.5)
    assert (breaker.state, breaker.failures) == (BreakerState.CLOSED, 2)

    probing = begin(replace(opened(), left_seconds=0.0), RULES)
    assert report(probing, WorkResult.NEUTRAL, RULES, 0.5).may_begin


@pytest.mark.fault("B6")
def test_the_open_time_doubles_up_to_its_cap_within_its_jitter() -> None:
    """Plus or minus a fifth."""
    plain = [compute_open_seconds(number, RULES, 0.5) for number in range(1, 7)]
    assert plain == [60.0, 120.0, 240.0, 480.0, 600.0, 600.0]
    for number in (1, 2, 60):
        middle = compute_open_seconds(number, RULES, 0.5)
        assert pytest.approx(0.8 * middle) == compute_open_seconds(number, RULES, 0.0)
        assert pytest.approx(1.2 * middle) == compute_open_seconds(number, RULES, 1.0)


def test_a_day_without_failures_resets_the_openings() -> None:
    """The next opening is a first one."""
    closed = report(begin(replace(opened(3), left_seconds=0.0), RULES), WorkResult.SUCCESS, RULES, 0.5)
    assert (closed.state, closed.openings) == (BreakerState.CLOSED, 3)
    assert advance(closed, RULES.calm_seconds, RULES, 0.5).openings == 0


@pytest.mark.parametrize(
    ("away", "left"), [(-1e9, 60.0), (0.0, 60.0), (20.0, 40.0), (1e9, 0.0)], ids=["back", "none", "some", "forward"]
)
def test_the_wall_clock_is_clamped_at_a_start(away: float, left: float) -> None:
    """Set back, it waits for the whole rest, never longer; set forward, a probe may start."""
    assert pytest.approx(left) == resume(opened(), away, RULES, 0.5).left_seconds


def test_an_open_time_on_disk_beyond_the_cap_is_cut_to_the_cap() -> None:
    """A corrupt number does not lock the breaker."""
    breaker = replace(opened(), left_seconds=1e12)
    assert pytest.approx(720.0) == resume(breaker, 0.0, RULES, 0.5).left_seconds


@pytest.mark.fault("B7")
def test_an_unreadable_breaker_is_open_but_closed_for_the_hub(world: World) -> None:
    """The rest of the record is used."""
    row = to_json(world.record)
    row["hub"] = row["activation"] = {"state": "AJAR"}
    with pytest.raises(RecordUnreadable):
        from_json(row)

    record = from_json(row, world.rules)
    assert (record.hub.state, record.activation.state) == (BreakerState.CLOSED, BreakerState.OPEN)
    assert world.record.committed == record.committed
    assert BreakerState.OPEN is assume_safe(BreakerName.DEVICE, RULES).state


@pytest.mark.fault("B8")
def test_an_open_breaker_blocks_no_rollback(world: World) -> None:
    """Nor what serves."""
    world.install("1.1.0")
    for minor in (2, 3, 4):
        world.publish(f"1.{minor}.0", Quality(right=2))
        world.settle()
    assert BreakerState.OPEN is world.record.activation.state

    world.command(CommandKind.ROLLBACK)
    world.settle()
    assert world.serving == world.committed == "1.0.0"
    assert world.server.lost == 0


def fail_three_updates(world: World) -> None:
    """So many open the activation breaker."""
    for minor in (1, 2, 3):
        world.publish(f"1.{minor}.0", Quality(right=2))
        world.settle()


@pytest.mark.fault("B8")
def test_an_open_breaker_delays_new_updates_until_one_probe(world: World) -> None:
    """After its open time one update is the probe; committed, it closes the breaker."""
    fail_three_updates(world)
    world.publish("1.4.0")
    world.settle()
    assert world.committed == "1.0.0"

    world.passes(2 * 3600.0)
    world.settle()
    assert world.committed == "1.4.0"
    assert BreakerState.CLOSED is world.record.activation.state


@pytest.mark.fault("B8")
def test_a_probe_without_a_verdict_gives_its_turn_to_the_next_update(world: World) -> None:
    """Neither a success nor a failure: the next one need not wait until the probe's time is over."""
    fail_three_updates(world)
    world.publish("1.4.0")
    world.passes(2 * 3600.0)
    world.converter.faults = [EffectFailure(FailureKind.TRANSIENT, "CONVERT_FAILED")] * world.rules.max_attempts
    world.settle()
    assert (world.stage, world.record.activation.may_begin) == (Stage.HELD, True)

    world.publish("1.5.0")
    world.settle()
    assert world.committed == "1.5.0"
    assert BreakerState.CLOSED is world.record.activation.state


@pytest.mark.fault("N2")
def test_a_revision_that_an_operator_requested_is_not_forgotten_while_the_hub_is_away(world: World) -> None:
    """It is installed when the hub answers again."""
    world.hub.fault = EffectFailure(FailureKind.TRANSIENT, "HUB_UNREACHABLE")
    world.publish("1.1.0")
    world.publish("1.2.0")
    assert world.command(CommandKind.UPDATE, "1.1.0") is None
    for _ in range(40):
        world.tick()
    assert world.record.requested_revision == "1.1.0"

    world.hub.fault = None
    world.tick_until(Stage.OBSERVING)
    assert world.record.under_way.revision == "1.1.0"
    assert world.record.requested_revision == ""


def test_more_than_three_failed_updates_in_an_hour_open_the_breaker(world: World) -> None:
    """Even with a good one between them."""
    for minor in range(1, 6):
        good = Quality() if minor == 3 else Quality(right=2)
        world.publish(f"1.{minor}.0", good)
        world.settle()
    assert BreakerState.OPEN is world.record.activation.state
    assert "within an hour" in world.record.activation.reason


@pytest.mark.fault("N2")
def test_a_hub_that_keeps_failing_is_polled_less_and_less(world: World) -> None:
    """The breaker opens; serving continues; when the hub is back the update follows."""
    world.hub.fault = EffectFailure(FailureKind.TRANSIENT, "HUB_UNREACHABLE")
    for _ in range(400):
        world.tick()
    assert BreakerState.OPEN is world.record.hub.state
    assert world.serving == "1.0.0"

    world.hub.fault = None
    world.publish("1.1.0")
    world.settle(5000.0)
    assert world.committed == "1.1.0"


@pytest.mark.fault("N3")
def test_retry_after_of_the_hub_is_honoured(world: World) -> None:
    """Up to the breaker's cap."""
    world.hub.faults = [EffectFailure(FailureKind.TRANSIENT, "RATE_LIMITED", "429", retry_after_seconds=300.0)]
    world.command(CommandKind.CHECK_NOW)
    looks = world.record.watch.polls
    began = world.clock.seconds
    while world.record.watch.polls == looks:
        world.tick()

    assert world.clock.seconds - began >= 299.0


@pytest.mark.fault("B9")
def test_a_wall_clock_that_jumps_changes_no_wait_of_a_running_updater(world: World) -> None:
    """Waits are measured by the monotonic clock."""
    world.publish("1.1.0")
    world.tick_until(Stage.OBSERVING)
    spent = world.record.under_way.stage_seconds
    world.clock.wall += timedelta(days=400)
    world.tick()

    assert Stage.OBSERVING is world.stage
    assert world.record.under_way.stage_seconds < spent + 2.0
