"""A hub that sends other bytes than it lists says nothing about the content that the digest names."""

from collections.abc import Iterator

import pytest

from tests.updater.core.world import World
from tests.updater.simulators import Quality, SimHub, source_of
from updater.core.facts import CommandKind
from updater.core.record import HeldFor, Outcome, Stage

HOUR = 3600.0


@pytest.fixture
def world(world: World) -> World:
    """Few steps without news."""
    world.with_rules(look_seconds=20.0)
    return world


class MovingHub(SimHub):
    """Its tag 1.1.0 moves when a file of it is read for the first time."""

    world: World
    has_moved = False

    def read(self, revision: str, name: str, offset: int, deadline_seconds: float) -> Iterator[bytes]:
        """The new content, once it has moved."""
        if revision == "1.1.0" and not self.has_moved:
            self.has_moved = True
            self.world.publish("1.1.0", content="changed")
        return super().read(revision, name, offset, deadline_seconds)


def wait(world: World, seconds: float) -> None:
    """Steps until so much time has passed."""
    ends = world.clock.seconds + seconds
    while world.clock.seconds < ends:
        world.tick()


def held_for(world: World) -> HeldFor | None:
    """Why the update is held."""
    ending = world.record.under_way.ending
    return None if ending is None else ending.held_for


@pytest.mark.fault("H9")
@pytest.mark.fault("C4")
def test_a_hub_that_is_wrong_for_a_second_costs_a_pause(world: World) -> None:
    """The revision is taken by itself, and nothing is blamed."""
    world.publish("1.1.0")
    world.hub.spoilt.add("1.1.0")
    world.tick_until(Stage.STAGING)
    while world.record.under_way.mismatches == 0:
        world.tick()
    world.hub.spoilt.clear()
    world.settle()

    assert world.committed == "1.1.0"
    assert world.quarantined == set()
    assert world.event_names().count("content_mismatched") == 1


@pytest.mark.fault("H9")
def test_a_hub_that_is_wrong_for_an_hour_is_waited_for(world: World) -> None:
    """With growing pauses: nine downloads in that hour."""
    world.publish("1.1.0")
    world.hub.spoilt.add("1.1.0")
    world.tick_until(Stage.STAGING)
    wait(world, HOUR)
    assert world.stage is Stage.STAGING
    downloads = world.event_names().count("content_mismatched")
    world.hub.spoilt.clear()
    wait(world, HOUR / 2)

    assert world.committed == "1.1.0"
    assert world.outcomes("1.1.0") == [Outcome.COMMITTED]
    assert world.record.failure_ages == ()
    assert downloads == 8


@pytest.mark.fault("H9")
@pytest.mark.parametrize("is_found_on_disk", [False, True])
def test_a_hub_that_is_wrong_for_ever_is_held(world: World, *, is_found_on_disk: bool) -> None:
    """With the sentence what to do; the digest is not in quarantine, and a person may have it tried again."""
    world.publish("1.1.0", Quality(verifies=not is_found_on_disk))
    if not is_found_on_disk:
        world.hub.spoilt.add("1.1.0")
    wait(world, 1.5 * HOUR)

    assert world.stage is Stage.HELD
    assert held_for(world) is HeldFor.MISMATCH
    assert "after 9 attempts" in world.record.under_way.message
    assert world.quarantined == set()
    assert world.record.failure_ages == ()

    world.hub.spoilt.clear()
    world.qualities[world.hub.contents["1.1.0"]] = Quality()
    world.command(CommandKind.RESUME)
    world.settle()
    assert world.committed == "1.1.0"


@pytest.mark.fault("H9")
@pytest.mark.parametrize("seconds", [60.0, 1.5 * HOUR])
def test_a_newer_revision_does_not_wait_for_one_that_cannot_be_fetched(world: World, seconds: float) -> None:
    """Neither during the pauses, nor when it is held."""
    world.publish("1.1.0")
    world.hub.spoilt.add("1.1.0")
    wait(world, seconds)
    world.publish("1.2.0")
    world.settle()

    assert world.committed == "1.2.0"
    assert world.outcomes("1.1.0") == [Outcome.ABANDONED]


@pytest.mark.fault("H10")
def test_a_tag_that_moves_during_the_transfer_is_listed_anew(world: World) -> None:
    """The bytes of the new content do not match the old listing: that is no mismatch."""
    world.hub = MovingHub(world.hub.contents)
    world.hub.world = world
    world.start_updater()
    world.publish("1.1.0")
    world.settle()

    assert world.outcomes("1.1.0") == [Outcome.ABANDONED, Outcome.COMMITTED]
    assert "content_mismatched" not in world.event_names()
    assert world.record.committed is not None
    assert world.record.committed.source_digest == source_of("changed")


@pytest.mark.fault("H10")
def test_a_listing_that_was_wrong_and_is_corrected_is_taken(world: World) -> None:
    """The hub lists another digest under the same name: a held mismatch is superseded by it."""
    world.publish("1.1.0")
    world.hub.spoilt.add("1.1.0")
    wait(world, 1.5 * HOUR)
    assert world.stage is Stage.HELD
    world.hub.spoilt.clear()
    world.publish("1.1.0", content="corrected")
    world.settle()

    assert world.committed == "1.1.0"
    assert world.quarantined == set()


@pytest.mark.fault("H11")
def test_a_revision_without_hashes_is_identified_by_what_is_fetched(world: World) -> None:
    """Its content is known from then on: what failed is fetched once, and is in quarantine under any name."""
    world.hub.unhashed |= {"1.1.0", "1.2.0"}
    world.publish("1.1.0", Quality(right=4))
    world.settle()
    assert world.outcomes("1.1.0") == [Outcome.REFUSED]
    assert {row.source_digest for row in world.record.quarantine} == {source_of(world.hub.contents["1.1.0"])}

    reads = world.hub.reads
    wait(world, 600.0)
    assert world.hub.reads == reads

    world.publish("1.2.0")
    world.settle()
    assert world.committed == "1.2.0"
    assert "hashes, so they were computed" in world.last("revision_staged").message


@pytest.mark.fault("H11")
def test_a_quarantined_content_without_hashes_is_refused_under_another_name(world: World) -> None:
    """It is recognised when it is fetched, and not fetched again."""
    world.publish("1.1.0", Quality(right=4))
    world.settle()
    world.hub.unhashed.add("1.2.0")
    world.publish("1.2.0", Quality(right=4), content=world.hub.contents["1.1.0"])
    world.settle()
    reads = world.hub.reads
    wait(world, 600.0)

    assert world.outcomes("1.2.0") == [Outcome.REFUSED]
    assert world.committed == "1.0.0"
    assert world.hub.reads == reads
