"""The first poll after an import never goes backwards, and a version keeps its content."""

import pytest

from tests.updater.core.world import World
from tests.updater.simulators import Quality, source_of
from updater.core.facts import CommandKind
from updater.core.record import HeldFor, Outcome, Stage
from updater.core.rules import ReleasePolicy


def held_for(world: World) -> HeldFor | None:
    """Why the update is held."""
    update = world.record.update
    return None if world.stage is not Stage.HELD or update is None or update.ending is None else update.ending.held_for


def test_an_import_is_recognised_by_its_content() -> None:
    """Only what is newer than the release with the same content is taken."""
    world = World()
    world.imported("from-the-lab")
    world.publish("v1.0")
    world.publish("v1.1", content="from-the-lab")
    world.settle()
    assert world.record.min_version == "v1.1"
    assert world.last("revision_recognised").message == "from-the-lab is v1.1 by its content"

    world.publish("v1.0.1")
    world.settle()
    assert world.serving == "from-the"
    world.install("v1.2")
    assert world.serving == "v1.2"


@pytest.mark.fault("H5")
def test_an_import_that_is_not_recognised_holds_the_first_release() -> None:
    """Nothing says that the hub's release is newer; once it is approved, versions are compared."""
    world = World()
    world.imported("from-the-lab")
    world.publish("v1.0")
    world.settle()
    assert held_for(world) is HeldFor.FIRST_CONTACT
    assert (world.serving, world.record.min_version) == ("from-the", "")

    world.publish("v1.1")
    world.settle()
    assert held_for(world) is HeldFor.FIRST_CONTACT
    assert world.record.under_way.revision == "v1.1"
    world.command(CommandKind.APPROVE, source_of(world.hub.contents["v1.1"]))
    world.settle()
    assert (world.committed, world.record.min_version) == ("v1.1", "v1.1")
    world.install("v1.2")


@pytest.mark.fault("H5")
def test_an_import_named_by_a_lower_version_than_its_content_does_not_go_back() -> None:
    """1.3.0 has the content, so 1.2.0 is older, even after 1.3.0 is deleted from the hub."""
    world = World()
    world.imported("1.0.0")
    world.publish("1.2.0")
    world.publish("1.3.0", content="1.0.0")
    world.settle()
    del world.hub.contents["1.3.0"]
    world.settle()

    assert (world.serving, world.record.min_version) == ("1.0.0", "1.3.0")
    assert world.outcomes("1.2.0") == []


@pytest.mark.fault("H5")
def test_another_pattern_makes_a_first_contact() -> None:
    """The minimal version of the old pattern says nothing about the new names."""
    world = World()
    world.install("1.0.0")
    world.with_rules(policy=ReleasePolicy(pattern=r"base-(\d+)", max_major_jump=0))
    world.publish("base-20230101", content=world.hub.contents["1.0.0"])
    world.publish("base-20220101")
    world.settle()
    assert world.record.min_version == "base-20230101"
    world.install("base-20240101")


@pytest.mark.fault("H6")
def test_an_imported_version_that_the_hub_has_with_other_content_raises_an_alarm() -> None:
    """It stays in the status until the hub has the known content again."""
    world = World()
    world.imported("1.0.0")
    world.publish("v1.0", content="other")
    world.settle()

    assert world.event_names().count("revision_republished") == 1
    rows = [(row.revision, row.known_digest, row.listed_digest) for row in world.record.watch.republished]
    assert rows == [("v1.0", source_of("1.0.0"), source_of("other"))]
    assert (world.serving, world.outcomes("v1.0")) == ("1.0.0", [])

    world.publish("v1.0", content="1.0.0")
    world.settle()
    assert world.record.watch.republished == ()


@pytest.mark.fault("H3")
def test_build_metadata_makes_no_newer_version_and_no_alarm() -> None:
    """Two builds of a version are two names for versions of the same rank."""
    world = World()
    world.install("1.0.0+cpu")
    world.publish("1.0.0+cuda")
    world.settle()
    assert world.committed == "1.0.0+cpu"
    assert "revision_republished" not in world.event_names()

    world.publish("1.0.0+cpu", Quality())
    world.settle()
    assert world.event_names().count("revision_republished") == 1


@pytest.mark.fault("H4")
def test_what_is_no_release_is_counted_and_named() -> None:
    """Many names, none of them acceptable."""
    world = World()
    for name in ("master", "v2-test", "v1.0.0.1", "stable"):
        world.publish(name)
    world.settle()
    watch = world.record.watch

    assert (watch.names, watch.left_out) == (4, 4)
    assert watch.left_out_names == ("v1.0.0.1", "v2-test", "master", "stable")
    assert watch.message == "4 names, none of them a release: v1.0.0.1, v2-test, master, stable"
    assert world.outcomes("master") == []


def test_a_request_by_digest_is_compared_with_the_minimal_version() -> None:
    """Whatever an operator calls it."""
    world = World()
    world.install("1.0.0")
    world.install("1.1.0")
    world.command(CommandKind.UPDATE, "1.0")
    assert world.last("command_refused").message.endswith("1.0 is older than 1.1.0, which was committed")

    world.publish("1.1.0", content="again")
    world.command(CommandKind.UPDATE, "1.1.0")
    world.settle()
    assert world.outcomes("1.1.0") == [Outcome.COMMITTED, Outcome.COMMITTED]
    assert world.serving == "again"
