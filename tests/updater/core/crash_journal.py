"""The journal of the small world and its witness: a write ahead of it, lost, replaced by an older one."""

from collections.abc import Iterator

from tests.updater.core.crash_world import World
from updater.core import witness as witnesses
from updater.core.record import ModelRecord
from updater.core.witness import Comparison, JournalIdentity

NEW, RESTORED = "new journal", "restored journal"


def with_witness(world: World) -> World:
    """The world with a witness; what its journal says now may be put back later."""
    witness = witnesses.make_witness(JournalIdentity(world.journal_id), [world.record])
    return world._replace(witness=witness, older=world.record)


def open_journal(world: World) -> World:
    """What a start of the updater finds: updates are stopped, or the witness is brought up."""
    if world.witness is None or world.is_stopped:
        return world
    identity = JournalIdentity(world.journal_id, world.protected_writes)
    found = witnesses.compare(identity, world.witness)
    if found not in witnesses.USABLE:
        return world._replace(is_stopped=True)
    if found is Comparison.SAME:
        return world
    return _remember(world._replace(witness=witnesses.make_witness(identity, [world.record])))


def write(before: World, after: World) -> World:
    """The world after a write of the journal, before that of the witness."""
    if before.witness is None or witnesses.protect(after.record) == witnesses.protect(before.record):
        return after
    return after._replace(protected_writes=before.protected_writes + 1)


def write_witness(after: World) -> World:
    """The world after the witness has followed the journal."""
    if after.witness is None:
        return after
    if after.witness.identity.protected_writes != after.protected_writes:
        after = after._replace(witness=after.witness.after_write(witnesses.protect(after.record)))
    return _remember(after)


def lose(world: World) -> Iterator[tuple[str, World]]:
    """What may befall the journal's file."""
    if world.witness is None or not world.budget.losses or world.is_stopped:
        return
    spent = world._replace(budget=world.budget._replace(losses=world.budget.losses - 1), has_begun=False, is_lost=True)
    yield "the journal is deleted", spent._replace(record=ModelRecord("model"), journal_id=NEW, protected_writes=0)
    if world.older is not None and world.journal_id == world.witness.identity.journal_id:
        yield "an older journal is put back", spent._replace(record=world.older, protected_writes=0)


def restore(world: World) -> World:
    """A person makes a new journal from the witness, and updates go on."""
    if world.witness is None:
        raise RuntimeError("there is no witness")
    kept = world.witness.state_of("model")
    record = ModelRecord(
        "model", min_version=kept.min_version, quarantine=kept.quarantine, replaced=kept.replaced, has_garbage=False
    )
    witness = witnesses.make_witness(JournalIdentity(RESTORED), [record])
    return world._replace(
        record=record,
        journal_id=RESTORED,
        protected_writes=0,
        witness=witness,
        has_begun=False,
        is_stopped=False,
    )


def _remember(world: World) -> World:
    """Note what must not be forgotten from now on."""
    bad = world.condemned | {row.source_digest for row in world.record.quarantine}
    return world._replace(condemned=bad - set(world.record.unquarantined), least=world.record.min_version)
