"""A branch is followed by its content."""

import pytest

from tests.updater.core.world import World
from tests.updater.simulators import Quality, source_of
from updater.core.facts import CommandKind
from updater.core.record import HeldFor, Outcome, Stage
from updater.core.rules import Mode, ReleasePolicy
from updater.stages.commands import Refusal

BRANCH = "master"
COMMIT = "5e8c4ac9d1f20b7730c8a4b8d4a1c0ffee123456"


@pytest.fixture
def world() -> World:
    """The first content of master is committed."""
    made = World()
    made.with_rules(policy=ReleasePolicy(branch=BRANCH))
    push(made, "one")
    made.settle()
    assert committed(made) == "one"
    return made


def push(world: World, content: str, quality: Quality | None = None) -> None:
    """Let master have a content."""
    world.publish(BRANCH, quality or world.qualities.get(content), content=content)


def committed(world: World) -> str:
    """The committed content."""
    row = world.record.committed
    return "" if row is None else row.source_digest.removeprefix("source ")


def held_for(world: World) -> HeldFor | None:
    """Why the update is held."""
    update = world.record.update
    return None if world.stage is not Stage.HELD or update is None or update.ending is None else update.ending.held_for


@pytest.mark.fault("H1")
def test_five_contents_of_a_branch_are_taken_one_after_the_other(world: World) -> None:
    """The name is the same each time; a minimal version is never set by it."""
    for content in ("two", "three", "four", "five"):
        push(world, content)
        world.settle()
        assert committed(world) == content

    assert world.event_names().count("update_committed") == 5
    assert world.committed.startswith("master@")
    assert world.record.min_version == ""


@pytest.mark.fault("H1")
def test_a_bad_content_is_never_taken_again_under_any_name(world: World) -> None:
    """Quarantine is by content: of the branch, of a tag, and by an operator's request; the next good one is taken."""
    push(world, "bad", Quality(right=2))
    world.settle()
    push(world, "two")
    world.settle()
    push(world, "bad")
    world.publish("v1.0.0", world.qualities["bad"], content="bad")
    world.settle()

    for name in (BRANCH, "v1.0.0", source_of("bad")):
        world.command(CommandKind.UPDATE, name)
        world.settle()
        assert world.event_names()[-1] == ("revision_quarantined" if name != source_of("bad") else "revision_unknown")
    assert committed(world) == "two"
    push(world, "three")
    world.settle()
    assert committed(world) == "three"
    assert world.event_names().count("candidate_refused") == 1


@pytest.mark.fault("H1")
def test_a_replayed_content_is_held_and_the_next_new_one_is_taken(world: World) -> None:
    """An old mirror shows what was committed and replaced: a person must decide, until something new comes."""
    push(world, "two")
    world.settle()
    push(world, "one")
    world.settle()
    assert held_for(world) is HeldFor.SEEN_BEFORE
    assert "older content" in world.record.under_way.message
    assert (committed(world), world.serving) == ("two", "two")

    push(world, "three")
    world.settle()
    assert committed(world) == "three"


@pytest.mark.fault("H1")
def test_a_hold_ends_when_the_branch_has_the_committed_content_again(world: World) -> None:
    """The wrong mirror is gone: nothing is left to decide."""
    push(world, "two")
    world.settle()
    push(world, "one")
    world.settle()
    push(world, "two")
    world.settle()

    assert world.stage is Stage.IDLE
    assert world.last("update_abandoned").update is not None
    assert committed(world) == "two"


@pytest.mark.fault("H1")
def test_a_replayed_content_is_taken_when_it_is_approved(world: World) -> None:
    """The publisher has gone back on purpose. What the gate finds is another decision."""
    push(world, "two")
    world.settle()
    push(world, "one")
    world.settle()
    world.command(CommandKind.APPROVE, source_of("one"))
    world.settle()
    assert committed(world) == "one"

    push(world, "two", Quality(agrees=2))
    world.settle()
    assert held_for(world) is HeldFor.SEEN_BEFORE
    world.command(CommandKind.APPROVE, source_of("two"))
    world.settle()
    assert held_for(world) is HeldFor.AGREEMENT


@pytest.mark.fault("H1")
def test_an_old_content_is_held_after_a_restart_of_the_updater(world: World) -> None:
    """What was replaced is in the record."""
    push(world, "two")
    world.settle()
    world.stop_updater()
    world.start_updater()
    push(world, "one")
    world.settle()

    assert held_for(world) is HeldFor.SEEN_BEFORE


