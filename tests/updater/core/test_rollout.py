"""Answers are compared in a trial; a shadow before it; a canary by steps; and what operators can do about each."""

from dataclasses import replace

import pytest

from hotslot.control.v1.control_pb2 import GetStatusResponse
from tests.updater.core.world import World
from tests.updater.simulators import Quality
from updater.control.snapshot import convert_server_state
from updater.core.facts import CommandKind
from updater.core.record import HeldFor, Outcome, Stage
from updater.core.rules import CompareRules, Rollout, RolloutRules
from updater.store.record_json import from_json, to_json

CHANGED = Quality(changes=0.235)  # as the golden set does not show
FAILING = Quality(fails_callers="ENGINE_FAILED")


@pytest.fixture
def busy() -> World:
    """1.0.0 is committed and serves ten requests a second."""
    world = World(requests_a_second=10.0)
    world.install("1.0.0")
    return world


def roll_out(world: World, rollout: Rollout, **changes: object) -> None:
    """Roll out by another policy from now on."""
    world.with_rules(rollout=replace(RolloutRules(rollout), **changes))  # type: ignore[arg-type]


def percents(world: World) -> list[str]:
    """The steps of a canary, as they were told."""
    return [
        event.message.split(" of the requests")[0] for event in world.disk.events if event.name == "canary_advanced"
    ]


@pytest.mark.fault("T1")
def test_changed_answers_that_the_golden_set_cannot_see_are_held(busy: World) -> None:
    """The previous model serves, nothing is quarantined, and the sentence has the numbers."""
    busy.publish("1.1.0", CHANGED)
    busy.settle()

    update = busy.record.under_way
    assert (busy.stage, busy.serving, busy.quarantined) == (Stage.HELD, "1.0.0", set())
    assert (update.reason, update.ending.held_for if update.ending else None) == (
        "CHANGED_ANSWERS",
        HeldFor.CHANGED_ANSWERS,
    )
    assert "compared answers" in update.message
    assert "where the golden set predicts 0.0% and at most" in update.message
    evidence = busy.last("hold_decided").evidence
    assert evidence is not None
    assert ("changed_answers", False) in [(row.name, row.passed) for row in evidence.measured]
    assert ("all changes", False) in [(row.name, row.passed) for row in evidence.changes]


def test_changed_answers_are_found_before_the_window_is_over(busy: World) -> None:
    """Each look may hold it: the false alarms of all looks together are bounded."""
    busy.publish("1.1.0", Quality(changes=0.6))
    busy.tick_until(Stage.ROLLING_BACK)
    trial, end = busy.last("trial_began"), busy.last("hold_decided")
    assert (end.at - trial.at).total_seconds() < busy.rules.observe.window_seconds


def test_an_approval_of_changed_answers_lets_them_change(busy: World) -> None:
    """It is gated and tried again, and committed."""
    busy.publish("1.1.0", CHANGED)
    busy.settle()
    busy.command(CommandKind.APPROVE, busy.record.under_way.source_digest)
    busy.settle()
    assert (busy.committed, busy.outcomes("1.1.0")) == ("1.1.0", [Outcome.COMMITTED])


@pytest.mark.fault("T2")
def test_as_many_changes_as_on_the_golden_set_are_kept() -> None:
    """A better model changes answers too: 4 of 40 golden ones, and 10 % of the callers'."""
    world = World(requests_a_second=10.0)
    world.install("1.0.0", Quality(right=16))
    world.publish("1.1.0", Quality(right=20, changes=0.1))
    world.settle()
    assert (world.stage, world.committed) == (Stage.IDLE, "1.1.0")


def test_nothing_is_compared_without_a_share_or_for_a_first_install() -> None:
    """The server is not told to copy anything."""
    world = World(requests_a_second=10.0, rules=replace(World().rules, compare=CompareRules(share=0.0)))
    world.install("1.0.0")
    world.publish("1.1.0", CHANGED)
    world.tick_until(Stage.OBSERVING)
    assert world.server.shadow is None
    world.settle()
    assert world.committed == "1.1.0"


def test_a_trial_goes_on_while_too_few_answers_were_compared(busy: World) -> None:
    """For another window: copies are dropped while the machine is full."""
    busy.with_rules(compare=CompareRules(share=0.01))
    busy.publish("1.1.0")
    busy.settle()
    trial, end = busy.last("trial_began"), busy.last("trial_kept")
    window = busy.rules.observe.window_seconds
    assert 2 * window <= (end.at - trial.at).total_seconds() < 3 * window


def test_failures_outweigh_changed_answers(busy: World) -> None:
    """A revision that fails callers is rolled back for good."""
    busy.publish("1.1.0", replace(FAILING, changes=0.9))
    busy.settle()
    assert (busy.quarantined, busy.outcomes("1.1.0")) == ({"1.1.0"}, [Outcome.ROLLED_BACK])


