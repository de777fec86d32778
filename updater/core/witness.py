"""What must never be forgotten, and how a journal compares with its witness. Pure.

The witness is a second, small file. It has the journal's identity and each model's minimal version, quarantine and
replaced contents. A journal that is older than its witness, or another one, would let a bad revision come back: updates
stop until a person has decided.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum

from updater.core.known import Replaced
from updater.core.record import ModelRecord, Quarantined


@dataclass(frozen=True, slots=True)
class ProtectedState:
    """The parts of a model's record that the witness keeps."""

    model: str
    min_version: str = ""
    quarantine: tuple[Quarantined, ...] = ()
    replaced: tuple[Replaced, ...] = ()  # contents that were committed before


@dataclass(frozen=True, slots=True)
class JournalIdentity:
    """Identifies a journal, and tells an older copy of it from a newer one."""

    journal_id: str  # drawn when it was created
    protected_writes: int = 0  # writes that changed a protected state


@dataclass(frozen=True, slots=True)
class Witness:
    """The content of the witness."""

    identity: JournalIdentity
    models: tuple[ProtectedState, ...] = ()  # without models that have nothing to protect

    def state_of(self, model: str) -> ProtectedState:
        """The protected state of a model."""
        return next((row for row in self.models if row.model == model), ProtectedState(model))

    def after_write(self, state: ProtectedState) -> "Witness":
        """The witness after a write that changed the protected state of a model."""
        identity = replace(self.identity, protected_writes=self.identity.protected_writes + 1)
        return replace(self, identity=identity, models=_sorted([*self._others(state.model), state]))

    def _others(self, model: str) -> list[ProtectedState]:
        return [row for row in self.models if row.model != model]


class Comparison(StrEnum):
    """How a journal compares with its witness."""

    SAME = "SAME"  # both know the same
    LAGGING = "LAGGING"  # the witness misses the last write, as after a crash between the two
    OUTDATED = "OUTDATED"  # the witness misses more, or there is none: it was lost, or an older one was put back
    OLDER = "OLDER"  # the journal has forgotten: an older one was put back
    FOREIGN = "FOREIGN"  # it is another journal


# The journal is used, and the witness is brought up to it; the others stop all updates.
USABLE = frozenset({Comparison.SAME, Comparison.LAGGING, Comparison.OUTDATED})


def compare(journal: JournalIdentity, witness: Witness | None) -> Comparison:
    """Compare a journal that was opened with the witness beside it; None if there is none."""
    if witness is None:
        return Comparison.OUTDATED
    if witness.identity.journal_id != journal.journal_id:
        return Comparison.FOREIGN
    missed = journal.protected_writes - witness.identity.protected_writes
    if missed < 0:
        return Comparison.OLDER
    if missed == 0:
        return Comparison.SAME
    return Comparison.LAGGING if missed == 1 else Comparison.OUTDATED


def protect(record: ModelRecord) -> ProtectedState:
    """The protected state of a record."""
    return ProtectedState(record.model, record.min_version, record.quarantine, record.replaced)


def make_witness(identity: JournalIdentity, records: Iterable[ModelRecord]) -> Witness:
    """The witness of a journal with these records."""
    states = (protect(record) for record in records)
    return Witness(identity, _sorted([row for row in states if row != ProtectedState(row.model)]))


def _sorted(states: Iterable[ProtectedState]) -> tuple[ProtectedState, ...]:
    return tuple(sorted(states, key=lambda row: row.model))
