"""The way back to a device that ran out of memory: when it is tried, what it may touch, how it ends."""

from dataclasses import replace
from itertools import pairwise

import pytest

from dev.harness.simulated_server import CARD, CPU, GIB, Card
from tests.updater.core.world import RULES, World
from tests.updater.simulators import Quality, bundle_of
from updater.core.breaker import BreakerName, BreakerState
from updater.core.effects import EffectFailure, FailureKind, PollHub, RetireLoad, Wait
from updater.core.facts import CommandKind
from updater.core.ports import GoldenFacts, SlotSnapshot
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
    """Strangers have filled the card, callers came, and the server has left it; the updater has seen it."""
    fill(carded)
    carded.tick()
    carded.tick()
    assert carded.server.serving_on == CPU
    assert BreakerState.OPEN is carded.record.device.state
    return carded


def fill(world: World, gib: int = 9) -> None:
    """Somebody else takes the card's memory, and a caller meets it."""
    assert world.card is not None
    world.card.strangers = gib * GIB
    world.passes(1.0)


def empty(world: World) -> None:
    """They are gone."""
    assert world.card is not None
    world.card.strangers = 0


def opens(world: World) -> list[str]:
    """What was told of the device breaker's openings."""
    return [row.message for row in world.disk.events if row.name == "breaker_opened" and "device" in row.message]


def blameless(world: World) -> tuple[object, ...]:
    """What no return may touch."""
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
    """Whether a return is under way."""
    return world.record.update is not None and world.record.update.kind is UpdateKind.FAILBACK


def until_failback(world: World, stage: Stage = Stage.GATING) -> None:
    """Wait out the breaker."""
    world.tick_until(stage, 60_000)
    assert is_failback(world)


def until_over(world: World) -> None:
    """Let the return that is under way end."""
    for _ in range(5000):
        if not is_failback(world):
            return
        world.tick()
    raise AssertionError(f"the return does not end: {world.stage}")


# A fallback opens the breaker.


def test_a_fallback_opens_the_device_breaker_once(fallen: World) -> None:
    """It is told with the reason and persisted; neither time nor a restart of the updater tells it again."""
    assert FIRST_SECONDS * 0.8 - 5 <= fallen.record.device.left_seconds <= FIRST_SECONDS * 1.2
    left = fallen.record.device.left_seconds
    for _ in range(20):
        fallen.tick()
    fallen.start_updater()
    for _ in range(20):
        fallen.tick()

    assert len(opens(fallen)) == 1
    assert "cuda:0 ran out of memory (OUT_OF_MEMORY): cpu answers" in opens(fallen)[0]
    assert 0 < fallen.record.device.left_seconds < left
    assert fallen.record.device.openings == 1


@pytest.mark.fault("B4")
def test_a_fallback_that_the_updater_did_not_see_is_found_at_its_start(carded: World) -> None:
    """And is waited for in full, whatever time has passed since."""
    fill(carded)
    carded.clock.passes(24 * HOUR)
    carded.start_updater()
    for _ in range(3):
        carded.tick()

    assert BreakerState.OPEN is carded.record.device.state
    assert carded.record.device.left_seconds > FIRST_SECONDS * 0.7
    assert Stage.IDLE is carded.stage


def test_a_fallback_that_ended_otherwise_closes_the_breaker(fallen: World) -> None:
    """For example because the settings name the CPU now."""
    fallen.server.fallback = None
    for _ in range(3):
        fallen.tick()
    assert BreakerState.CLOSED is fallen.record.device.state
    assert fallen.record.cpu_fallback is None
    assert "breaker_closed" in fallen.told()


def test_the_server_s_own_move_to_another_device_is_left_alone(carded: World) -> None:
    """It fills the other slot for seconds: the updater does not clear it away."""
    server = carded.server.state(1.0)
    moving = SlotSnapshot("load 99", server.slots[0].bundle_digest, CPU, "float32", "LOADING", "FALLBACK")
    facts = replace(carded.facts(), server=replace(server, slots=(server.slots[0], moving)))
    assert isinstance(decide(carded.record, facts, RULES), Wait | PollHub)
    left_over = replace(moving, state="LOADED", role="CANDIDATE")
    facts = replace(facts, server=replace(server, slots=(server.slots[0], left_over)))
    assert isinstance(decide(carded.record, facts, RULES), RetireLoad)


# The way back.


def test_it_comes_back_when_the_breaker_has_waited(fallen: World) -> None:
    """Loaded, proven, tried with the CPU slot still warm, committed: and the breaker closes."""
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


