"""Too little disk space holds an update with the numbers; nothing is fetched twice, and it goes on by itself."""

import pytest

from tests.updater.core.test_mismatch import held_for, wait
from tests.updater.core.world import World
from updater.core.effects import EffectFailure, FailureKind, Shortage
from updater.core.facts import CommandKind
from updater.core.record import HeldFor, Outcome, Stage

FULL = EffectFailure(FailureKind.TRANSIENT, "DISK_FULL", "it needs 5.10 GiB", shortage=Shortage("", 1 << 30, 0))
UNKNOWN = EffectFailure(FailureKind.TRANSIENT, "DISK_FULL", "no space left on device; free some space")


@pytest.mark.fault("H17")
@pytest.mark.parametrize("failure", [FULL, UNKNOWN])
def test_a_disk_that_is_full_at_conversion_holds_the_update(world: World, failure: EffectFailure) -> None:
    """What was fetched is kept, and it goes on by itself."""
    world.publish("1.1.0")
    world.converter.faults = [failure] * 3
    world.tick_until(Stage.HELD)
    assert held_for(world) is HeldFor.DISK_FULL
    assert failure.message in world.record.under_way.message
    reads, kept = world.hub.reads, dict(world.disk.staged)
    assert list(kept.values()) == [world.hub.contents["1.1.0"]]
    wait(world, 700.0)
    world.settle()

    assert world.committed == "1.1.0"
    assert world.outcomes("1.1.0") == [Outcome.COMMITTED]
    assert world.hub.reads == reads + 1  # of the simulated store, which does not look whether a file is complete


@pytest.mark.fault("H17")
def test_it_waits_as_long_as_the_space_that_it_needs_is_not_there(world: World) -> None:
    """Without asking the hub for its files again, and without an event at each look."""
    world.publish("1.1.0")
    world.converter.faults = [FULL] * 3
    world.tick_until(Stage.HELD)
    world.store.free = 1 << 20
    events, reads = len(world.disk.events), world.hub.reads
    wait(world, 1500.0)
    assert world.stage is Stage.HELD
    assert (len(world.disk.events), world.hub.reads) == (events, reads)

    world.store.free = 2 << 30
    world.settle()
    assert world.committed == "1.1.0"


@pytest.mark.fault("H17")
def test_resume_tries_at_once_and_keeps_what_was_fetched(world: World) -> None:
    """A person who has freed space does not wait."""
    world.publish("1.1.0")
    world.converter.faults = [UNKNOWN] * 3
    world.tick_until(Stage.HELD)
    update_id = world.record.under_way.update_id
    world.command(CommandKind.RESUME)
    assert world.record.under_way.update_id == update_id
    assert world.disk.staged.keys() == {update_id}
    world.settle()
    assert world.committed == "1.1.0"


@pytest.mark.fault("H17")
def test_a_newer_revision_takes_the_place_of_one_that_waits_for_space(world: World) -> None:
    """It may be smaller."""
    world.publish("1.1.0")
    world.converter.faults = [FULL] * 3
    world.tick_until(Stage.HELD)
    world.store.free = 1 << 20
    world.publish("1.2.0")
    world.settle()
    assert world.committed == "1.2.0"