def test_a_shadow_finds_changed_answers_before_any_caller_meets_them(busy: World) -> None:
    """No trial begins."""
    roll_out(busy, Rollout.SHADOW)
    trials = list(busy.server.activated)
    busy.publish("1.1.0", CHANGED)
    busy.settle()
    assert (busy.record.under_way.reason, busy.server.activated) == ("CHANGED_ANSWERS", trials)


def test_a_shadow_ends_after_enough_answers_and_the_trial_begins(busy: World) -> None:
    """200 compared answers at 2 a second; then it is tried and committed as any."""
    roll_out(busy, Rollout.SHADOW)
    busy.publish("1.1.0")
    busy.tick_until(Stage.SHADOWING)
    assert busy.serving == "1.0.0"
    busy.settle()
    assert "1.1.0 has answered copies: 20" in busy.last("shadow_ended").message
    assert busy.committed == "1.1.0"


def test_a_shadow_without_traffic_ends_in_time() -> None:
    """The trial judges it."""
    world = World()
    world.install("1.0.0")
    roll_out(world, Rollout.SHADOW, shadow_max_seconds=20.0)
    world.requests_a_second = 0.0
    world.publish("1.1.0")
    world.settle()
    assert world.last("shadow_ended").message == "1.1.0 has answered copies: 0 answers were compared"
    assert world.committed == "1.1.0"


def test_a_shadow_that_fails_copies_is_refused_and_costs_no_caller_anything(busy: World) -> None:
    """It never answers a caller."""
    roll_out(busy, Rollout.SHADOW)
    busy.publish("1.1.0", FAILING)
    busy.settle()
    assert (busy.quarantined, busy.outcomes("1.1.0"), busy.server.lost) == ({"1.1.0"}, [Outcome.REFUSED], 0)
    assert busy.last("candidate_refused").message.startswith("it failed ")


@pytest.mark.fault("K14")
def test_a_shadow_that_runs_out_of_memory_is_held(busy: World) -> None:
    """As at its gate, and on trial: the machine is too small, and the revision may be good."""
    roll_out(busy, Rollout.SHADOW)
    busy.publish("1.1.0", Quality(fails_callers="OUT_OF_MEMORY"))
    busy.tick_until(Stage.SHADOWING)
    busy.settle()
    assert (busy.stage, busy.record.under_way.reason, busy.quarantined) == (Stage.HELD, "DOES_NOT_FIT", set())
    assert busy.last("hold_decided").message.startswith("1.1.0 ran out of memory for ")


@pytest.mark.fault("T10")
def test_copies_that_are_late_do_not_refuse_a_candidate(busy: World) -> None:
    """What is late on trial is held."""
    roll_out(busy, Rollout.SHADOW, shadow_max_seconds=20.0)
    busy.publish("1.1.0", Quality(fails_callers="PREPARE_TIMEOUT"))
    busy.settle()
    assert (busy.stage, busy.record.under_way.reason, busy.quarantined) == (Stage.HELD, "SLOWER", set())
    state = GetStatusResponse()
    model = state.models.add()
    model.shadow.comparison.failed.update({"PREPARE_TIMEOUT": 7, "ENGINE_FAILED": 2})
    shadow = convert_server_state(state, last_ended_orderly=True).shadow
    assert shadow is not None
    assert shadow.failed == 2


def test_deaths_of_runners_before_it_do_not_count_against_a_candidate(busy: World) -> None:
    """Of the standby process in its slot: the server counts a slot's deaths, whatever the slot held."""
    roll_out(busy, Rollout.SHADOW)
    for _ in range(3):
        busy.server.loses_spare()
    busy.publish("1.1.0")
    busy.settle()
    assert (busy.committed, busy.quarantined) == ("1.1.0", set())


def test_a_candidate_that_dies_while_it_answers_copies_is_tried_again_once(busy: World) -> None:
    """One death may have had another reason; the second one is its own."""
    roll_out(busy, Rollout.SHADOW)
    busy.publish("1.1.0")
    busy.tick_until(Stage.SHADOWING)
    busy.server.loses_spare()
    busy.settle()
    assert (busy.committed, busy.outcomes("1.1.0")) == ("1.1.0", [Outcome.COMMITTED])

    busy.publish("1.2.0", Quality(fails_callers="RUNNER_DIED"))
    busy.settle()
    refusal = busy.last("candidate_refused")
    assert refusal.message == "its runner died 2 times while it answered copies of requests"
    assert (busy.quarantined, busy.outcomes("1.2.0"), busy.server.lost) == ({"1.2.0"}, [Outcome.REFUSED], 0)