def test_a_content_taken_back_by_hand_comes_back_only_out_of_quarantine(world: World) -> None:
    """A rollback names a content; taken out of quarantine, it is tried like a new one."""
    push(world, "two")
    world.settle()
    assert _reason(world.command(CommandKind.ROLLBACK, source_of("one"))) == "OTHER_REVISION"
    assert world.command(CommandKind.ROLLBACK, source_of("two")) is None
    world.command(CommandKind.RESUME)
    world.settle()
    assert committed(world) == "one"
    assert "quarantine" in world.record.watch.message

    world.command(CommandKind.UNQUARANTINE, source_of("two"))
    world.settle()
    assert committed(world) == "two"


def test_an_operator_names_a_branch_a_commit_or_a_digest(world: World) -> None:
    """A branch that shows an old content is held, since its name does not say which; a commit id or digest says it."""
    push(world, "two")
    world.settle()
    push(world, "one")
    world.with_rules(policy=ReleasePolicy(branch=BRANCH), mode=Mode.MANUAL)
    world.command(CommandKind.UPDATE, BRANCH)
    world.settle()
    assert held_for(world) is HeldFor.SEEN_BEFORE

    world.hub.commits[COMMIT] = "one"
    world.command(CommandKind.UPDATE, COMMIT[:9])
    world.settle()
    assert committed(world) == "one"
    assert world.record.committed is not None
    assert world.record.committed.commit_id == COMMIT

    world.hub.commits[COMMIT[::-1]] = "zero"
    world.qualities["zero"] = Quality()
    world.command(CommandKind.UPDATE, COMMIT[::-1])
    world.settle()
    assert (committed(world), world.committed) == ("zero", COMMIT[::-1])


@pytest.mark.parametrize("mode", ["branch", "releases"])
def test_a_branch_may_be_requested_again_and_again(mode: str) -> None:
    """`updates update master` compares contents; the minimal version stays that of the releases."""
    world = World()
    world.with_rules(policy=ReleasePolicy(branch=BRANCH if mode == "branch" else ""), mode=Mode.MANUAL)
    for content in ("one", "two", "three"):
        push(world, content)
        assert world.command(CommandKind.UPDATE, BRANCH) is None
        world.settle()
        assert committed(world) == content
    world.command(CommandKind.UPDATE, BRANCH)
    world.settle()

    assert world.event_names()[-1] == "revision_committed"
    assert world.record.min_version == ""


def test_a_branch_that_moves_while_it_is_fetched_is_listed_anew(world: World) -> None:
    """Neither content is blamed."""
    push(world, "two")
    world.tick_until(Stage.STAGING)
    push(world, "three")
    world.settle()

    assert committed(world) == "three"
    assert world.quarantined == set()


def test_a_policy_denies_and_pins_contents(world: World) -> None:
    """By digest, since a branch has no other name for them."""
    world.with_rules(policy=ReleasePolicy(branch=BRANCH, deny=(source_of("two"),)))
    push(world, "two")
    world.settle()
    assert (committed(world), "denies" in world.record.watch.message) == ("one", True)

    world.with_rules(policy=ReleasePolicy(branch=BRANCH, pin=source_of("three")))
    world.settle()
    assert (committed(world), "pins" in world.record.watch.message) == ("one", True)
    push(world, "three")
    world.settle()
    assert committed(world) == "three"


def test_a_branch_that_is_gone_is_told(world: World) -> None:
    """With what the hub has instead."""
    del world.hub.contents[BRANCH]
    world.publish("main", content="one")
    world.settle()

    assert world.record.watch.message == "the hub has no master; it has main"
    assert world.record.watch.left_out_names == ("main",)
    assert world.serving == "one"


@pytest.mark.fault("H5")
def test_a_branch_that_never_had_the_committed_content_is_held_first() -> None:
    """It may be older than what was imported."""
    world = World()
    world.with_rules(policy=ReleasePolicy(branch=BRANCH))
    world.imported("from-the-lab")
    push(world, "one")
    world.settle()
    assert held_for(world) is HeldFor.FIRST_CONTACT
    assert "newer or older" in world.record.under_way.message
    assert world.serving == "from-the"

    world.command(CommandKind.APPROVE, source_of("one"))
    world.settle()
    push(world, "two")
    world.settle()
    assert committed(world) == "two"
    assert world.outcomes("master@source t") == [Outcome.COMMITTED]


@pytest.mark.fault("H5")
def test_an_imported_content_that_the_branch_has_is_followed_from_there() -> None:
    """It is recognised, whatever name it was imported under."""
    world = World()
    world.with_rules(policy=ReleasePolicy(branch=BRANCH))
    world.imported("lab")
    push(world, "lab")
    world.settle()
    push(world, "two")
    world.settle()

    assert committed(world) == "two"


def _reason(refusal: Refusal | None) -> str:
    return "" if refusal is None else refusal.reason
