"""A disk that fails, or ends the updater's process, at any operation of the real store.

Counted are: opening a file to write, each write, fsync, rename, replace, mkdir, chmod, unlink, rmdir, and every
statement of the journal. What the store does stays real; only the chosen operation does not happen, or happens and is
denied, or is the last that this life of the updater does.
"""

import contextlib
import errno
import os
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, Self

_CALLS = ("fsync", "rename", "replace", "mkdir", "chmod", "unlink", "rmdir")
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_FULL = (errno.ENOSPC, errno.EDQUOT)


class Killed(BaseException):
    """SIGKILL: nothing is done after it, not even cleaning up."""


class FailingDisk:
    """One story's disk."""

    def __init__(self, journal: Path) -> None:
        """Start without faults.

        Args:
            journal: whose bytes are kept as they lie on the disk at a kill.
        """
        self._journal = journal
        self._kept: dict[Path, bytes | None] | None = None
        self._connections: list[sqlite3.Connection] = []
        self._code, self._where = 0, ""
        self._left_until_fault = self._left_to_fail = 0
        self._left_to_live: int | None = None
        self._deadly = ""
        self._is_overlooked = False
        self._risks: list[tuple[ModuleType, str, Callable[..., Any]]] = [
            *((os, name, self._risky(name, getattr(os, name))) for name in _CALLS),
            (os, "open", self._opener(os.open)),
            (os, "fdopen", self._stream(os.fdopen)),
            (sqlite3, "connect", self._connector(sqlite3.connect)),
        ]
        self._faults = 0  # operations that failed

    def fails(self, code: int, where: str, after: int, times: int) -> None:
        """Fail `times` operations with an errno, after `after` that succeed.

        Args:
            code: the errno.
            where: name of the only call that fails, "journal" for its statements; empty: any.
            after: operations.
            times: operations.
        """
        self._code, self._where, self._left_until_fault, self._left_to_fail = code, where, after, times

    def heals(self) -> None:
        """Fail no further operation."""
        self._left_to_fail = 0

    def kills(self, after: int | None, where: str = "") -> None:
        """Kill the updater at the operation after `after` others of the same name; None: at none."""
        self._left_to_live, self._deadly = after, where

    @contextlib.contextmanager
    def mounted(self) -> Iterator[None]:
        """Within the block, all operations of the store go through this disk."""
        well = [(place, name, getattr(place, name)) for place, name, _ in self._risks]
        try:
            for place, name, risky in self._risks:
                setattr(place, name, risky)
            yield
        finally:
            for place, name, call in well:
                setattr(place, name, call)

    @contextlib.contextmanager
    def overlooked(self) -> Iterator[None]:
        """Within the block, operations are a test's own and are not counted."""
        self._is_overlooked = True
        try:
            yield
        finally:
            self._is_overlooked = False

    def forget_life(self) -> None:
        """Drop the killed process's open files; the journal is restored as it was at the kill."""
        kept, self._kept = self._kept, None
        for connection in self._connections:
            connection.close()
        self._connections.clear()
        self._left_to_live = None
        for path, content in (kept or {}).items():
            if content is None:
                path.unlink(missing_ok=True)
            else:
                path.write_bytes(content)

    def passes(self, where: str) -> bool:
        """Called before each operation.

        Args:
            where: its name.

        Returns:
            Whether it is done although it is denied afterwards.

        Raises:
            Killed: it is not done, and nothing after it.
            OSError: it is not done.
        """
        if self._is_overlooked:
            return False
        if self._kept is not None:
            raise Killed
        if self._left_to_live is not None and self._deadly in ("", where):
            self._left_to_live -= 1
            if self._left_to_live < 0:
                self._kept = {path: _content(path) for path in _parts(self._journal)}
                raise Killed
        if self._left_to_fail <= 0 or self._where not in ("", where):
            return False
        if self._left_until_fault > 0:
            self._left_until_fault -= 1
            return False
        self._left_to_fail -= 1
        self._faults += 1
        if self._code == errno.EIO and self._faults % 2:
            return True  # a device may have written what it did not confirm
        raise OSError(self._code, os.strerror(self._code))

    def _risky(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def risky(*args: object, **kwargs: object) -> object:
            is_denied = self.passes(name)
            result = call(*args, **kwargs)
            if is_denied:
                raise OSError(self._code, os.strerror(self._code))
            return result

        return risky

    def _opener(self, call: Callable[..., int]) -> Callable[..., int]:
        def opened(path: object, flags: int, *args: object, **kwargs: object) -> int:
            if flags & _WRITES and self.passes("open"):
                raise OSError(self._code, os.strerror(self._code))
            return call(path, flags, *args, **kwargs)

        return opened

    def _stream(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def stream(descriptor: int, mode: str = "r", *args: object, **kwargs: object) -> object:
            file = call(descriptor, mode, *args, **kwargs)
            return file if mode == "rb" else _Stream(self, file)

        return stream

    def _connector(self, call: Callable[..., sqlite3.Connection]) -> Callable[..., sqlite3.Connection]:
        disk = self

        class Connection(sqlite3.Connection):
            """Each statement is an operation."""

            def execute(self, sql: str, *args: Any) -> sqlite3.Cursor:  # noqa: ANN401  as sqlite3 has it
                try:
                    is_denied = disk.passes("journal")
                    cursor = super().execute(sql, *args)
                except OSError as error:
                    raise _as_sqlite(error) from None
                if is_denied:
                    raise _as_sqlite(OSError(errno.EIO, ""))
                return cursor

        def connect(*args: object, **kwargs: object) -> sqlite3.Connection:
            connection = call(*args, factory=Connection, **kwargs)
            self._connections.append(connection)
            connection.execute("PRAGMA cache_size=2")  # so that changes reach the file before their commit
            return connection

        return connect


class _Stream:
    """A file whose write may fail half done."""

    def __init__(self, disk: FailingDisk, file: Any) -> None:  # noqa: ANN401  binary, of any kind
        self._disk = disk
        self._file = file

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401  the rest is the file's
        return getattr(self._file, name)

    def write(self, content: bytes) -> int:
        """Write all, or half and fail."""
        try:
            is_denied = self._disk.passes("write")
        except BaseException:
            self._file.write(content[: len(content) // 2])
            raise
        if is_denied:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        written: int = self._file.write(content)
        return written


def _parts(journal: Path) -> tuple[Path, Path]:
    return journal, journal.with_name(f"{journal.name}-journal")


def _content(path: Path) -> bytes | None:
    with contextlib.suppress(FileNotFoundError):
        return path.read_bytes()
    return None


def _as_sqlite(error: OSError) -> sqlite3.OperationalError:
    is_full = error.errno in _FULL
    shown = sqlite3.OperationalError("database or disk is full" if is_full else "disk I/O error")
    shown.sqlite_errorcode = sqlite3.SQLITE_FULL if is_full else sqlite3.SQLITE_IOERR
    return shown
