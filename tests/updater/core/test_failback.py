"""Failback to a device that ran out of memory: when it starts, what it may change, how it ends."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest

from dev.harness.simulated_card import CARD, CPU, GIB, Card
from tests.updater.core.world import RULES, World
from tests.updater.simulators import Quality, bundle_of
from updater.core.breaker import BreakerName, BreakerState
from updater.core.effects import EffectFailure, FailureKind, PollHub, RetireLoad, Wait
from updater.core.facts import CommandKind, GoldenFacts, SlotSnapshot
from updater.core.record import Outcome, Stage, UpdateKind
from updater.core.rules import Mode
from updater.stages.machine import decide

FIRST_SECONDS = RULES.breakers[BreakerName.DEVICE].first_seconds
HOUR = 3600.0


@pytest.fixture
def carded() -> World:
    """1.0.0 is committed and serves from a card."""
    world = World(card=Card())
    world.install("1.0.0")
    assert world.server.serving_on == CARD
    return world


@pytest.fixture
def fallen(carded: World) -> World:
    """Other processes have filled the card, the server has fallen back to the CPU, and the updater has noted it."""
    fill(carded)
    carded.tick()
    carded.tick()
    assert carded.server.serving_on == CPU
    assert BreakerState.OPEN is carded.record.device.state
    return carded


def fill(world: World, gib: int = 9) -> None:
    """Other processes take the card's memory, and a caller's request runs out."""
    assert world.card is not None
    world.card.strangers = gib * GIB
    world.passes(1.0)


def empty(world: World) -> None:
    """The card's memory is free again."""
    assert world.card is not None
    world.card.strangers = 0


def openings(world: World) -> list[str]:
    """Messages of the device breaker's openings."""
    return [row.message for row in world.disk.events if row.name == "breaker_opened" and "device" in row.message]


def blameless(world: World) -> tuple[object, ...]:
    """The parts of the record that no failback may change."""
    record = world.record
    return (
        record.committed,
        record.previous,
        record.min_version,
        record.quarantine,
        record.blocked,
        record.activation.state,
        record.activation.failures,
        world.disk.pointer,
    )


def is_failback(world: World) -> bool:
    """Whether a failback is under way."""
    return world.record.update is not None and world.record.update.kind is UpdateKind.FAILBACK


def until_failback(world: World, stage: Stage = Stage.GATING) -> None:
    """Wait for the breaker's open time, and step until the failback is in a stage."""
    world.tick_until(stage, 60_000)
    assert is_failback(world)


def until_over(world: World) -> None:
    """Step until the failback under way has ended."""
    for _ in range(5000):
        if not is_failback(world):
            return
        world.tick()
    raise AssertionError(f"the return does not end: {world.stage}")


# A fallback opens the breaker.


def test_a_fallback_opens_the_device_breaker_once(fallen: World) -> None:
    """With an event, durably; neither time nor a restart of the updater repeats it."""
    assert FIRST_SECONDS * 0.8 - 5 <= fallen.record.device.left_seconds <= FIRST_SECONDS * 1.2
    left = fallen.record.device.left_seconds
    for _ in range(20):
        fallen.tick()
    fallen.start_updater()
    for _ in range(20):
        fallen.tick()

    assert len(openings(fallen)) == 1
    assert "cuda:0 ran out of memory (OUT_OF_MEMORY): cpu answers" in openings(fallen)[0]
    assert 0 < fallen.record.device.left_seconds < left
    assert fallen.record.device.openings == 1


@pytest.mark.fault("B4")
def test_a_fallback_during_the_updaters_absence_is_found_at_its_start(carded: World) -> None:
    """The breaker waits its full time from then."""
    fill(carded)
    carded.clock.passes(24 * HOUR)
    carded.start_updater()
    for _ in range(3):
        carded.tick()

    assert BreakerState.OPEN is carded.record.device.state
    assert carded.record.device.left_seconds > FIRST_SECONDS * 0.7
    assert Stage.IDLE is carded.stage


def test_the_breaker_closes_when_a_fallback_ends_without_a_failback(fallen: World) -> None:
    """For example because the settings name the CPU now."""
    fallen.server.fallback = None
    for _ in range(3):
        fallen.tick()
    assert BreakerState.CLOSED is fallen.record.device.state
    assert fallen.record.cpu_fallback is None
    assert "breaker_closed" in fallen.event_names()


