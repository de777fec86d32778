"""Every operator's command in every stage: its effect on the record, the server and the pause."""

from collections.abc import Callable

import pytest

from dev.scripts import update_states
from tests.updater.core.world import World
from tests.updater.simulators import Quality, bundle_of
from updater.core.facts import CommandKind, OperatorCommand
from updater.core.record import Outcome, Stage, UpdateKind
from updater.core.rules import Rollout, RolloutRules
from updater.stages import machine
from updater.stages.commands import FAILBACK_TABLE, TABLE, CommandEffect, find_effect

pytestmark = pytest.mark.fault("H20")

_CELLS = [(kind, stage) for kind in CommandKind for stage in Stage]


@pytest.fixture
def two() -> World:
    """1.0.0 and 1.1.0 were committed, 1.1.0 serves, and 1.2.0 is published."""
    world = World()
    world.install("1.0.0")
    world.install("1.1.0")
    return world


def bring(world: World, stage: Stage, rollout: Rollout = Rollout.TRIAL) -> None:
    """Publish 1.2.0, and step until its update is in a stage."""
    if stage is Stage.IDLE:
        return
    rollout = Rollout.SHADOW if stage is Stage.SHADOWING else rollout
    if rollout is not Rollout.TRIAL:
        world.with_rules(rollout=RolloutRules(rollout, shadow_max_seconds=20.0))
    held, rolled_back = Quality(agrees=2), Quality(fails_callers="NOT_FINITE")
    quality = held if stage is Stage.HELD else rolled_back if stage is Stage.ROLLING_BACK else Quality()
    world.publish("1.2.0", quality)
    world.tick_until(stage)


def argument_of(world: World, kind: CommandKind) -> str:
    """What an operator names where it can be named."""
    update = world.record.update
    match kind:
        case CommandKind.UPDATE:
            return "1.3.0"
        case CommandKind.APPROVE:
            return "" if update is None else update.source_digest
        case CommandKind.RESET_BREAKER:
            return "activation"
        case _:
            return ""


def _polls(world: World) -> None:
    assert world.record.watch.seconds_to_poll == 0


def _requests(world: World) -> None:
    assert world.record.requested_revision == "1.3.0"


def _reverts(world: World) -> None:
    assert (world.committed, world.quarantined, world.record.paused) == ("1.0.0", {"1.1.0"}, True)


def _takes_back(world: World) -> None:
    assert (world.committed, world.quarantined, world.record.paused) == ("1.1.0", {"1.2.0"}, True)
    assert world.outcomes("1.2.0") in ([], [Outcome.ROLLED_BACK])


def _abandons(world: World) -> None:
    assert (world.committed, world.quarantined, world.record.paused) == ("1.1.0", set(), True)
    assert world.stage in (Stage.IDLE, Stage.ROLLING_BACK)


def _pauses(world: World) -> None:
    assert world.record.paused


def _resumes(world: World) -> None:
    assert not world.record.paused


def _retries(world: World) -> None:
    assert (world.stage, world.outcomes("1.2.0")) == (Stage.IDLE, [Outcome.ABANDONED])


def _approves(world: World) -> None:
    assert (world.stage, world.record.under_way.approved) == (Stage.GATING, True)


def _advances(world: World) -> None:
    update = world.record.under_way
    assert update.is_shadow_over or update.percent_step > 0


def _closes_the_breaker(world: World) -> None:
    assert world.event_names()[-1] == "breaker_reset"


# After the step in which the command is applied. What is refused has a reason instead.
_SHOWS: dict[CommandEffect, Callable[[World], None]] = {
    CommandEffect.POLL: _polls,
    CommandEffect.REQUEST: _requests,
    CommandEffect.ROLL_BACK_COMMITTED: _reverts,
    CommandEffect.TAKE_BACK: _takes_back,
    CommandEffect.ABANDON: _abandons,
    CommandEffect.PAUSE: _pauses,
    CommandEffect.RESUME: _resumes,
    CommandEffect.RETRY: _retries,
    CommandEffect.APPROVE: _approves,
    CommandEffect.RESET: _closes_the_breaker,
    CommandEffect.ADVANCE: _advances,
    CommandEffect.PROMOTE: _advances,
}
_REFUSED = {
    CommandEffect.IN_PROGRESS: "UPDATE_IN_PROGRESS",
    CommandEffect.NOT_HELD: "NOT_HELD",
    CommandEffect.NOT_ROLLING_OUT: "NOT_ROLLING_OUT",
    CommandEffect.UNQUARANTINE: "NOT_QUARANTINED",
}


@pytest.mark.parametrize("first", [CommandKind.STEP, CommandKind.PROMOTE])
@pytest.mark.parametrize("kind", [CommandKind.ROLLBACK, CommandKind.PAUSE])
def test_a_command_that_must_wait_delays_no_urgent_one(two: World, first: CommandKind, kind: CommandKind) -> None:
    """Whoever takes a trial back while it begins does not wait for somebody's step of the rollout."""
    bring(two, Stage.ACTIVATING, Rollout.CANARY)
    two.operators.leave(OperatorCommand(first, ""))
    urgent = two.operators.leave(OperatorCommand(kind, ""))
    two.tick()
    assert urgent.result is not None
    assert urgent.result.refusal is None


