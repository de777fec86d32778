"""The journal's file: SQLite with a rollback journal and one connection; a commit is on disk when the call returns.

Rules that make it safe:
 1. One connection, held under an exclusive lock: no other process reads or writes the file meanwhile.
 2. Rollback journal and synchronous=EXTRA: a commit that has returned survives a power cut.
 3. Each change is one `BEGIN IMMEDIATE … COMMIT`; a failed one is rolled back and changes nothing.
 4. A new file appears by rename, with its tables in it: an empty or incomplete file is damage, never a new journal.
 5. What cannot be read, or was written by a newer schema, is left exactly as it is.
 6. An older schema is upgraded step by step; each step is one transaction.
 7. A file that is gone, older or another one is no first start: see `witness`.
"""

import contextlib
import os
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from common.durable import describe_odd_entry, sync_folder
from common.schema import describe_schema
from updater.core.ports import JournalUnusable

JOURNAL_SCHEMA = 3
APPLICATION_ID = 0x48534C54  # "HSLT"
_BUSY_SECONDS = 2.0
_CACHE_KIB = 256  # of pages in memory; SQLite's own 2 MB would fill as the journal grows
_MAX_PAGES = 65536  # 256 MiB: an audit trail that grows without end must not fill the disk
_TABLES = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE records (model TEXT PRIMARY KEY, row TEXT NOT NULL) STRICT;
CREATE TABLE events (
  seq INTEGER PRIMARY KEY AUTOINCREMENT, at TEXT NOT NULL, model TEXT NOT NULL, update_id TEXT NOT NULL,
  stage TEXT NOT NULL, name TEXT NOT NULL, message TEXT NOT NULL
) STRICT;
CREATE INDEX events_by_update ON events (update_id, seq);
CREATE TABLE updates (
  seq INTEGER PRIMARY KEY AUTOINCREMENT, update_id TEXT NOT NULL UNIQUE, model TEXT NOT NULL, row TEXT NOT NULL
) STRICT;
CREATE INDEX updates_by_model ON updates (model, seq);
CREATE TABLE evidence (update_id TEXT NOT NULL, kind TEXT NOT NULL, row TEXT NOT NULL, PRIMARY KEY (update_id, kind))
STRICT;
CREATE TRIGGER events_stay BEFORE UPDATE ON events BEGIN SELECT RAISE(ABORT, 'events are never changed'); END;
"""
# What each later schema adds to the one before it.
_STEPS: Mapping[int, str] = {
    2: """