def test_the_servers_own_load_of_a_fallback_is_not_retired(carded: World) -> None:
    """It fills the other slot for seconds."""
    server = carded.server.state(1.0)
    moving = SlotSnapshot("load 99", server.slots[0].bundle_digest, CPU, "float32", "LOADING", "FALLBACK")
    facts = replace(carded.facts(), server=replace(server, slots=(server.slots[0], moving)))
    assert isinstance(decide(carded.record, facts, RULES), Wait | PollHub)
    left_over = replace(moving, state="LOADED", role="CANDIDATE")
    facts = replace(facts, server=replace(server, slots=(server.slots[0], left_over)))
    assert isinstance(decide(carded.record, facts, RULES), RetireLoad)


# The way back.


def test_a_failback_is_committed_after_the_breakers_open_time(fallen: World) -> None:
    """Loaded, judged, tried with the CPU slot still warm, committed; then the breaker closes."""
    before = blameless(fallen)
    empty(fallen)
    began = fallen.clock.seconds
    until_failback(fallen)
    assert fallen.clock.seconds - began > FIRST_SECONDS * 0.7
    assert not fallen.record.device.may_begin

    until_failback(fallen, Stage.OBSERVING)
    assert fallen.server.serving_on == CARD
    assert CPU in {slot.device for slot in fallen.server.state(1.0).slots}
    until_over(fallen)
    fallen.settle()

    assert (fallen.server.serving_on, fallen.server.fallback) == (CARD, None)
    assert BreakerState.CLOSED is fallen.record.device.state
    assert fallen.record.cpu_fallback is None
    assert before == blameless(fallen)
    assert Outcome.COMMITTED is fallen.outcomes("1.0.0")[-1]
    assert fallen.last("update_committed").update is not None
    assert fallen.server.lost == 0


def test_no_failback_starts_before_the_breakers_open_time_is_over(fallen: World) -> None:
    """Even if the card has become empty."""
    empty(fallen)
    tried = len(fallen.server.tried)
    while fallen.record.device.left_seconds > 5:
        fallen.tick()
        assert Stage.IDLE is fallen.stage
    assert tried == len(fallen.server.tried)


@pytest.mark.parametrize("golden", [GoldenFacts(""), GoldenFacts("golden", problem="UNREADABLE")], ids=["none", "bad"])
def test_a_failback_without_a_golden_set_is_judged_by_built_in_probes(fallen: World, golden: GoldenFacts) -> None:
    """Its bundle was committed before."""
    fallen.golden.set_facts = golden
    empty(fallen)
    until_failback(fallen)
    until_over(fallen)
    assert fallen.server.serving_on == CARD


def test_a_failback_without_callers_is_observed_on_probes(fallen: World) -> None:
    """Even where a new revision would need callers."""
    fallen.with_rules(observe=replace(RULES.observe, probes_allowed=False))
    fallen.requests_a_second = 0.0
    empty(fallen)
    until_failback(fallen)
    until_over(fallen)
    assert fallen.server.serving_on == CARD


def test_a_failback_needs_no_approval(fallen: World) -> None:
    """Not even in mode `approve`."""
    fallen.with_rules(mode=Mode.APPROVE)
    empty(fallen)
    until_failback(fallen)
    until_over(fallen)
    assert fallen.server.serving_on == CARD


# It fails.


def no_room(world: World) -> None:
    """By the plan there is no room."""
    fill(world)


def no_room_unplanned(world: World) -> None:
    """There is no room and no plan."""
    fill(world)
    assert world.card is not None
    world.card.plan = "blind"


def loads_and_overflows(world: World) -> None:
    """There is room for the weights, but for no item."""
    assert world.card is not None
    world.card.strangers, world.card.plan = 6 * GIB, "kind"


def not_finite(world: World) -> None:
    """The card computes NaN."""
    empty(world)
    _spoil(world, Quality(fails_on={CARD: "NOT_FINITE"}))


def runner_dies(world: World) -> None:
    """The runner dies while it loads."""
    empty(world)
    world.server.load_faults = [EffectFailure(FailureKind.PERMANENT, "LOAD_FAILED", "its runner died")]


def _spoil(world: World, quality: Quality) -> None:
    world.qualities[world.hub.contents["1.0.0"]] = quality


