"""State on disk: records, pointers and bundles, also malformed ones."""

import errno
import json
import math
import os

import pytest

from tests.updater.core.world import World
from tests.updater.simulators import Quality, bundle_of
from updater.core.breaker import BreakerName, assume_safe
from updater.core.facts import CommandKind
from updater.core.ports import EffectFailed
from updater.core.record import HeldFor, Measured, ModelRecord, Outcome, Stage
from updater.store.record_json import RecordUnreadable, from_json, read, to_json


def test_a_record_without_costs_is_read(world: World) -> None:
    """An updater that is replaced during a trial continues it."""
    world.passes(30.0)
    world.publish("1.1.0")
    world.tick_until(Stage.OBSERVING)
    row = to_json(world.record)
    del row["update"]["may_be_slower"]
    for name in ("latency_bounds", "costs"):
        del row["update"]["at_activation"][name]

    assert from_json(row) == world.record


def held_for(world: World) -> HeldFor | None:
    """Reason for which the update is held."""
    assert Stage.HELD is world.stage, world.event_names()[-6:]
    ending = world.record.under_way.ending
    return None if ending is None else ending.held_for


@pytest.mark.fault("D9")
@pytest.mark.parametrize("reason", ["LOAD_FAILED", "BUNDLE_BROKEN"])
def test_a_committed_bundle_that_no_longer_loads_is_reverted(world: World, reason: str) -> None:
    """After bounded respawns; held, and the minimal version is kept."""
    world.install("1.1.0")
    content = world.hub.contents["1.1.0"]
    world.qualities[content] = Quality(loads=reason)
    if reason == "BUNDLE_BROKEN":
        world.disk.sealed.remove(bundle_of(content))
    world.crash_server()
    for _ in range(20):
        world.tick()
        if world.server.serving == "" and world.server.active >= 0:
            world.server.respawns()
    world.settle()

    assert HeldFor.COMMITTED_BROKEN is held_for(world)
    assert world.committed == world.serving == "1.0.0"
    assert world.record.min_version == "1.1.0"

    world.publish("1.2.0")
    world.settle()
    assert world.committed == "1.0.0", "a newer revision waits for a person"
    world.command(CommandKind.RESUME)
    world.settle()
    assert world.committed == "1.2.0"


@pytest.mark.fault("D10")
def test_a_failed_reconversion_blocks_its_bundle_and_not_the_source(world: World) -> None:
    """The old bundle serves on, and the next release is taken."""
    before = world.record.committed
    content = world.hub.contents["1.0.0"]
    world.store.converter = "2"
    world.qualities[bundle_of(content, "2")] = Quality(right=2)
    world.settle()

    assert HeldFor.CONVERSION is held_for(world)
    assert (bundle_of(content, "2"),) == world.record.blocked
    assert world.quarantined == set()
    assert before == world.record.committed

    world.install("1.1.0")


def test_a_good_reconversion_is_committed(world: World) -> None:
    """The same source, another bundle."""
    world.store.converter = "2"
    world.settle()

    assert world.record.committed is not None
    assert bundle_of(world.hub.contents["1.0.0"], "2") == world.record.committed.bundle_digest
    assert world.record.min_version == "1.0.0"


def test_a_pointer_without_a_record_is_adopted(empty: World) -> None:
    """An imported bundle is where updates start."""
    empty.imported("1.0.0")
    empty.settle()
    assert empty.record.min_version == empty.committed == "1.0.0"


@pytest.mark.parametrize("is_readable", [True, False])
def test_a_pointer_that_disagrees_is_repaired_from_the_record(world: World, *, is_readable: bool) -> None:
    """The record is the truth."""
    world.install("1.1.0")
    world.disk.pointer = world.record.previous
    world.disk.pointer_is_readable = is_readable
    world.crash_server()
    world.start_updater()
    world.settle()

    assert world.record.committed == world.disk.pointer
    assert world.serving == "1.1.0"


