"""Updates from the hub to their end, with crashes of the updater and of the server."""

from datetime import timedelta
from typing import Any

import pytest

from dev.harness.simulated_server import SimServer
from tests.updater.core.world import RULES, World
from tests.updater.simulators import Quality, bundle_of
from updater.core.breaker import BreakerState
from updater.core.effects import EffectFailure, FailureKind
from updater.core.facts import CommandKind, GoldenFacts
from updater.core.record import HeldFor, Outcome, Stage
from updater.core.rules import ObserveRules


def held_for(world: World) -> HeldFor | None:
    """Reason for which the update is held."""
    assert Stage.HELD is world.stage, world.event_names()[-6:]
    ending = world.record.under_way.ending
    return None if ending is None else ending.held_for


def test_a_good_revision_is_committed_without_a_lost_call(world: World) -> None:
    """Through all stages; the previous slot is retired after its warm time."""
    world.publish("1.1.0")
    world.settle()

    assert world.record.min_version == world.committed == world.serving == "1.1.0"
    assert world.record.previous is not None
    assert world.record.previous.revision == "1.0.0"
    assert [held is None for held in world.server.slots] == [True, False]
    assert world.server.lost == 0


def test_notes_of_the_conversion_are_evidence(world: World) -> None:
    """What was ignored in a revision's files is recorded with the event that seals it, also if it is refused later."""
    world.publish("1.1.0", Quality(right=4, notes=("config.json: a key is ignored",)))
    world.settle()

    sealed = world.last("bundle_sealed")
    assert sealed.evidence is not None
    assert sealed.evidence.notes == ("config.json: a key is ignored",)
    assert sealed.message == "1.1.0 is verified and sealed, with 1 note"
    assert sealed.stage is Stage.VERIFYING


@pytest.mark.fault("S7")
def test_a_revision_that_fails_only_callers_is_rolled_back_without_a_lost_call(world: World) -> None:
    """Right on golden items, NaN on live ones."""
    world.publish("1.1.0", Quality(fails_callers="NOT_FINITE"))
    world.settle()

    assert world.serving == world.committed == "1.0.0"
    assert world.quarantined == {"1.1.0"}
    assert world.outcomes("1.1.0") == [Outcome.ROLLED_BACK]
    assert world.server.lost == 0


@pytest.mark.fault("S6")
def test_a_revision_with_wrong_golden_answers_never_answers_a_caller(world: World) -> None:
    """Refused with the numbers and the first differing items."""
    world.publish("1.1.0", Quality(right=4))
    world.settle()

    assert world.outcomes("1.1.0") == [Outcome.REFUSED]
    evidence = world.last("candidate_refused").evidence
    assert evidence is not None
    assert evidence.differing
    assert bundle_of(world.hub.contents["1.1.0"]) not in world.server.activated


@pytest.mark.fault("S4")
def test_a_revision_that_does_not_fit_is_held_without_blame(world: World) -> None:
    """A newer revision takes its place."""
    world.publish("1.1.0", Quality(loads="OUT_OF_MEMORY"))
    world.settle()
    assert HeldFor.DOES_NOT_FIT is held_for(world)
    assert world.quarantined == set()

    world.publish("1.2.0")
    world.settle()
    assert world.committed == "1.2.0"


def test_a_trial_out_of_memory_is_held_without_blame(world: World) -> None:
    """The previous slot has answered meanwhile."""
    world.publish("1.1.0", Quality(fails_callers="OUT_OF_MEMORY"))
    world.settle()

    assert HeldFor.DOES_NOT_FIT is held_for(world)
    assert world.quarantined == set()
    assert world.serving == "1.0.0"


@pytest.mark.fault("S5")
@pytest.mark.fault("T10")
def test_a_slow_candidate_is_held(world: World) -> None:
    """Three times the active model's device time on golden items: a person decides, before it answers any caller."""
    world.publish("1.1.0", Quality(cost_seconds=3.0))
    world.settle()

    assert held_for(world) is HeldFor.SLOWER
    assert world.quarantined == set()
    assert bundle_of(world.hub.contents["1.1.0"]) not in world.server.activated
    assert world.serving == "1.0.0"