@pytest.mark.fault("B12")
@pytest.mark.fault("K14")
@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (no_room, "DOES_NOT_FIT"),
        (no_room_unplanned, "DOES_NOT_FIT"),
        (loads_and_overflows, "DOES_NOT_FIT"),
        (not_finite, "NOT_FINITE"),
        (runner_dies, "LOAD_FAILED"),
    ],
)
def test_a_failback_that_fails_before_its_trial_waits_longer(fallen: World, fault: object, reason: str) -> None:
    """The breaker opens again, for longer; the CPU answers throughout, and no revision is blamed."""
    before = blameless(fallen)
    assert callable(fault)
    fault(fallen)
    until_failback(fallen)
    until_over(fallen)

    device = fallen.record.device
    assert (device.state, device.openings, device.failures) == (BreakerState.OPEN, 2, 2)
    assert 2 * FIRST_SECONDS * 0.8 - 5 <= device.left_seconds <= 2 * FIRST_SECONDS * 1.2
    assert before == blameless(fallen)
    assert fallen.server.serving_on == CPU
    past = fallen.last("update_abandoned")
    assert past.update is not None
    assert (reason, Outcome.ABANDONED) == (past.update.reason, past.outcome)
    assert fallen.server.lost == 0
    assert not fallen.server.is_on_trial


@pytest.mark.fault("B12")
@pytest.mark.fault("B6")
def test_a_card_that_loads_and_then_runs_out_causes_few_attempts(fallen: World) -> None:
    """A handful in a day, further and further apart; no caller is answered from the card."""
    loads_and_overflows(fallen)
    starts: list[float] = []
    ends = fallen.clock.seconds + 24 * HOUR
    fallen.with_rules(look_seconds=20.0, poll_seconds=300.0)
    while fallen.clock.seconds < ends:
        action = fallen.tick()
        assert fallen.server.serving_on == CPU
        if action == "LoadBundle":
            starts.append(fallen.clock.seconds)

    waits = [after - before for before, after in pairwise(starts)]
    assert 5 <= len(starts) <= 8
    assert all(after > before for before, after in pairwise(waits[:4]))
    assert fallen.server.activated[1:] == []


@pytest.mark.fault("B12")
@pytest.mark.fault("K14")
def test_a_failback_that_runs_out_on_callers_leaves_the_cpu_slot_answering(fallen: World) -> None:
    """The server activates it again, the breaker opens for longer, and the fallback remains."""
    before = blameless(fallen)
    empty(fallen)
    until_failback(fallen, Stage.OBSERVING)
    fill(fallen)
    until_over(fallen)

    assert fallen.server.serving_on == CPU
    assert (fallen.record.device.state, fallen.record.device.openings) == (BreakerState.OPEN, 2)
    assert before == blameless(fallen)
    past = fallen.last("update_rolled_back")
    assert past.update is not None
    assert past.update.message == "1.0.0 ran out of memory on cuda:0 while it answered on trial"
    assert len([slot for slot in fallen.server.slots if slot is not None]) == 1


@pytest.mark.fault("B12")
def test_one_death_or_one_nan_in_its_trial_ends_a_failback(fallen: World) -> None:
    """The bundle is known to be good, so the device is to blame."""
    for reason in ("RUNNER_DIED", "NOT_FINITE"):
        empty(fallen)
        until_failback(fallen, Stage.OBSERVING)
        _spoil(fallen, Quality(fails_callers=reason))
        fallen.server.answers(1, lambda _, reason=reason: reason)  # type: ignore[misc]
        _spoil(fallen, Quality())
        until_over(fallen)
        assert fallen.server.serving_on == CPU
        assert BreakerState.OPEN is fallen.record.device.state
    assert fallen.record.device.openings == 3
    assert fallen.quarantined == set()


def test_a_failback_whose_trial_lease_expired_has_failed(fallen: World) -> None:
    """The updater was away, and the server has ended the trial."""
    empty(fallen)
    until_failback(fallen, Stage.OBSERVING)
    fallen.passes(RULES.observe.trial_lease_seconds + 1)
    until_over(fallen)
    assert fallen.server.serving_on == CPU
    assert (fallen.record.device.state, fallen.record.device.openings) == (BreakerState.OPEN, 2)


@pytest.mark.fault("B3")
def test_one_probe_with_nan_fails_a_failback(fallen: World) -> None:
    """No caller comes, and every other probe is answered."""
    fallen.requests_a_second = 0.0
    empty(fallen)
    until_failback(fallen, Stage.OBSERVING)
    fallen.golden.probe_failures = ["", "NOT_FINITE"]
    until_over(fallen)
    assert fallen.server.serving_on == CPU
    assert "1 of 10 probes" in openings(fallen)[-1]