def test_before_its_time_nothing_is_loaded(fallen: World) -> None:
    """An empty card is not known to be empty."""
    empty(fallen)
    tried = len(fallen.server.tried)
    while fallen.record.device.left_seconds > 5:
        fallen.tick()
        assert Stage.IDLE is fallen.stage
    assert tried == len(fallen.server.tried)


@pytest.mark.parametrize("golden", [GoldenFacts(""), GoldenFacts("golden", problem="UNREADABLE")], ids=["none", "bad"])
def test_without_a_golden_set_it_is_proven_on_built_in_probes(fallen: World, golden: GoldenFacts) -> None:
    """What returns was committed before: there is no revision to be proven."""
    fallen.golden.set_facts = golden
    empty(fallen)
    until_failback(fallen)
    until_over(fallen)
    assert fallen.server.serving_on == CARD


def test_without_callers_it_is_watched_on_probes(fallen: World) -> None:
    """Even where a new revision would need callers."""
    fallen.with_rules(observe=replace(RULES.observe, probes_allowed=False))
    fallen.requests_a_second = 0.0
    empty(fallen)
    until_failback(fallen)
    until_over(fallen)
    assert fallen.server.serving_on == CARD


def test_it_asks_no_person(fallen: World) -> None:
    """Not even under a policy that approves releases one by one."""
    fallen.with_rules(mode=Mode.APPROVE)
    empty(fallen)
    until_failback(fallen)
    until_over(fallen)
    assert fallen.server.serving_on == CARD


# It fails.


def no_room(world: World) -> None:
    """The plan says so."""
    fill(world)


def no_room_unplanned(world: World) -> None:
    """The plan could not be made."""
    fill(world)
    assert world.card is not None
    world.card.plan = "blind"


def loads_and_overflows(world: World) -> None:
    """There is room for the weights, and for no item."""
    assert world.card is not None
    world.card.strangers, world.card.plan = 6 * GIB, "kind"


def not_finite(world: World) -> None:
    """The card computes nonsense."""
    empty(world)
    _spoil(world, Quality(fails_on={CARD: "NOT_FINITE"}))


def runner_dies(world: World) -> None:
    """The load is lost for another reason."""
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
def test_a_return_that_fails_before_callers_meet_it_waits_longer(fallen: World, fault: object, reason: str) -> None:
    """The breaker opens again, for longer; the CPU answers throughout, and nobody is to blame."""
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
def test_a_card_that_loads_and_then_overflows_makes_nothing_flap(fallen: World) -> None:
    """In a day a handful of tries, further and further apart; no caller ever meets the card."""
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
def test_a_return_that_overflows_on_callers_leaves_the_cpu_slot_answering(fallen: World) -> None:
    """The server puts it back, the breaker opens for longer, and the fallback stands."""
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
def test_one_death_or_one_nonsense_answer_on_trial_sends_it_back(fallen: World) -> None:
    """What returns is known to be good: such a thing speaks against the device."""
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


def test_a_trial_whose_term_ran_out_has_failed(fallen: World) -> None:
    """The updater was asleep: the server has gone back by itself."""
    empty(fallen)
    until_failback(fallen, Stage.OBSERVING)
    fallen.passes(RULES.observe.trial_lease_seconds + 1)
    until_over(fallen)
    assert fallen.server.serving_on == CPU
    assert (fallen.record.device.state, fallen.record.device.openings) == (BreakerState.OPEN, 2)


def test_a_card_that_overflows_after_the_commit_waits_longer_than_the_first_time(fallen: World) -> None:
    """The next fallback is another one, and the breaker remembers the one before."""
    empty(fallen)
    until_failback(fallen)
    until_over(fallen)
    assert fallen.server.serving_on == CARD
    fill(fallen)
    for _ in range(3):
        fallen.tick()

    assert fallen.server.serving_on == CPU
    assert (fallen.record.device.state, fallen.record.device.openings) == (BreakerState.OPEN, 2)
    assert len(opens(fallen)) == 2


# Lives end.


@pytest.mark.fault("B3")
@pytest.mark.parametrize("dies", ["before", "after"])
@pytest.mark.parametrize("stage", [Stage.GATING, Stage.ACTIVATING, Stage.OBSERVING])
def test_an_updater_that_dies_in_a_return_waits_again(fallen: World, stage: Stage, dies: str) -> None:
    """Its probe was cut off: what it loaded is cleared away, and the next try waits as long as this one did."""
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
def test_an_updater_that_dies_while_committing_brings_it_to_its_end(fallen: World, dies: str) -> None:
    """The device has proven itself, and only the telling was left."""
    empty(fallen)
    until_failback(fallen, Stage.COMMITTING)
    fallen.tick(dies=dies)
    until_over(fallen)
    for _ in range(3):
        fallen.tick()
    assert (fallen.server.serving_on, fallen.record.device.state) == (CARD, BreakerState.CLOSED)