@pytest.mark.fault("T10")
def test_a_gate_whose_questions_were_late_is_repeated(world: World) -> None:
    """After a pause of the machine it passes; a candidate that is always late is held, and cannot be approved."""
    world.publish("1.1.0", Quality(failure="DEADLINE_EXPIRED"), "late")
    while "gate_interrupted" not in world.event_names():
        world.tick()
    assert world.last("gate_interrupted").message.startswith("LATE_ANSWERS: 40 of 40 questions failed")
    world.qualities["late"] = Quality()
    world.settle()
    assert world.committed == "1.1.0"

    world.publish("1.2.0", Quality(failure="DEADLINE_EXPIRED"))
    world.settle()
    assert (held_for(world), world.quarantined, world.committed) == (HeldFor.INCONCLUSIVE, set(), "1.1.0")
    assert world.record.activation.failures == 0
    assert world.command(CommandKind.APPROVE, world.record.under_way.source_digest) is not None


@pytest.mark.fault("S5")
@pytest.mark.fault("T10")
def test_a_revision_that_is_slow_only_on_callers_is_held(world: World) -> None:
    """Three times the device seconds a row on trial: the previous model serves again, and nothing is in quarantine."""
    world.requests_a_second = 4.0
    world.passes(30.0)
    world.publish("1.1.0", Quality(row_seconds=0.03))
    world.settle()

    assert held_for(world) is HeldFor.SLOWER
    assert world.quarantined == set()
    assert world.record.activation.failures == 0
    evidence = world.last("hold_decided").evidence
    assert evidence is not None
    assert [row.name for row in evidence.measured if not row.passed] == ["cost_seconds_a_row", "slower_by_chance"]
    assert world.committed == world.serving == "1.0.0"


@pytest.mark.fault("T10")
@pytest.mark.parametrize("reason", ["TOO_SLOW", "PREPARE_TIMEOUT"])
def test_a_revision_that_is_late_on_trial_is_held_at_once_and_not_blamed(world: World, reason: str) -> None:
    """Its machine may have paused: resumed in a calm hour, the same content is committed."""
    content = "late"
    world.publish("1.1.0", Quality(fails_callers=reason), content)
    world.settle()

    assert (held_for(world), world.quarantined, world.record.activation.failures) == (HeldFor.SLOWER, set(), 0)
    assert (world.serving, world.server.lost) == ("1.0.0", 0)
    began, held = world.last("trial_began"), world.last("hold_decided")
    assert (held.at - began.at).total_seconds() < world.rules.observe.window_seconds
    assert "of them only because they took too long" in held.message

    world.qualities[content] = Quality()
    world.command(CommandKind.RESUME)
    world.settle()
    assert world.committed == "1.1.0"


@pytest.mark.fault("T10")
def test_an_approved_revision_that_was_late_is_committed(world: World) -> None:
    """Though it is late in its second trial as well."""
    world.publish("1.1.0", Quality(fails_callers="TOO_SLOW"))
    world.settle()
    assert held_for(world) is HeldFor.SLOWER

    world.command(CommandKind.APPROVE, world.record.under_way.source_digest)
    world.settle()
    assert world.committed == "1.1.0"


def test_an_approved_slower_revision_is_committed(world: World) -> None:
    """Neither the gate nor the trial holds it for the same reason again."""
    world.requests_a_second = 4.0
    world.passes(30.0)
    world.publish("1.1.0", Quality(cost_seconds=3.0, row_seconds=0.03))
    world.settle()
    assert held_for(world) is HeldFor.SLOWER

    world.command(CommandKind.APPROVE, world.record.under_way.source_digest)
    world.settle()
    assert world.committed == "1.1.0"