@pytest.mark.parametrize(("kind", "stage"), _CELLS)
def test_each_cell_of_the_table_is_what_happens(two: World, kind: CommandKind, stage: Stage) -> None:
    """Applied at once, refused with a reason, or left in the queue until the stage has ended; then all is well."""
    bring(two, stage, Rollout.CANARY if kind in (CommandKind.STEP, CommandKind.PROMOTE) else Rollout.TRIAL)
    effect, before = TABLE[kind][stage], two.record
    if effect is CommandEffect.WAIT:
        waiting = two.operators.leave(OperatorCommand(kind, argument_of(two, kind)))
        two.tick()
        assert waiting.result is None
        assert (two.record.paused, two.quarantined) == (before.paused, {row.revision for row in before.quarantine})
        two.settle()
        assert waiting.result is not None
        return

    refusal = two.command(kind, argument_of(two, kind))

    if effect in _REFUSED:
        assert refusal is not None
        assert refusal.reason == _REFUSED[effect]
        assert (two.stage, two.committed) == (before.stage, "1.1.0")
    else:
        assert refusal is None
        _SHOWS[effect](two)
    two.settle()
    assert two.serving == two.committed
    assert not two.server.is_on_trial


@pytest.mark.parametrize("stage", [Stage.STAGING, Stage.VERIFYING, Stage.GATING])
def test_a_rollback_before_an_update_serves_abandons_the_update_alone(two: World, stage: Stage) -> None:
    """The committed revision stays, no failure is counted, and a second rollback goes back further."""
    bring(two, stage)
    two.command(CommandKind.ROLLBACK)
    two.settle()
    assert (two.serving, two.committed, two.quarantined) == ("1.1.0", "1.1.0", set())
    assert two.last("update_abandoned").message == (
        "an operator took 1.2.0 back before it served; the committed revision stays"
    )

    two.command(CommandKind.ROLLBACK)
    two.settle()
    assert (two.serving, two.committed, two.quarantined) == ("1.0.0", "1.0.0", {"1.1.0"})


@pytest.mark.parametrize("stage", [Stage.STAGING, Stage.VERIFYING, Stage.GATING, Stage.SHADOWING])
def test_a_rollback_of_the_serving_revision_is_refused_before_an_update_serves(two: World, stage: Stage) -> None:
    """It would only abandon the update, and the refusal says so; the revision that is named still serves."""
    bring(two, stage)
    refusal = two.command(CommandKind.ROLLBACK, "1.1.0")
    assert refusal is not None
    assert (refusal.reason, two.serving, two.stage) == ("OTHER_REVISION", "1.1.0", stage)
    assert refusal.message == ("1.1.0 is not what a rollback would act on now: it would abandon the update to 1.2.0")


def test_a_rollback_of_the_committed_revision_is_refused_in_a_trial(two: World) -> None:
    """It would take back the candidate, which is what serves."""
    bring(two, Stage.OBSERVING)
    refusal = two.command(CommandKind.ROLLBACK, "1.1.0")
    assert refusal is not None
    assert refusal.message == "1.1.0 is not what a rollback would act on now: it would take back 1.2.0"


def test_a_rollback_of_a_new_conversion_blocks_the_conversion_and_not_the_source(two: World) -> None:
    """Its source is the one that is committed: what serves must not be in quarantine."""
    content, before = two.hub.contents["1.1.0"], two.record.committed
    two.store.converter = "2"
    two.tick_until(Stage.OBSERVING)
    assert two.record.under_way.kind is UpdateKind.RECONVERT

    two.command(CommandKind.ROLLBACK)
    two.settle()
    assert (two.quarantined, two.record.blocked) == (set(), (bundle_of(content, "2"),))
    assert two.record.committed == before


def test_a_trial_of_a_first_install_cannot_be_taken_back(empty: World) -> None:
    """Nothing else could answer."""
    empty.publish("1.0.0")
    empty.tick_until(Stage.OBSERVING)
    refusal = empty.command(CommandKind.ROLLBACK)
    assert refusal is not None
    assert (refusal.reason, empty.stage) == ("NOTHING_TO_ROLL_BACK_TO", Stage.OBSERVING)


def test_every_command_has_a_cell_for_every_stage() -> None:
    """A new command or stage cannot be forgotten."""
    assert {(kind, stage) for kind, row in TABLE.items() for stage in row} == set(_CELLS)
    assert set(FAILBACK_TABLE) <= set(TABLE)


def test_the_page_is_fresh() -> None:
    """`python -m dev.scripts.update_states` changes nothing."""
    assert update_states.PAGE.read_text(encoding="utf-8") == update_states.render()


def test_an_illegal_transition_raises_and_changes_nothing(two: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The record on the disk is the one before."""
    bring(two, Stage.STAGING)
    monkeypatch.setattr(machine, "TRANSITIONS", {**machine.TRANSITIONS, Stage.STAGING: frozenset({Stage.IDLE})})
    with pytest.raises(RuntimeError, match="STAGING must not lead to VERIFYING"):
        two.tick_until(Stage.VERIFYING)
    assert two.stage is Stage.STAGING


def test_a_failback_is_not_what_a_rollback_means(two: World) -> None:
    """A failback changes only the device: a rollback applies to the committed revision, and an update does not wait."""
    bring(two, Stage.OBSERVING)
    failback = two.record.with_update(kind=UpdateKind.FAILBACK)
    assert find_effect(failback, CommandKind.ROLLBACK) is CommandEffect.ROLL_BACK_COMMITTED
    assert find_effect(failback, CommandKind.UPDATE) is CommandEffect.SUPERSEDE
    assert find_effect(failback, CommandKind.PAUSE) is CommandEffect.ABANDON