@pytest.mark.parametrize("orderly", [True, False])
@pytest.mark.parametrize("stage", [Stage.GATING, Stage.ACTIVATING, Stage.OBSERVING, Stage.COMMITTING])
def test_a_server_that_ends_in_a_return_comes_back_on_the_cpu(fallen: World, stage: Stage, *, orderly: bool) -> None:
    """It remembers; a crash in the trial is the device's fault, an orderly stop nobody's."""
    before = blameless(fallen)
    empty(fallen)
    until_failback(fallen, stage)
    if orderly:
        fallen.stop_server()
    else:
        fallen.crash_server()
    assert fallen.server.serving_on == CPU
    if stage is Stage.GATING:  # nothing was on trial: it is loaded and proven again
        until_over(fallen)
        assert fallen.server.serving_on == CARD
        return
    until_over(fallen)

    assert (BreakerState.OPEN, 1 if orderly else 2) == (fallen.record.device.state, fallen.record.device.openings)
    assert before == blameless(fallen)
    assert fallen.server.serving_on == CPU


def test_a_probe_that_outlives_its_time_is_taken_back(fallen: World) -> None:
    """However it hangs."""
    empty(fallen)
    until_failback(fallen, Stage.OBSERVING)
    fallen.clock.passes(fallen.record.device.left_seconds + 1.0)
    until_over(fallen)
    assert fallen.server.serving_on == CPU
    assert (fallen.record.device.state, fallen.record.device.openings) == (BreakerState.OPEN, 2)


# Others want something meanwhile.


def test_a_release_while_falling_back_is_proven_and_served_on_the_cpu(fallen: World) -> None:
    """A breaker that is open holds back nothing but the way back."""
    fallen.install("1.1.0")
    assert fallen.server.serving_on == CPU
    assert fallen.server.fallback is not None
    empty(fallen)
    until_failback(fallen)
    until_over(fallen)
    assert (fallen.serving, fallen.server.serving_on) == ("1.1.0", CARD)


def test_a_release_waits_for_a_return_and_is_then_proven_on_the_card(fallen: World) -> None:
    """It is the device that it will serve from."""
    empty(fallen)
    until_failback(fallen)
    fallen.publish("1.1.0")
    until_over(fallen)
    assert fallen.committed == "1.0.0"
    fallen.settle()
    assert (fallen.committed, fallen.server.serving_on) == ("1.1.0", CARD)


@pytest.mark.parametrize("stage", [Stage.GATING, Stage.ACTIVATING, Stage.OBSERVING])
def test_a_revision_that_a_person_names_need_not_wait(fallen: World, stage: Stage) -> None:
    """The return gives way without a verdict, and waits its turn again."""
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
def test_a_hold_breaks_it_off_and_resume_lets_it_try_again(fallen: World, stage: Stage) -> None:
    """While updates are on hold no device is tried."""
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
def test_a_rollback_by_hand_is_about_the_revision(carded: World, stage: Stage) -> None:
    """Whatever the breaker says: the revision before serves, on the device that there is."""
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


def test_a_rollback_by_hand_without_a_revision_before_is_refused(fallen: World) -> None:
    """The committed revision is not quarantined because a device is being tried."""
    empty(fallen)
    until_failback(fallen, Stage.OBSERVING)
    fallen.command(CommandKind.ROLLBACK)
    assert "command_refused" in fallen.told()
    assert fallen.quarantined == set()
    until_over(fallen)
    assert fallen.server.serving_on == CARD


def test_an_operator_who_resets_the_breaker_tries_at_once(fallen: World) -> None:
    """And forgets how often it has failed."""
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


def test_a_new_conversion_and_a_return_come_one_after_the_other(fallen: World) -> None:
    """One update at a time."""
    empty(fallen)
    until_failback(fallen)
    fallen.store.converter = "2"
    until_over(fallen)
    fallen.settle()
    assert fallen.record.committed is not None
    assert bundle_of(fallen.hub.contents["1.0.0"], "2") == fallen.record.committed.bundle_digest
    assert fallen.server.serving_on == CARD