CREATE TABLE outbox (
  number INTEGER PRIMARY KEY AUTOINCREMENT, hook TEXT NOT NULL, event_id TEXT NOT NULL, event TEXT NOT NULL,
  body TEXT NOT NULL, refusals INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX outbox_by_hook ON outbox (hook, number);
UPDATE meta SET value = '2' WHERE key = 'schema_version';
""",
    3: """
INSERT INTO meta VALUES ('journal_id', lower(hex(randomblob(16)))), ('protected_writes', '0'),
  ('stamp', 'stamp:0000000000000000:' || lower(hex(randomblob(8))));
UPDATE meta SET value = '3' WHERE key = 'schema_version';
""",
}
# The first statement of each change: so a rollback journal always has the stamp of the write before, see `witness`.
_STAMP = """
UPDATE meta SET value = 'stamp:' || substr(value, -16) || ':' || lower(hex(randomblob(8))) WHERE key = 'stamp'
"""
# Codes of SQLite for what the system refuses now, and may allow later; the file itself is as it was.
_PASSING = frozenset(
    {
        *(sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL, sqlite3.SQLITE_NOMEM),
        *(sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM),
        *(sqlite3.SQLITE_INTERRUPT, sqlite3.SQLITE_AUTH),
    }
)


class JournalUnreadable(JournalUnusable):
    """The journal is damaged, or of a newer schema: serving goes on, updates stop until a person has repaired it."""

    reason = "JOURNAL_UNREADABLE"
    advice = (
        "stop hotslot and restore a backup with `hotslot state restore`, or put journal.db and journal.db-journal of "
        "one moment back (move a journal.db-journal away that does not belong to it)"
    )


class JournalLost(JournalUnreadable):
    """The journal is missing, older than its witness, or another one: quarantine and versions may be lost with it."""

    reason = "JOURNAL_LOST"
    advice = (
        JournalUnreadable.advice
        + "; or continue with the minimal version and the quarantine that the witness has kept: "
        "`hotslot state restore --from-witness`"
    )


class JournalNotWritten(OSError):
    """A change could not be made durable; nothing changed, the same may succeed later (a full disk, for example)."""

    reason = "JOURNAL_NOT_WRITTEN"


class Database:
    """The one connection. From any thread; a lock serialises changes."""

    def __init__(self, path: Path) -> None:
        """Open the journal; create it if it is missing.

        Raises:
            JournalUnreadable: the file exists and cannot be trusted.
            JournalNotWritten: it cannot be created, or cannot be upgraded to this schema.
        """
        self._path = path
        self._lock = threading.RLock()
        self._is_suspect = False  # a write has failed: what is in memory may not be what is on the disk
        if not os.path.lexists(path):
            _create(path)
        self._connection = _open(path)
        self._file_number = _find_file_number(path)

    def check_file(self) -> None:
        """Check that the open file still has its name.

        Raises:
            JournalLost: it was deleted, or another one was put in its place.
            OSError: that cannot be found out now.
        """
        try:
            number = self._path.stat().st_ino
        except FileNotFoundError as error:
            raise JournalLost(f"{self._path.name} was deleted while it was in use") from error
        if number != self._file_number:
            raise JournalLost(f"{self._path.name} was replaced while it was in use")

    def close(self) -> None:
        """Close the file; harmless when repeated."""
        with self._lock:
            self._connection.close()

    def copy_to(self, target: Path) -> None:
        """Write a whole copy of the file, as it is after the last change.

        Raises:
            JournalNotWritten: it could not be written.
        """
        with self._lock:
            self._open_anew_if_suspect()
            try:
                target.unlink(missing_ok=True)
                self._connection.execute("VACUUM INTO ?", (str(target),))
                target.chmod(0o600)
            except (sqlite3.Error, OSError) as error:
                raise JournalNotWritten(f"the journal cannot be copied: {_describe(error)}") from error

    def rows(self, query: str, values: Sequence[object] = ()) -> list[tuple[object, ...]]:
        """Read the rows of a query.

        Raises:
            JournalUnreadable: it cannot be read any more.
            JournalNotWritten: it cannot be read now.
        """
        with self._lock:
            self._open_anew_if_suspect()
            try:
                return self._connection.execute(query, values).fetchall()
            except sqlite3.Error as error:
                raise _classify(error, "the journal cannot be read") from error

    @contextlib.contextmanager
    def change(self) -> Iterator[sqlite3.Connection]:
        """One change: all of it is durable when the block has ended, or none of it happened.

        Raises:
            JournalNotWritten: it was not made durable.
            JournalUnreadable: after a failed change the file cannot be trusted any more.
        """
        with self._lock:
            self._open_anew_if_suspect()
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                self._connection.execute(_STAMP)
                yield self._connection
                self._connection.execute("COMMIT")
            except sqlite3.Error as error:
                self._roll_back()
                self._is_suspect = True
                raise JournalNotWritten(f"the journal cannot be written: {error}") from error
            except BaseException:
                self._roll_back()
                raise

    def _open_anew_if_suspect(self) -> None:
        """Reopen the file after a failed write, as after a crash: the page cache may differ from the disk."""
        if self._is_suspect:
            self._connection.close()
            self.check_file()
            self._connection = _open(self._path)
            self._is_suspect = False

    def _roll_back(self) -> None:
        with contextlib.suppress(sqlite3.Error):
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")


def read_copy(path: Path, query: str) -> list[tuple[object, ...]]:
    """Read rows of a copy that nothing writes, after the checks of an opened journal; it is not changed.

    Raises:
        JournalUnreadable: it is damaged, or of another schema.
        OSError: it cannot be read.
    """
    if path.stat().st_size == 0:
        raise JournalUnreadable(f"{path.name} is empty")
    try:
        with contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?immutable=1", uri=True)) as connection:
            _check(connection)
            return connection.execute(query).fetchall()
    except sqlite3.Error as error:
        raise JournalUnreadable(f"{path.name} cannot be read: {_describe(error)}") from error


def _open(path: Path) -> sqlite3.Connection:
    try:
        if odd := describe_odd_entry(path):
            raise JournalUnreadable(f"{path.name} {odd}")
        if path.stat().st_size == 0:  # rule 4
            raise JournalUnreadable(f"{path.name} is empty: it was cut off")
        connection = _connect(path)
    except FileNotFoundError as error:
        raise JournalLost(f"{path.name} is gone") from error
    except (sqlite3.Error, OSError) as error:
        raise _classify(error, "the journal cannot be opened") from error
    try:
        _check(connection)
        _upgrade(connection)
    except sqlite3.Error as error:
        connection.close()
        raise _classify(error, "the journal is damaged") from error
    except (JournalUnreadable, JournalNotWritten):
        connection.close()
        raise
    return connection


def _classify(error: sqlite3.Error | OSError, what: str) -> JournalUnreadable | JournalNotWritten:
    """A damaged file, or one that the system does not let us use now (too many open files, a full disk)."""
    code = getattr(error, "sqlite_errorcode", None)
    is_passing = isinstance(error, OSError) or (code is not None and code & 0xFF in _PASSING)
    kind = JournalNotWritten if is_passing else JournalUnreadable
    return kind(f"{what}: {_describe(error)}")


def _find_file_number(path: Path) -> int:
    try:
        return path.stat().st_ino
    except OSError as error:
        raise JournalNotWritten(f"the journal cannot be examined: {_describe(error)}") from error


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(
        path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False, cached_statements=32
    )
    connection.execute("PRAGMA locking_mode=EXCLUSIVE")  # rule 1
    connection.execute("PRAGMA journal_mode=DELETE")  # rule 2
    connection.execute("PRAGMA synchronous=EXTRA")
    connection.execute(f"PRAGMA cache_size=-{_CACHE_KIB}")
    connection.execute("PRAGMA trusted_schema=OFF")
    connection.execute("PRAGMA secure_delete=ON")  # no stamp of an earlier write stays in the file
    connection.execute(f"PRAGMA max_page_count={_MAX_PAGES}")
    return connection


def _check(connection: sqlite3.Connection) -> None:
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if application != APPLICATION_ID:
        raise JournalUnreadable("the file in the journal's place is no journal of hotslot")
    if not 1 <= version <= JOURNAL_SCHEMA:  # rule 5
        raise JournalUnreadable(describe_schema("the journal", version, JOURNAL_SCHEMA))
    found = [row[0] for row in connection.execute("PRAGMA quick_check(3)")]
    if found != ["ok"]:
        raise JournalUnreadable(f"the journal is damaged: {'; '.join(map(str, found))[:300]}")


def _upgrade(connection: sqlite3.Connection) -> None:
    """Upgrade an older schema (rule 6)."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    for number in range(version + 1, JOURNAL_SCHEMA + 1):
        try:
            connection.executescript(f"BEGIN IMMEDIATE; {_STEPS[number]} PRAGMA user_version={number}; COMMIT;")
        except sqlite3.Error as error:
            with contextlib.suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
            message = f"the journal cannot be upgraded to schema {number}: {_describe(error)}"
            raise JournalNotWritten(message) from error


def _create(path: Path) -> None:
    """Make an empty journal under a temporary name, then rename it (rule 4)."""
    fresh = path.with_name(f".{path.name}.new")
    try:
        for leftover in (fresh, fresh.with_name(f"{fresh.name}-journal")):
            leftover.unlink(missing_ok=True)
        with contextlib.closing(_connect(fresh)) as connection:
            connection.execute(f"PRAGMA application_id={APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version={JOURNAL_SCHEMA}")
            connection.executescript(f"BEGIN IMMEDIATE; {_TABLES} {' '.join(_STEPS.values())} COMMIT;")
            connection.execute("INSERT INTO meta VALUES ('schema_version', ?)", (str(JOURNAL_SCHEMA),))
        descriptor = os.open(fresh, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        fresh.chmod(0o600)
        fresh.rename(path)
        sync_folder(path.parent)
    except (sqlite3.Error, OSError) as error:
        raise JournalNotWritten(f"the journal cannot be made: {_describe(error)}") from error


def _describe(error: sqlite3.Error | OSError) -> str:
    """The error's message, without a path."""
    return (error.strerror or "it failed").lower() if isinstance(error, OSError) else str(error)