def test_a_card_that_runs_out_after_a_failback_waits_longer_than_before(fallen: World) -> None:
    """That is another fallback, and the breaker counts its openings."""
    empty(fallen)
    until_failback(fallen)
    until_over(fallen)
    assert fallen.server.serving_on == CARD
    fill(fallen)
    for _ in range(3):
        fallen.tick()

    assert fallen.server.serving_on == CPU
    assert (fallen.record.device.state, fallen.record.device.openings) == (BreakerState.OPEN, 2)
    assert len(openings(fallen)) == 2


# Lives end.


@pytest.mark.fault("B3")
@pytest.mark.parametrize("dies", ["before", "after"])
@pytest.mark.parametrize("stage", [Stage.GATING, Stage.ACTIVATING, Stage.OBSERVING])
def test_an_updater_that_dies_during_a_failback_waits_again(fallen: World, stage: Stage, dies: str) -> None:
    """The probe was cut off: its load is retired, and the next attempt waits as long as this one did."""
    empty(fallen)
    until_failback(fallen, stage)
    fallen.tick(dies=dies)
    fallen.tick()
    assert (fallen.record.device.state, fallen.record.device.openings) == (BreakerState.OPEN, 1)
    until_over(fallen)
    for _ in range(5):
        fallen.tick()

    assert fallen.server.serving_on == CPU
    assert fallen.record.device.left_seconds > FIRST_SECONDS * 0.7
    assert len([slot for slot in fallen.server.slots if slot is not None]) == 1
    until_failback(fallen)
    until_over(fallen)
    assert fallen.server.serving_on == CARD


@pytest.mark.parametrize("dies", ["before", "after"])
def test_an_updater_that_dies_while_committing_a_failback_completes_it(fallen: World, dies: str) -> None:
    """The verdict was reached before."""
    empty(fallen)
    until_failback(fallen, Stage.COMMITTING)
    fallen.tick(dies=dies)
    until_over(fallen)
    for _ in range(3):
        fallen.tick()
    assert (fallen.server.serving_on, fallen.record.device.state) == (CARD, BreakerState.CLOSED)


@pytest.mark.parametrize("end", [World.stop_server, World.crash_server, World.cut_power])
@pytest.mark.parametrize("stage", [Stage.GATING, Stage.ACTIVATING, Stage.OBSERVING, Stage.COMMITTING])
def test_a_server_that_ends_during_a_failback_starts_on_the_cpu(
    fallen: World, stage: Stage, end: Callable[[World], None]
) -> None:
    """It remembers the fallback; a crash in the trial is blamed on the device, as is one of the machine."""
    before = blameless(fallen)
    empty(fallen)
    until_failback(fallen, stage)
    end(fallen)
    fallen.tick()
    assert fallen.server.serving_on == CPU
    until_over(fallen)
    if stage is Stage.GATING and end is not World.cut_power:  # nothing was on trial: it is loaded and proven again
        assert fallen.server.serving_on == CARD
        return

    expected = 1 if end is World.stop_server or stage is Stage.GATING else 2
    assert (BreakerState.OPEN, expected) == (fallen.record.device.state, fallen.record.device.openings)
    assert before == blameless(fallen)
    assert fallen.server.serving_on == CPU


def test_a_failback_that_exceeds_the_breakers_probe_time_is_abandoned(fallen: World) -> None:
    """Whatever it waits for."""
    empty(fallen)
    until_failback(fallen, Stage.OBSERVING)
    fallen.clock.passes(fallen.record.device.left_seconds + 1.0)
    until_over(fallen)
    assert fallen.server.serving_on == CPU
    assert (fallen.record.device.state, fallen.record.device.openings) == (BreakerState.OPEN, 2)


# Others want something meanwhile.


def test_a_release_during_a_fallback_is_judged_and_served_on_the_cpu(fallen: World) -> None:
    """The open breaker delays only the failback."""
    fallen.install("1.1.0")
    assert fallen.server.serving_on == CPU
    assert fallen.server.fallback is not None
    empty(fallen)
    until_failback(fallen)
    until_over(fallen)
    assert (fallen.serving, fallen.server.serving_on) == ("1.1.0", CARD)


