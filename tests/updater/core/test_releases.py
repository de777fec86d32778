"""Which revisions of the hub are taken."""

from itertools import pairwise

import pytest

from tests.updater.core.world import World
from tests.updater.simulators import Quality, source_of
from updater.core.effects import EffectFailure, FailureKind, Listed, PollHub
from updater.core.facts import CommandKind
from updater.core.record import Outcome, Stage
from updater.core.rules import Mode, ReleasePolicy
from updater.core.versions import is_after, parse_version
from updater.stages.choice import select_names

SEMVER = ReleasePolicy()


@pytest.mark.fault("R1")
def test_an_older_tag_is_no_update(world: World) -> None:
    """Only versions after the last committed one are."""
    world.publish("0.9.0")
    world.settle()

    assert world.committed == "1.0.0"
    assert world.outcomes("0.9.0") == []


@pytest.mark.fault("R2")
def test_what_is_committed_is_not_taken_again(world: World) -> None:
    """The same version and digest is a no-op, under the same name and with a prefix."""
    world.publish("v1.0.0", content=world.hub.contents["1.0.0"])
    world.settle()

    assert world.event_names().count("update_started") == 1


@pytest.mark.fault("R2")
def test_the_same_content_under_a_higher_version_is_not_taken(world: World) -> None:
    """Nothing would change but the name."""
    world.publish("1.1.0", content=world.hub.contents["1.0.0"])
    world.settle()

    assert world.committed == "1.0.0"
    assert "same content" in world.record.watch.message


@pytest.mark.fault("R3")
def test_a_revision_that_changes_while_it_is_fetched_waits_for_the_next_poll(world: World) -> None:
    """Neither an update nor a failure; its new content is taken then."""
    world.publish("1.1.0")
    world.tick_until(Stage.STAGING)
    world.publish("1.1.0", content="changed")
    world.settle()

    assert world.outcomes("1.1.0") == [Outcome.ABANDONED, Outcome.COMMITTED]
    assert world.record.failure_ages == ()


@pytest.mark.fault("R4")
def test_a_branch_is_no_release(world: World) -> None:
    """Only names that match the pattern are; what is left out is told by name, what looks like a version first."""
    for name in ("master", "main", "1", "release-1.1.0", "1.1.0.1", "01.1.0", ""):
        world.publish(name)
    world.settle()

    watch = world.record.watch
    assert world.event_names().count("update_started") == 1
    assert (watch.names, watch.left_out) == (8, 7)
    assert watch.left_out_names == ("01.1.0", "1", "1.1.0.1", "", "main")


@pytest.mark.fault("R5")
def test_a_prerelease_is_taken_only_if_policy_says_so(world: World) -> None:
    """And it comes before its release."""
    world.publish("1.1.0-rc.1")
    world.settle()
    assert world.committed == "1.0.0"

    world.with_rules(policy=ReleasePolicy(prereleases=True))
    world.settle()
    assert world.committed == "1.1.0-rc.1"


@pytest.mark.fault("R6")
def test_numbers_are_compared_as_numbers(world: World) -> None:
    """1.10.0 comes after 1.9.0."""
    world.install("1.9.0")
    world.install("1.10.0")

    assert world.record.min_version == "1.10.0"


@pytest.mark.fault("R7")
def test_a_prefix_makes_no_other_version(world: World) -> None:
    """v1.1.0 follows 1.0.0, and V1.1 is the same version."""
    world.install("v1.1.0")

    assert parse_version("V1.1", SEMVER) == parse_version("1.1.0", SEMVER)
    assert parse_version("v1.1.0", SEMVER) == parse_version("1.1.0", SEMVER)
    assert not is_after("1.1.0", "v1.1.0", SEMVER)


@pytest.mark.parametrize(
    "order",
    [
        ["1.0.0-alpha", "1.0.0-alpha.1", "1.0.0-alpha.beta", "1.0.0-beta", "1.0.0-beta.2", "1.0.0-beta.11", "1.0.0"],
        ["0.9.9", "1.0.0", "1.0.1", "1.1.0", "2.0.0"],
    ],
)
def test_the_order_is_that_of_semver(order: list[str]) -> None:
    """The specification's own example."""
    assert all(is_after(higher, lower, SEMVER) for lower, higher in pairwise(order))


def test_a_pattern_of_groups_orders_other_names() -> None:
    """As publishers of address models name them."""
    policy = ReleasePolicy(pattern=r"mgeo-base-v(\d+)-(\d{8})")

    assert is_after("mgeo-base-v1-20230815", "mgeo-base-v1-20221201", policy)
    assert is_after("mgeo-base-v10-20230101", "mgeo-base-v9-20231231", policy)
    assert parse_version("mgeo-large-v1-20230815", policy) is None