@pytest.mark.fault("S11")
def test_a_trial_without_traffic_is_never_committed_silently(world: World) -> None:
    """On probes where policy allows them, and recorded so; otherwise held."""
    world.requests_a_second = 0.0
    world.publish("1.1.0")
    world.settle()
    assert world.committed == "1.1.0"
    assert "on probes" in world.last("update_committed").message

    world.with_rules(observe=ObserveRules(window_seconds=30.0, max_seconds=120.0, probes_allowed=False))
    world.publish("1.2.0")
    world.settle()
    assert HeldFor.INCONCLUSIVE is held_for(world)
    assert world.serving == world.committed == "1.1.0"


@pytest.mark.fault("S13")
def test_one_error_of_one_request_is_no_verdict(world: World) -> None:
    """It waits for more."""
    world.requests_a_second = 0.0
    world.publish("1.1.0")
    world.tick_until(Stage.OBSERVING)
    world.server.answers(1, lambda _: "ENGINE_FAILED")
    for _ in range(10):
        world.tick()
    assert Stage.OBSERVING is world.stage

    world.server.answers(200, lambda _: "")
    world.requests_a_second = 2.0
    world.settle()
    assert world.committed == "1.1.0"


@pytest.mark.fault("K11")
@pytest.mark.parametrize("stage", [Stage.STAGING, Stage.GATING, Stage.ACTIVATING, Stage.OBSERVING, Stage.ROLLING_BACK])
def test_an_updater_that_is_killed_repeatedly_ends_in_held(world: World, stage: Stage) -> None:
    """Forty-five times in one stage; the old model serves."""
    quality = Quality(fails_callers="NOT_FINITE") if stage is Stage.ROLLING_BACK else Quality()
    world.publish("1.1.0", quality)
    world.tick_until(stage)
    for _ in range(65 if stage is Stage.ROLLING_BACK else 45):
        world.start_updater()
        world.tick()
        world.tick(dies="before")
    world.settle()

    assert Stage.HELD is world.stage
    assert world.committed == world.serving == "1.0.0"
    assert not world.server.is_on_trial


@pytest.mark.fault("K2")
def test_a_server_that_crashes_in_a_trial_starts_with_the_old_model(world: World) -> None:
    """The trial is to blame."""
    world.publish("1.1.0")
    world.tick_until(Stage.OBSERVING)
    world.crash_server()
    world.settle()

    assert world.serving == "1.0.0"
    assert world.quarantined == {"1.1.0"}


