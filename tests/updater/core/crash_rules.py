"""What must hold in the small world: in every state, in every step, and at rest."""

from collections.abc import Iterator

from tests.updater.core.crash_world import FIRST, RULES, Kind, World
from updater.pipeline.versions import is_after, version_of
from updater.record import HeldFor, Stage


def broken(world: World) -> Iterator[str]:
    """What is wrong with a state."""
    pointer, record, front = world.pointer, world.record, world.front
    if pointer is not None:
        if pointer.bundle_digest not in world.sealed:
            yield "the pointer names a bundle that is not there"
        if world.kind_of(pointer.bundle_digest) not in (Kind.GOOD, Kind.DOUBTED):
            yield "a bad model is committed"
    if record.committed is not None and record.committed.bundle_digest not in world.sealed:
        yield "what is committed is not on disk"
    if record.committed is not None and record.is_quarantined(record.committed.source_digest):
        yield "what is committed is in quarantine"
    if front.serving and world.kind_of(front.serving) in (Kind.CORRUPT, Kind.REFUSED):
        yield "callers meet what failed verification or its gate"
    if front.is_up and pointer is not None and not front.serving:
        yield "nothing answers"
    if not world.crashed:
        bad = {row.source_digest for row in (*world.hub, *world.coming, FIRST) if row.kind in (Kind.GOOD, Kind.DOUBTED)}
        if any(row.source_digest in bad for row in record.quarantine):
            yield "a good revision is in quarantine though nothing has crashed"


def wrong(before: World, effect: World, after: World) -> list[str]:
    """What is wrong with a step."""
    rules: list[str] = []
    record = before.record
    floors = (record.floor, after.record.floor)
    if floors[0] != floors[1] and not is_after(floors[1], floors[0], RULES.policy):
        rules.append("the version floor went down")
    if floors[0] != floors[1] and after.record.stage is not Stage.IDLE:
        rules.append("the version floor rose without a commit")
    began = effect.front.on_trial and not before.front.on_trial
    if began:
        source = effect.front.serving.replace("bundle", "source", 1)
        if record.is_quarantined(source):
            rules.append("a quarantined source digest is activated again")
        is_committed = record.committed is not None and record.committed.bundle_digest == effect.front.serving
        if not is_committed and record.stage is not Stage.ACTIVATING:
            rules.append("a trial begins before it is written down")
    moved = effect.pointer != before.pointer
    if moved and effect.pointer != record.committed and record.stage is not Stage.COMMITTING:
        rules.append("the pointer moves before a commit is written down")
    return rules


def restless(world: World) -> Iterator[str]:
    """What is wrong with a world at rest."""
    record, front = world.record, world.front
    committed = "" if record.committed is None else record.committed.bundle_digest
    if record.stage not in (Stage.IDLE, Stage.HELD):
        yield "an update is never finished"
    if front.serving != committed:
        yield "at rest another model serves than is committed"
    if world.pointer != record.committed:
        yield "at rest the pointer is not what is committed"
    if front.on_trial:
        yield "at rest a trial goes on"
    if any(bundle and number != front.active for number, bundle in enumerate(front.slots)):
        yield "at rest a slot is left over"
    if front.serving and world.kind_of(front.serving) not in (Kind.GOOD, Kind.DOUBTED):
        yield "at rest a bad model serves"
    if record.stage is Stage.HELD and record.under_way.reason not in (HeldFor.AGREEMENT, HeldFor.FRONT_CRASHED):
        yield f"it is held for {record.under_way.reason}"
    if record.stage is Stage.IDLE and not record.on_hold:
        yield from _untaken(world)


def _untaken(world: World) -> Iterator[str]:
    """A healthy cycle takes the newest good revision without help."""
    record = world.record
    for row in world.hub:
        version = version_of(row.revision, RULES.policy)
        known = None if version is None else record.known_digests.get(version.text)
        is_new = is_after(row.revision, record.floor, RULES.policy)
        is_itself = known in (None, row.source_digest) and not record.is_quarantined(row.source_digest)
        if row.kind is Kind.GOOD and is_new and is_itself:
            yield "a good revision is never taken"