@pytest.mark.fault("R8")
def test_a_huge_version_that_fails_its_gate_blocks_nothing(world: World) -> None:
    """Only a commit raises the minimal version."""
    world.with_rules(policy=ReleasePolicy(max_major_jump=0))
    world.publish("999.0.0", Quality(right=2))
    world.settle()
    world.publish("1.2.4")
    world.settle()

    assert world.quarantined == {"999.0.0"}
    assert world.record.min_version == world.committed == "1.2.4"


@pytest.mark.fault("R9")
def test_a_major_jump_beyond_the_limit_is_not_taken(world: World) -> None:
    """Until an operator requests it."""
    world.publish("3.0.0")
    world.settle()
    assert world.committed == "1.0.0"
    assert "jumps" in world.record.watch.message

    world.command(CommandKind.UPDATE, "3.0.0")
    world.settle()
    assert world.committed == "3.0.0"


@pytest.mark.fault("R9")
def test_many_versions_beyond_the_limit_hide_no_other(world: World) -> None:
    """However many there are, the highest acceptable version is taken."""
    for minor in range(12):
        world.publish(f"3.{minor}.0")
    world.publish("1.1.0")
    world.settle()

    assert world.committed == "1.1.0"
    assert "3.11.0" in world.record.watch.message


@pytest.mark.fault("R11")
def test_the_newest_tag_deleted_changes_nothing(world: World) -> None:
    """What serves was committed here."""
    world.install("1.1.0")
    del world.hub.contents["1.1.0"]
    world.settle()

    assert world.serving == world.committed == "1.1.0"


@pytest.mark.fault("R12")
def test_of_two_new_tags_the_higher_is_taken(world: World) -> None:
    """The other one never serves."""
    world.publish("1.2.0")
    world.publish("1.1.0")
    world.settle()

    assert world.committed == "1.2.0"
    assert world.outcomes("1.1.0") == []


@pytest.mark.fault("R13")
def test_a_new_tag_in_observation_waits(world: World) -> None:
    """One update at a time; the newer one follows."""
    world.publish("1.1.0")
    world.tick_until(Stage.OBSERVING)
    world.publish("1.2.0")
    world.tick_until(Stage.COMMITTING)
    assert world.record.under_way.revision == "1.1.0"
    world.settle()

    assert world.outcomes("1.2.0") == world.outcomes("1.1.0") == [Outcome.COMMITTED]


@pytest.mark.fault("R14")
def test_a_quarantined_content_is_refused_under_a_higher_version(world: World) -> None:
    """Quarantine is by content."""
    world.publish("1.1.0", Quality(right=2))
    world.settle()
    world.publish("1.2.0", content=world.hub.contents["1.1.0"])
    world.settle()

    assert world.committed == "1.0.0"
    assert world.outcomes("1.2.0") == []


@pytest.mark.fault("R15")
def test_a_revision_that_is_still_being_uploaded_is_taken_when_it_is_complete(world: World) -> None:
    """Weights half a minute after the manifest: not ready, then committed."""
    world.publish("1.1.0")
    world.hub.unready.add("1.1.0")
    world.settle()
    assert "not complete" in world.record.watch.message
    assert world.outcomes("1.1.0") == []

    world.hub.unready.clear()
    world.settle()
    assert world.outcomes("1.1.0") == [Outcome.COMMITTED]


@pytest.mark.fault("R15")
def test_a_complete_revision_does_not_wait_for_a_higher_incomplete_one(world: World) -> None:
    """The higher one follows when it is complete."""
    world.publish("1.1.0")
    world.publish("1.2.0")
    world.hub.unready.add("1.2.0")
    world.settle()
    assert world.committed == "1.1.0"


@pytest.mark.fault("R16")
def test_a_known_version_with_another_digest_raises_an_alarm_and_no_update(world: World) -> None:
    """Once; neither committed nor refused content changes under its version."""
    world.publish("1.1.0", Quality(right=2))
    world.settle()
    world.publish("1.1.0")
    world.publish("1.0.0")
    world.settle()

    assert world.event_names().count("revision_republished") == 2
    assert world.committed == "1.0.0"
    assert world.outcomes("1.1.0") == [Outcome.REFUSED]


@pytest.mark.fault("R16")
def test_an_operator_may_request_a_republished_version(world: World) -> None:
    """A person has checked it."""
    world.publish("1.1.0", Quality(right=2))
    world.settle()
    world.command(CommandKind.UNQUARANTINE, source_of(world.hub.contents["1.1.0"]))
    world.publish("1.1.0")
    world.command(CommandKind.UPDATE, "1.1.0")
    world.settle()

    assert world.committed == "1.1.0"