@pytest.mark.fault("K2")
def test_a_server_that_crashes_right_after_a_trial_has_begun_is_not_the_one_that_answers_next(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trial is to blame, although the next server has none and is up before the updater looks."""
    activate = SimServer.activate

    def activate_and_crash(server: SimServer, *change: Any, **options: Any) -> None:  # noqa: ANN401  as `activate` has
        activate(server, *change, **options)
        world.crash_server()

    world.publish("1.1.0")
    world.tick_until(Stage.ACTIVATING)
    with monkeypatch.context() as patched:
        patched.setattr(SimServer, "activate", activate_and_crash)
        world.tick()
    world.settle()

    assert world.serving == "1.0.0"
    assert world.quarantined == {"1.1.0"}


@pytest.mark.fault("K16")
@pytest.mark.parametrize("is_first", [False, True])
@pytest.mark.parametrize("who", ["server", "both", "yielded"])
def test_an_orderly_stop_in_a_trial_is_without_blame(world: World, empty: World, who: str, *, is_first: bool) -> None:
    """The update starts again and is committed."""
    here = empty if is_first else world
    here.publish("1.1.0")
    here.tick_until(Stage.OBSERVING)
    if who == "both":  # the server does not report it; the updater was stopped too
        here.stop_updater()
        here.crash_server()
        here.start_updater()
    elif who == "yielded" and not is_first:
        here.server.yields()
    else:
        here.stop_server()
    here.settle()

    assert here.serving == here.committed == "1.1.0"
    assert here.quarantined == set()


@pytest.mark.parametrize("stage", [Stage.ACTIVATING, Stage.OBSERVING, Stage.COMMITTING])
@pytest.mark.parametrize("is_first", [False, True])
def test_a_power_cut_in_a_trial_is_without_blame(world: World, empty: World, stage: Stage, *, is_first: bool) -> None:
    """As often as a server may crash at a first install; the update starts again and is committed."""
    here = empty if is_first else world
    here.publish("1.1.0")
    for _ in range(RULES.max_crashes - 1):
        here.tick_until(stage)
        here.cut_power()
        here.tick()
        here.tick()
    here.settle()

    assert here.serving == here.committed == "1.1.0"
    assert here.quarantined == set()


def test_a_machine_that_restarts_in_each_trial_is_no_chance(world: World) -> None:
    """A revision may cause it: the third time it is to blame."""
    world.publish("1.1.0")
    for _ in range(RULES.max_crashes):
        world.tick_until(Stage.OBSERVING)
        world.cut_power()
        world.tick()
        world.tick()
    world.settle()

    assert (world.serving, world.quarantined) == ("1.0.0", {"1.1.0"})
    assert "the machine was restarted" in world.last("candidate_refused").message


@pytest.mark.parametrize("why", ["the system has no boot id", "an earlier build wrote the record"])
def test_a_power_cut_that_cannot_be_told_counts_as_a_crash(world: World, why: str) -> None:
    """Without the boot id of the activation."""
    if why == "the system has no boot id":
        world.boot_id = ""
        world.start_updater()
    world.publish("1.1.0")
    world.tick_until(Stage.OBSERVING)
    assert world.disk.record is not None
    world.disk.record["update"].pop("boot_id", None)
    world.cut_power()
    world.settle()

    assert (world.serving, world.quarantined) == ("1.0.0", {"1.1.0"})


@pytest.mark.fault("K17")
def test_an_expired_trial_lease_is_without_blame(world: World) -> None:
    """The updater was away; the previous slot was activated; the update is tried again."""
    world.publish("1.1.0")
    world.tick_until(Stage.OBSERVING)
    world.passes(100.0)
    assert world.serving == "1.0.0"
    world.start_updater()
    world.settle()

    assert world.committed == "1.1.0"
    assert world.quarantined == set()


def test_a_first_install_that_crashes_the_server_is_held_after_a_few_attempts(empty: World) -> None:
    """Nothing else could serve, so it is tried again first."""
    empty.publish("1.0.0")
    for _ in range(RULES.max_crashes):
        empty.tick_until(Stage.OBSERVING)
        empty.crash_server()
        empty.tick()
    empty.settle()

    assert HeldFor.SERVER_CRASHED is held_for(empty)
    assert empty.quarantined == set()


@pytest.mark.fault("C13")
@pytest.mark.parametrize("problem", ["EMPTY", "UNREADABLE", "OTHER_TASK", ""])
def test_a_missing_golden_set_is_never_a_pass(world: World, problem: str) -> None:
    """A golden set that is missing or unusable holds the update, with advice."""
    world.golden.set_facts = GoldenFacts("", problem=problem)
    world.publish("1.1.0")
    world.settle()

    assert (HeldFor.GOLDEN_UNUSABLE if problem else HeldFor.NO_GOLDEN) is held_for(world)
    assert "hotslot golden" in world.record.under_way.message


@pytest.mark.fault("N1")
def test_a_breakers_open_time_passes_while_the_updater_is_away(world: World) -> None:
    """And a wall clock that was set back shortens nothing."""
    world.hub.faults = [EffectFailure(FailureKind.TRANSIENT, "HUB_FAILED", "500")] * 5
    while world.record.hub.state is not BreakerState.OPEN:
        world.tick()
    left = world.record.hub.left_seconds
    world.clock.passes(left - 5.0)
    world.start_updater()
    world.tick()
    assert world.record.hub.left_seconds == pytest.approx(5.0, abs=1.0)

    world.clock.wall -= timedelta(days=1)
    world.start_updater()
    world.tick()
    assert world.record.hub.left_seconds == pytest.approx(5.0, abs=1.0)
