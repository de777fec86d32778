"""The witness of the journal: a small checksummed file beside it, replaced as a whole.

It is written after a write of the journal that changed a protected state, and before the next one: it misses one write
at most. Reading tells a lost journal from a first start:
 1. No journal, but a witness: it was lost. No journal and no witness, but a committed pointer that an updater wrote, or
    that cannot be read: both were lost.
 2. A hot rollback journal (`journal.db-journal`) has the stamp of the write before the one that was interrupted: the
    journal must have it as its last stamp, or as the one before. Otherwise another file was put back, and SQLite would
    write pages of the lost journal into it.
 3. The journal's identity and its count of protected writes are those of the witness, see `updater.core.witness`.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from common.bundle import BundleBroken, Origin, read_committed
from common.durable import NotRegular, open_regular, read_bounded, write_atomic
from common.json_load import load_json
from updater.core.record import ModelRecord
from updater.core.witness import USABLE, Comparison, JournalIdentity, Witness, compare, make_witness
from updater.store.database import JournalLost, JournalNotWritten
from updater.store.record_json import RecordUnreadable, read, to_json

MAX_WITNESS_BYTES = 4 << 20
_CHECKSUM = "sha256"
_HOT = bytes.fromhex("d9d505f920a163d7")  # first bytes of a rollback journal that SQLite would apply
_HEAD_BYTES = 1 << 20  # of the journal and its rollback journal, in which the stamp is
_STAMP = re.compile(rb"stamp:([0-9a-f]{16}):([0-9a-f]{16})")  # of the write before, and of the last one


class WitnessBroken(ValueError):
    """The witness is damaged."""


def witness_path(journal: Path) -> Path:
    """The witness of a journal: `journal.witness` beside `journal.db`."""
    return journal.with_suffix(".witness")


def rollback_path(journal: Path) -> Path:
    """SQLite's rollback journal of a journal: `journal.db-journal`."""
    return journal.with_name(f"{journal.name}-journal")


def read_witness(path: Path) -> Witness | None:
    """Read a witness; None if there is none.

    Raises:
        WitnessBroken: it is damaged.
        OSError: it cannot be read.
    """
    try:
        row = load_json(read_bounded(path, MAX_WITNESS_BYTES))
        if row.pop(_CHECKSUM) != _checksum(row):
            raise WitnessBroken(f"{path.name} does not have its checksum")
        return read(Witness, row)
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError, RecordUnreadable) as error:
        raise WitnessBroken(f"{path.name} is damaged: {error}") from error


def write_witness(path: Path, witness: Witness) -> None:
    """Replace a witness, durably.

    Raises:
        OSError: it was not replaced.
    """
    row = to_json(witness)
    content = json.dumps({**row, _CHECKSUM: _checksum(row)}, ensure_ascii=False, indent=1)
    write_atomic(path, content.encode() + b"\n", mode=0o600)


class WitnessFile:
    """The witness of one open journal. Its caller serialises writes."""

    def __init__(self, journal: Path, on_renewed: Callable[[str], None], *, is_restored: bool = False) -> None:
        """Look at the files before the journal is opened (rules 1 and 2).

        Args:
            journal: path of the journal.
            on_renewed: called with a sentence when the witness was lost, damaged or older, and is written anew.
            is_restored: the journal replaces one that has committed something.

        Raises:
            JournalLost: a journal was lost or replaced.
            JournalNotWritten: the files cannot be examined now.
        """
        self._journal = journal
        self._path = witness_path(journal)
        self._on_renewed = on_renewed
        self._damage = ""
        self._witness: Witness | None = None
        self._is_written = True
        try:
            self._read()
            if os.path.lexists(journal):
                self._check_rollback_journal()
            elif not is_restored:
                self._check_never_written()
        except OSError as error:
            raise JournalNotWritten(f"the journal cannot be examined: {_describe(error)}") from error

    def open(self, identity: JournalIdentity, records: Callable[[], Iterable[ModelRecord]]) -> None:
        """Compare the opened journal with the witness, and bring that up to it (rule 3).

        Args:
            identity: of the journal.
            records: reads all records of the journal.

        Raises:
            JournalLost: the journal is older than the witness, or another one.
            JournalNotWritten: the witness cannot be written now.
        """
        found = compare(identity, self._witness)
        if found not in USABLE:
            what = "has forgotten what the witness knows: an older one was put back"
            what = what if found is Comparison.OLDER else "is another one than the witness knows"
            raise JournalLost(f"{self._journal.name} {what}")
        if found is not Comparison.SAME or self._witness is None:
            self.follow(make_witness(identity, records()))
        if found is Comparison.OUTDATED and (self._damage or identity.protected_writes):
            self._on_renewed(self._damage or f"{self._path.name} was missing or older than the journal")
        self.bring_up()

    @property
    def witness(self) -> Witness:
        """The witness's content, as it is or as it will be after `bring_up`.

        Raises:
            RuntimeError: the journal was not opened.
        """
        if self._witness is None:
            raise RuntimeError("the journal was not compared with its witness")
        return self._witness

    def follow(self, witness: Witness) -> None:
        """Note what the journal has written; `bring_up` writes it down."""
        self._witness, self._is_written = witness, False

    def bring_up(self) -> None:
        """Write the witness if it misses a write.

        Raises:
            JournalNotWritten: it cannot be written now.
        """
        if self._is_written:
            return
        try:
            write_witness(self._path, self.witness)
        except OSError as error:
            raise JournalNotWritten(f"the witness cannot be written: {_describe(error)}") from error
        self._is_written = True

    def check(self) -> None:
        """Write the witness again if it has disappeared."""
        if self._is_written and not self._path.exists():
            self._is_written = False
            self._on_renewed(f"{self._path.name} has disappeared")
            self.bring_up()

    def _read(self) -> None:
        try:
            self._witness = read_witness(self._path)
        except WitnessBroken as error:
            self._damage = str(error)

    def _check_never_written(self) -> None:
        if self._witness is not None or self._damage:
            raise JournalLost(f"{self._journal.name} is gone")
        try:
            rows = read_committed(self._journal.parent).values()
        except BundleBroken as error:
            message = f"there is no {self._journal.name}, and what is committed cannot be read: {error}"
            raise JournalLost(message) from error
        written = [row.revision for row in rows if row.origin is not Origin.IMPORT]
        if written:
            raise JournalLost(f"{self._journal.name} is gone, with its witness; {written[0]} was committed by it")

    def _check_rollback_journal(self) -> None:
        rollback = rollback_path(self._journal)
        head, found = _read_head(rollback), _STAMP.search(_read_head(self._journal))
        if not head.startswith(_HOT) or found is None:  # a build before this one wrote no stamps
            return
        before = _STAMP.search(head)
        if before is None or before[2] not in (found[1], found[2]):
            message = f"{rollback.name} was left by another {self._journal.name} than the one that is there now"
            raise JournalLost(f"{message}: if you have put {self._journal.name} back from a backup, move it away")


def _read_head(path: Path) -> bytes:
    """The beginning of a file; empty if there is none."""
    try:
        with open_regular(path) as file:
            return file.read(_HEAD_BYTES)
    except FileNotFoundError:
        return b""


def _describe(error: OSError) -> str:
    """Why the system refused, without a path; names the file if that is none."""
    return str(error) if isinstance(error, NotRegular) else (error.strerror or type(error).__name__).lower()


def _checksum(row: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(row, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