def _starts_after_upgrade(world: World) -> None:
    """The same files on the hub, but the new build counts more of them; the journal is the earlier build's."""
    for revision, content in list(world.hub.contents.items()):
        world.hub.former[f"{content} and more"] = content
        world.publish(revision, world.qualities[content], content=f"{content} and more")
    world.stop_updater()
    assert world.disk.record is not None
    world.disk.record.pop("former")
    world.start_updater()
    world.settle()


@pytest.mark.fault("R16")
def test_contents_that_an_earlier_build_recorded_are_recognised(world: World) -> None:
    """More files count in the source digest now: no alarm about known versions, and no second attempt of a bad one."""
    world.publish("1.1.0", Quality(right=2))
    world.settle()

    _starts_after_upgrade(world)

    assert world.event_names().count("revision_republished") == 0
    assert world.outcomes("1.1.0") == [Outcome.REFUSED]
    assert world.committed == "1.0.0"
    assert [row.source_digest for row in world.record.quarantine] == [source_of(world.hub.contents["1.1.0"])]


@pytest.mark.fault("R16")
def test_another_content_after_an_upgrade_is_still_an_alarm(world: World) -> None:
    """Only contents that the earlier build recorded are recognised by what it took them for."""
    world.publish("1.1.0", Quality(right=2))
    world.settle()
    _starts_after_upgrade(world)

    bad = world.hub.contents["1.1.0"]
    world.publish("1.1.0", content="one more file")
    world.hub.former["one more file"] = bad
    world.settle()

    assert world.event_names().count("revision_republished") == 1
    assert [row.source_digest for row in world.record.quarantine] == [source_of(bad)]


@pytest.mark.fault("R16")
def test_a_content_is_not_taken_for_a_quarantined_one_that_this_build_has_tried(world: World) -> None:
    """A release that adds only the missing tokenizer file to a bad one is tried."""
    world.publish("1.1.0", Quality(right=2))
    world.settle()

    world.publish("1.2.0", content="mended")
    world.hub.former["mended"] = world.hub.contents["1.1.0"]
    world.settle()

    assert world.committed == "1.2.0"


@pytest.mark.fault("H23")
def test_names_that_are_ignored_are_noted(world: World) -> None:
    """The event of the download has the note; the revision is committed."""
    world.hub.beside = ("README.md", "readme.md")
    world.publish("1.1.0")
    world.settle()

    evidence = world.last("revision_staged").evidence
    assert evidence is not None
    assert evidence.notes == ("'README.md', 'readme.md' differ in case or Unicode form alone; they are not fetched",)
    assert world.committed == "1.1.0"


def test_policy_deny_and_pin(world: World) -> None:
    """What policy excludes is not taken, however new."""
    world.publish("1.1.0")
    world.publish("1.2.0")
    world.publish("1.3.0")
    world.with_rules(policy=ReleasePolicy(deny=("1.3.0",), pin="1.1.0"))
    world.settle()
    assert world.committed == "1.1.0"

    world.with_rules(policy=ReleasePolicy(deny=("1.3.0",)))
    world.settle()
    assert world.committed == "1.2.0"


def test_mode_manual_takes_nothing_by_itself(world: World) -> None:
    """But shows what is newest."""
    world.with_rules(mode=Mode.MANUAL)
    world.publish("1.1.0")
    world.settle()

    assert world.committed == "1.0.0"
    assert world.record.watch.newest == "1.1.0"


def test_one_poll_lists_only_names_that_may_be_taken() -> None:
    """However many tags there are."""
    names = [f"1.{number}.0" for number in range(200)] + ["master"]
    look = PollHub(SEMVER, min_version="1.100.0", committed_revision="1.100.0", quarantined_revisions=("1.199.0",))

    chosen = select_names(names, look)

    assert chosen == ("1.198.0", "1.197.0", "1.196.0", "1.195.0", "1.194.0", "1.199.0", "1.100.0")
    assert select_names(["1.101.0"], PollHub(SEMVER, "1.100.0", "1.100.0", only="9.9.9")) == ()


def test_an_empty_listing_is_an_answer(world: World) -> None:
    """The hub breaker stays closed, and nothing changes."""
    world.hub.contents.clear()
    world.settle()

    assert world.serving == "1.0.0"
    assert Listed((), ()) == Listed((), ())


def test_a_revision_deleted_between_two_calls_is_no_failure_of_the_hub(world: World) -> None:
    """The breaker does not count it."""
    world.hub.faults = [EffectFailure(FailureKind.PERMANENT, "REVISION_UNKNOWN")]
    world.command(CommandKind.CHECK_NOW)
    world.settle()

    assert world.record.hub.failures == 0