@pytest.mark.fault("K3")
def test_a_pointer_lost_during_a_commit_is_written_again(empty: World) -> None:
    """The server has committed already, so the commit is completed."""
    empty.publish("1.0.0")
    empty.tick_until(Stage.COMMITTING)
    empty.tick()
    empty.tick(dies="after")
    empty.disk.pointer_is_readable = False
    empty.settle()

    assert empty.serving == empty.committed == "1.0.0"


@pytest.mark.fault("K3")
def test_a_server_restarted_with_the_new_pointer_keeps_the_commit(world: World) -> None:
    """Although the pointer is unreadable since then."""
    world.publish("1.1.0")
    world.tick_until(Stage.COMMITTING)
    while world.tick() != "WritePointer":
        pass
    world.crash_server()
    world.disk.pointer_is_readable = False
    world.start_updater()
    for _ in range(3):
        world.tick()
        assert world.serving == "1.1.0"
    world.settle()
    assert world.serving == world.committed == "1.1.0"
    assert world.disk.pointer_is_readable


POINTER_FAULTS = (
    OSError(errno.ESTALE, os.strerror(errno.ESTALE)),
    EffectFailed.denied("POINTER_TOO_NEW", "committed.json was written by a newer hotslot"),
)


@pytest.mark.fault("H15")
@pytest.mark.fault("D6")
@pytest.mark.parametrize("fault", POINTER_FAULTS, ids=["stale", "newer"])
def test_a_pointer_that_cannot_be_read_now_is_not_written_and_not_none(empty: World, fault: Exception) -> None:
    """What was imported is adopted once it can be read; until then the status says why, and no first update begins."""
    empty.imported("1.0.0")
    imported = empty.disk.pointer
    empty.publish("1.1.0")
    empty.disk.pointer_fault = fault
    for _ in range(20):
        empty.tick()
    assert (empty.disk.pointer, empty.record.update) == (imported, None)
    assert empty.loop.publisher.snapshot.fault.startswith("the committed pointer cannot be read: ")
    assert empty.command(CommandKind.PAUSE) is None

    empty.disk.pointer_fault = None
    assert empty.command(CommandKind.RESUME) is None
    empty.settle()
    assert empty.record.previous == imported
    assert empty.committed == "1.1.0"


@pytest.mark.fault("H15")
@pytest.mark.parametrize("fault", POINTER_FAULTS, ids=["stale", "newer"])
def test_a_commit_waits_for_a_pointer_that_cannot_be_read_now(world: World, fault: Exception) -> None:
    """It may have been written already: the commit is neither repeated nor rolled back."""
    world.publish("1.1.0")
    world.tick_until(Stage.COMMITTING)
    events = len(world.disk.events)
    world.disk.pointer_fault = fault
    for _ in range(3):
        world.tick()
    assert (world.record.stage, len(world.disk.events)) == (Stage.COMMITTING, events)

    world.disk.pointer_fault = None
    world.settle()
    assert world.serving == world.committed == "1.1.0"


@pytest.mark.fault("H15")
@pytest.mark.parametrize("is_written", [True, False])
def test_a_commit_outlasts_a_pointer_that_cannot_be_read_for_long(
    world: World,
    is_written: bool,  # noqa: FBT001
) -> None:
    """If it was written, a rollback would take back what is committed. The trial's lease is extended meanwhile."""
    world.publish("1.1.0")
    world.tick_until(Stage.COMMITTING)
    if is_written:
        world.disk.pointer = world.record.under_way.installed
    world.disk.pointer_fault = POINTER_FAULTS[0]
    for _ in range(600):
        world.passes(1.0)
        world.tick()
    assert (world.stage, world.serving) == (Stage.COMMITTING, "1.1.0")

    world.disk.pointer_fault = None
    world.settle()
    assert world.serving == world.committed == "1.1.0"
    assert world.outcomes("1.1.0") == [Outcome.COMMITTED]
    assert "rollback_began" not in world.event_names()


