"""Operators' commands and decisions. The table of all commands: `test_command_table`."""

import pytest

from tests.updater.core.world import World
from tests.updater.simulators import Quality, source_of
from updater.core.facts import CommandKind, GoldenFacts
from updater.core.record import HeldFor, Stage
from updater.core.rules import Mode

NO_GOLDEN = GoldenFacts("")


def held_for(world: World) -> HeldFor | None:
    """Reason for which the update is held."""
    assert Stage.HELD is world.stage, world.event_names()[-6:]
    ending = world.record.under_way.ending
    return None if ending is None else ending.held_for


def digest(world: World, revision: str) -> str:
    """Source digest of the hub's revision."""
    return source_of(world.hub.contents[revision])


def test_an_approval_continues_the_held_digest(world: World) -> None:
    """Without a golden set it is then judged by built-in probes."""
    world.golden.set_facts = NO_GOLDEN
    world.publish("1.1.0")
    world.settle()
    world.command(CommandKind.APPROVE, digest(world, "1.1.0"))
    world.settle()

    assert world.committed == "1.1.0"


@pytest.mark.parametrize("quality", [Quality(right=18), Quality(agrees=2)], ids=["noise", "agreement"])
def test_a_doubtful_candidate_is_held_and_can_be_approved(world: World, quality: Quality) -> None:
    """Worse without being significantly so, or with other answers: a person decides."""
    world.publish("1.1.0", quality)
    world.settle()
    assert held_for(world) in (HeldFor.NOISE, HeldFor.AGREEMENT)
    assert world.quarantined == set()

    world.command(CommandKind.APPROVE, digest(world, "1.1.0"))
    world.settle()
    assert world.committed == "1.1.0"


def test_mode_approve_holds_after_the_gate_and_does_not_run_it_twice(world: World) -> None:
    """The evidence is there when the person decides."""
    world.with_rules(mode=Mode.APPROVE)
    world.publish("1.1.0")
    world.settle()
    assert HeldFor.APPROVAL is held_for(world)

    runs = world.event_names().count("candidate_loaded")
    world.command(CommandKind.APPROVE, digest(world, "1.1.0"))
    world.settle()
    assert world.committed == "1.1.0"
    assert runs + 1 == world.event_names().count("candidate_loaded")


def test_other_labels_are_held_with_the_difference_and_can_be_approved(world: World) -> None:
    """Callers may depend on the labels, so a person decides; nothing goes into quarantine."""
    world.publish("1.1.0", Quality(has_same_labels=False))
    world.settle()
    held, message = held_for(world), world.record.under_way.message

    world.command(CommandKind.APPROVE, digest(world, "1.1.0"))
    world.settle()

    assert (held, "new: B-road" in message) == (HeldFor.LABELS, True)
    assert (world.committed, world.quarantined) == ("1.1.0", set())


def test_a_candidate_that_does_not_fit_cannot_be_approved(world: World) -> None:
    """An approval gives it no memory."""
    world.publish("1.1.0", Quality(loads="OUT_OF_MEMORY"))
    world.settle()
    refused = world.command(CommandKind.APPROVE, digest(world, "1.1.0"))
    assert refused is not None
    assert refused.reason == "NOT_APPROVABLE"


def test_a_rollback_restores_the_revision_before_pauses_and_quarantines(world: World) -> None:
    """Until `unquarantine` and `resume`; the minimal version is kept, and the revision may then be tried again."""
    world.install("1.1.0")
    world.command(CommandKind.ROLLBACK)
    world.settle()
    assert world.serving == world.committed == "1.0.0"
    assert world.quarantined == {"1.1.0"}
    assert world.record.paused
    assert world.record.min_version == "1.1.0"

    world.command(CommandKind.UNQUARANTINE, digest(world, "1.1.0"))
    world.command(CommandKind.RESUME)
    world.settle()
    assert world.committed == "1.1.0"


def test_a_rollback_during_a_trial_takes_back_the_trial(world: World) -> None:
    """The committed revision is not touched."""
    world.publish("1.1.0")
    world.tick_until(Stage.OBSERVING)
    world.command(CommandKind.ROLLBACK)
    world.settle()

    assert world.serving == "1.0.0"
    assert world.quarantined == {"1.1.0"}
    assert world.record.paused


def test_a_rollback_without_an_earlier_revision_is_refused(world: World) -> None:
    """The refusal has a reason."""
    refused = world.command(CommandKind.ROLLBACK)
    assert refused is not None
    assert refused.reason == "NOTHING_TO_ROLL_BACK_TO"


@pytest.mark.parametrize("stage", [Stage.STAGING, Stage.VERIFYING, Stage.GATING, Stage.ACTIVATING, Stage.OBSERVING])
def test_a_pause_abandons_the_update_under_way_without_blame(world: World, stage: Stage) -> None:
    """And `resume` starts it again."""
    world.publish("1.1.0")
    world.tick_until(stage)
    world.command(CommandKind.PAUSE, "a busy day")
    world.settle()
    assert (world.stage, world.serving, world.quarantined) == (Stage.IDLE, "1.0.0", set())

    world.command(CommandKind.RESUME)
    world.settle()
    assert world.committed == "1.1.0"


def test_the_audit_trail_says_who_acted_and_why(world: World) -> None:
    """In the same transaction as the effect, before its event."""
    world.command(CommandKind.PAUSE, note="by wang: release freeze")
    events = [(event.name, event.message) for event in world.disk.events[-2:]]
    assert events == [
        ("operator_acted", "pause by wang: release freeze"),
        ("updates_paused", "an operator paused updates"),
    ]


def test_a_golden_set_that_is_being_read_holds_nothing(world: World) -> None:
    """The gate waits for it; commands do not."""
    facts = world.golden.set_facts
    world.golden.set_facts = GoldenFacts("", is_read=False)
    world.publish("1.1.0")
    world.tick_until(Stage.GATING)
    for _ in range(20):
        world.tick()
    assert world.stage is Stage.GATING
    assert world.command(CommandKind.ROLLBACK) is None

    world.command(CommandKind.RESUME)
    world.tick_until(Stage.GATING)
    world.golden.set_facts = facts
    world.settle()
    assert world.committed == "1.1.0"