def test_a_release_waits_for_a_failback_and_is_then_judged_on_the_card(fallen: World) -> None:
    """The device that it will serve from."""
    empty(fallen)
    until_failback(fallen)
    fallen.publish("1.1.0")
    until_over(fallen)
    assert fallen.committed == "1.0.0"
    fallen.settle()
    assert (fallen.committed, fallen.server.serving_on) == ("1.1.0", CARD)


@pytest.mark.parametrize("stage", [Stage.GATING, Stage.ACTIVATING, Stage.OBSERVING])
def test_a_requested_revision_does_not_wait_for_a_failback(fallen: World, stage: Stage) -> None:
    """The failback is abandoned without a verdict, and waits again."""
    empty(fallen)
    until_failback(fallen, stage)
    fallen.publish("1.1.0")
    fallen.command(CommandKind.UPDATE, "1.1.0")
    fallen.settle()
    assert (fallen.committed, fallen.server.serving_on) == ("1.1.0", CPU)
    assert (fallen.record.device.state, fallen.record.device.openings) == (BreakerState.OPEN, 1)
    until_failback(fallen)
    until_over(fallen)
    assert (fallen.serving, fallen.server.serving_on) == ("1.1.0", CARD)


@pytest.mark.parametrize("stage", [Stage.GATING, Stage.ACTIVATING, Stage.OBSERVING])
def test_a_pause_abandons_a_failback_and_resume_allows_the_next(fallen: World, stage: Stage) -> None:
    """While updates are paused no device is tried."""
    empty(fallen)
    until_failback(fallen, stage)
    fallen.command(CommandKind.PAUSE, "a demonstration")
    until_over(fallen)
    tried = len(fallen.server.tried)
    for _ in range(3000):
        fallen.tick()
    assert (CPU, tried) == (fallen.server.serving_on, len(fallen.server.tried))
    assert fallen.record.device.may_begin

    fallen.command(CommandKind.RESUME)
    until_failback(fallen)
    until_over(fallen)
    assert fallen.server.serving_on == CARD


@pytest.mark.fault("B8")
@pytest.mark.parametrize("stage", [Stage.IDLE, Stage.GATING, Stage.OBSERVING])
def test_a_rollback_during_a_failback_takes_back_the_revision(carded: World, stage: Stage) -> None:
    """The revision before serves, on the device that is available."""
    carded.install("1.1.0")
    fill(carded)
    carded.tick()
    carded.tick()
    empty(carded)
    if stage is not Stage.IDLE:
        until_failback(carded, stage)
    carded.command(CommandKind.ROLLBACK)
    carded.settle(3 * HOUR)
    assert (carded.serving, carded.server.serving_on) == ("1.0.0", CPU)
    assert carded.quarantined == {"1.1.0"}
    assert BreakerState.OPEN is carded.record.device.state


def test_a_rollback_during_a_failback_without_an_earlier_revision_is_refused(fallen: World) -> None:
    """The committed revision is not quarantined because a device is being tried."""
    empty(fallen)
    until_failback(fallen, Stage.OBSERVING)
    fallen.command(CommandKind.ROLLBACK)
    assert "command_refused" in fallen.event_names()
    assert fallen.quarantined == set()
    until_over(fallen)
    assert fallen.server.serving_on == CARD


def test_a_reset_of_the_breaker_starts_a_failback_at_once(fallen: World) -> None:
    """And clears the count of its failures."""
    empty(fallen)
    fallen.command(CommandKind.RESET_BREAKER, "device")
    began = fallen.clock.seconds
    until_failback(fallen)
    assert fallen.clock.seconds - began < 5
    assert BreakerState.HALF_OPEN is fallen.record.device.state
    fallen.command(CommandKind.RESET_BREAKER, "device")  # once more: the probe that is out goes on
    assert is_failback(fallen)
    until_over(fallen)
    assert fallen.server.serving_on == CARD


def test_a_reconversion_and_a_failback_run_one_after_the_other(fallen: World) -> None:
    """One update at a time."""
    empty(fallen)
    until_failback(fallen)
    fallen.store.converter = "2"
    until_over(fallen)
    fallen.settle()
    assert fallen.record.committed is not None
    assert bundle_of(fallen.hub.contents["1.0.0"], "2") == fallen.record.committed.bundle_digest
    assert fallen.server.serving_on == CARD