@pytest.mark.fault("H15")
def test_what_the_journal_has_committed_is_committed_while_the_pointer_cannot_be_read(world: World) -> None:
    """A server that started with another revision would otherwise return to it when the lease of the trial ends."""
    world.install("1.1.0")
    world.disk.pointer = world.record.previous
    world.crash_server()
    world.disk.pointer_fault = POINTER_FAULTS[0]
    for _ in range(20):
        world.tick()
    server = world.facts().server
    assert server is not None
    assert (world.serving, server.trial) == ("1.1.0", None)


def test_a_malformed_pointer_is_left_to_people_while_nothing_is_committed(empty: World) -> None:
    """The updater has no row for it, and its rows may be of an import."""
    empty.imported("1.0.0")
    empty.disk.pointer_is_readable = False
    for _ in range(20):
        empty.tick()
    assert not empty.disk.pointer_is_readable


@pytest.mark.fault("D7")
def test_files_without_references_are_collected(world: World) -> None:
    """The last two committed bundles are kept."""
    for minor in (1, 2, 3):
        world.install(f"1.{minor}.0")
    world.disk.staged["orphan"] = "left behind"
    world.start_updater()
    world.settle()

    kept = {bundle_of(world.hub.contents[revision]) for revision in ("1.2.0", "1.3.0")}
    assert kept == world.disk.sealed
    assert world.disk.staged == {}


@pytest.mark.fault("D1")
def test_a_full_disk_blames_no_revision(world: World) -> None:
    """When there is room the update continues."""
    world.publish("1.1.0")
    world.disk.is_full = True
    for _ in range(30):
        world.tick()
    assert world.serving == "1.0.0"

    world.disk.is_full = False
    world.settle(3000.0)
    assert world.committed == "1.1.0"
    assert world.quarantined == set()


@pytest.mark.fault("D2")
def test_no_effect_is_performed_while_the_record_cannot_be_written(world: World) -> None:
    """The record is written before the next effect."""
    world.publish("1.1.0")
    world.tick_until(Stage.GATING)
    world.disk.journal_fails = True
    activated = len(world.server.activated)
    for _ in range(30):
        world.tick()

    assert activated == len(world.server.activated)


def test_a_record_reads_back_as_it_was_written(world: World) -> None:
    """At every stage of a whole update."""
    world.publish("1.1.0")
    while world.committed != "1.1.0":
        world.tick()
        assert from_json(to_json(world.record)) == world.record


@pytest.mark.fault("D6")
@pytest.mark.parametrize(
    "change",
    [
        {"schema_version": 3},
        {"schema_version": None},
        {"stage": "FLYING"},
        {"min_version": 7},
        {"extra": 1},
        {"model": None},
    ],
)
def test_a_malformed_record_is_refused(change: dict[str, object]) -> None:
    """It must not steer any decision."""
    with pytest.raises(RecordUnreadable):
        from_json({**to_json(ModelRecord("shapes")), **change})


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "-5", "-0.001", "9" * 400])
@pytest.mark.parametrize("key", ["seconds_to_poll", "warm_seconds_left"])
def test_a_wait_that_is_no_time_is_refused(key: str, text: str) -> None:
    """A wait without end, or a negative one, would control updates."""
    row = to_json(ModelRecord("shapes"))
    place = row["watch"] if key == "seconds_to_poll" else row
    place[key] = json.loads(text)
    with pytest.raises(RecordUnreadable, match=key):
        from_json(row)


def test_a_breaker_whose_wait_is_no_time_is_replaced_by_the_safe_one(world: World) -> None:
    """As one that cannot be read for another reason."""
    row = to_json(world.record)
    row["hub"]["left_seconds"] = json.loads("9" * 400)
    safe = assume_safe(BreakerName.HUB, world.rules.breakers[BreakerName.HUB])
    assert from_json(row, world.rules).hub == safe


def test_a_number_may_be_infinite_but_not_undefined() -> None:
    """A share of nothing has no bound; NaN would make every comparison false."""
    number = Measured("cost", math.inf, None, 20.0, passed=False)
    row = json.loads(json.dumps(to_json(number)))
    assert read(Measured, row) == number
    with pytest.raises(RecordUnreadable):
        read(Measured, {**row, "candidate": math.nan})