def test_a_server_that_starts_again_is_no_death_of_its_candidate(busy: World) -> None:
    """However often."""
    roll_out(busy, Rollout.SHADOW)
    busy.publish("1.1.0")
    for _ in range(3):
        busy.tick_until(Stage.SHADOWING)
        busy.crash_server()
        busy.server.deaths = [1, 1]
        busy.tick_until(Stage.GATING)
    busy.settle()
    assert (busy.committed, busy.quarantined) == ("1.1.0", set())


def test_a_shadow_of_a_build_before_its_deaths_were_counted_goes_on(busy: World) -> None:
    """An updater that is replaced meanwhile reads its record; one that is put back reads what has no deaths."""
    roll_out(busy, Rollout.SHADOW)
    busy.publish("1.1.0")
    busy.tick_until(Stage.SHADOWING)
    row = to_json(busy.record)
    assert "shadow_deaths" not in row["update"]
    for name in ("shadow_slot", "slot_deaths"):
        row["update"].pop(name, None)
    assert from_json(row).under_way.shadow_slot == -1


@pytest.mark.parametrize("kind", [CommandKind.STEP, CommandKind.PROMOTE])
def test_an_operator_ends_a_shadow(busy: World, kind: CommandKind) -> None:
    """The trial begins at once, however few answers were compared."""
    roll_out(busy, Rollout.SHADOW, shadow_min_answers=10**6, shadow_max_seconds=800.0)
    busy.publish("1.1.0")
    busy.tick_until(Stage.SHADOWING)
    assert busy.command(kind) is None
    busy.tick_until(Stage.OBSERVING, limit=5)


@pytest.mark.fault("T6")
def test_a_canary_gets_a_growing_share_each_for_a_window(busy: World) -> None:
    """5, 25, 50 and 100 % of the requests; the last window ends in the commit."""
    roll_out(busy, Rollout.CANARY)
    busy.publish("1.1.0")
    busy.tick_until(Stage.OBSERVING)
    busy.tick()
    assert busy.server.percent == 5
    busy.settle()
    assert percents(busy) == ["1.1.0 gets 25 %", "1.1.0 gets 50 %", "1.1.0 gets 100 %"]
    began, kept = busy.last("trial_began"), busy.last("trial_kept")
    assert (kept.at - began.at).total_seconds() >= 4 * busy.rules.observe.window_seconds
    assert busy.committed == "1.1.0"


@pytest.mark.fault("T7")
def test_a_canary_that_fails_is_rolled_back_from_any_step_without_a_lost_call(busy: World) -> None:
    """The previous slot answers what it fails."""
    roll_out(busy, Rollout.CANARY)
    busy.publish("1.1.0")
    busy.tick_until(Stage.OBSERVING)
    for _ in range(200):
        if busy.server.percent == 50:
            break
        busy.tick()
    busy.qualities[busy.hub.contents["1.1.0"]] = FAILING
    busy.settle()
    assert (busy.serving, busy.quarantined, busy.server.lost) == ("1.0.0", {"1.1.0"}, 0)
    assert busy.outcomes("1.1.0") == [Outcome.ROLLED_BACK]


def test_an_operator_advances_and_promotes_a_canary(busy: World) -> None:
    """`step` takes the next share, `promote` all of the requests; then there is nothing to advance."""
    roll_out(busy, Rollout.CANARY)
    busy.publish("1.1.0")
    busy.tick_until(Stage.OBSERVING)
    assert busy.command(CommandKind.STEP) is None
    busy.tick()
    assert (busy.record.under_way.percent, busy.server.percent) == (25, 25)
    assert busy.command(CommandKind.PROMOTE) is None
    busy.tick()
    assert busy.server.percent == 100
    refusal = busy.command(CommandKind.PROMOTE)
    assert refusal is not None
    assert refusal.reason == "LAST_STEP"
    busy.settle()
    assert busy.committed == "1.1.0"


def test_an_updater_that_dies_between_the_decision_and_the_share_sets_it_later(busy: World) -> None:
    """The record has the intent; another process performs it."""
    roll_out(busy, Rollout.CANARY)
    busy.publish("1.1.0")
    busy.tick_until(Stage.OBSERVING)
    busy.command(CommandKind.STEP)
    busy.tick(dies="before")
    assert busy.server.percent == 5
    for _ in range(3):
        busy.tick()
    assert busy.server.percent == 25


def test_a_record_of_a_build_before_comparisons_is_read(busy: World) -> None:
    """An updater that is replaced during a trial continues it."""
    busy.publish("1.1.0")
    busy.tick_until(Stage.OBSERVING)
    row = to_json(busy.record)
    for name in ("expected_changes", "may_change_answers", "is_shadow_over", "percents", "percent_step"):
        del row["update"][name]
    assert from_json(row) == busy.record.with_update(expected_changes=None)
