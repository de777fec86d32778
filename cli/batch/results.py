"""The results of a batch: a file with a JSON line for each row that has an outcome, and what was asked beside it.

A line is written whole or it is the last one and torn: the next run removes it. `results.jsonl.batch` has the terms of
the batch, so that a run goes on only with the same input and question; it is locked while a run writes.
"""

import collections
import contextlib
import fcntl
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from cli.batch.ordering import Key
from cli.problems import CommandFailed, WronglyUsed
from common.durable import sync_folder
from common.json_load import load_json

TERMS_SUFFIX = ".batch"
MAX_LINE_BYTES = 64 << 20  # 32 statements or an address, as often as JSON escapes can lengthen them, and far more
_MAX_TERMS_BYTES = 1 << 20
_TAIL_BYTES = 64 << 10

Terms = Mapping[str, Any]


@dataclass(slots=True)
class Counts:
    """How many rows have which outcome."""

    by_revision: collections.Counter[str] = field(default_factory=collections.Counter)
    by_reason: collections.Counter[str] = field(default_factory=collections.Counter)

    @property
    def answered(self) -> int:
        """Rows with an answer."""
        return self.by_revision.total()

    @property
    def failed(self) -> int:
        """Rows that have none."""
        return self.by_reason.total()

    def add(self, row: Mapping[str, Any]) -> None:
        """Count one line."""
        if "error" in row:
            self.by_reason[str(row["error"]["reason"])] += 1
        else:
            self.by_revision[str(row["served_by"]["revision"])] += 1


def encode_line(row: Mapping[str, Any]) -> bytes:
    """The line of a row; letters of all alphabets as they are, but not the half of a character in a file's name."""
    try:
        return (json.dumps(row, ensure_ascii=False) + "\n").encode()
    except UnicodeEncodeError:
        return (json.dumps(row) + "\n").encode()


class ResultsFile:
    """The output of a batch, locked for this process from its creation until it is closed.

    Args:
        path: of the results.
        terms: of the batch, as JSON.

    Raises:
        CommandFailed: another process writes it, or it is the output of something else.
        OSError: it cannot be opened.
    """

    def __init__(self, path: Path, terms: Terms) -> None:
        self.path = path
        self._terms_file = _lock_terms(path, terms)
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
            remove_torn_line(self._descriptor)
        except BaseException:
            self._terms_file.close()
            raise

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close; without an error, after what was written has reached the disk."""
        try:
            if error is None:
                self.sync()
        finally:
            os.close(self._descriptor)
            self._terms_file.close()

    def read_keys(self, counts: Counts) -> Iterator[Key]:
        """Yield the key of each line, and count the lines.

        Raises:
            CommandFailed: a line is not one of a batch.
        """
        for row, _ in self._read():
            counts.add(row)
            yield row["row"]

    def append(self, lines: bytes) -> None:
        """Add whole lines. They survive the end of this process.

        Raises:
            OSError: not all could be written; what was written of the last one is removed if possible.
        """
        size = os.fstat(self._descriptor).st_size
        rest = memoryview(lines)
        try:
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, size + lines.rfind(b"\n", 0, len(lines) - len(rest)) + 1)
            raise OSError(error.errno, os.strerror(error.errno or 0), str(self.path)) from error

    def sync(self) -> None:
        """Flush what was written to the disk."""
        os.fsync(self._descriptor)

    def drop_failed(self) -> int:
        """Remove the lines of rows without an answer, so that these are sent again; returns their number.

        The file is replaced as a whole: a crash leaves the old one or the new one.
        """
        dropped = 0
        path = self.path.resolve()  # what a link leads to
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        try:
            with os.fdopen(descriptor, "wb") as kept:
                for row, line in self._read():
                    if "error" in row:
                        dropped += 1
                    else:
                        kept.write(line)
                kept.flush()
                os.fchmod(kept.fileno(), os.fstat(self._descriptor).st_mode & 0o777)
                os.fsync(kept.fileno())
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        sync_folder(path.parent)
        replaced = self._descriptor
        self._descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
        os.close(replaced)
        return dropped

    def _read(self) -> Iterator[tuple[dict[str, Any], bytes]]:
        with self.path.open("rb") as file:
            number = 0
            while line := file.readline(MAX_LINE_BYTES):
                number += 1
                row = _parse_line(line)
                if row is None:
                    raise CommandFailed(
                        f"line {number} of {self.path} is not a result of a batch; remove it, or write to another file"
                    )
                yield row, line


def remove_torn_line(descriptor: int) -> int:
    """Cut a file after its last whole line; returns how many bytes were removed."""
    size = end = os.fstat(descriptor).st_size
    while end:
        begin = max(0, end - _TAIL_BYTES)
        found = os.pread(descriptor, end - begin, begin).rfind(b"\n")
        if found >= 0:
            end = begin + found + 1
            break
        end = begin
    if end < size:
        os.ftruncate(descriptor, end)
    return size - end


def _parse_line(line: bytes) -> dict[str, Any] | None:
    """The result of a line; None if it is none."""
    try:
        row: Any = load_json(line, takes_halves=True)  # of a path that is not UTF-8
        Counts().add(row)
        is_key = isinstance(row["row"], int | str)
    except (ValueError, KeyError, TypeError):
        return None
    return row if is_key else None


def _lock_terms(results: Path, terms: Terms) -> BinaryIO:
    """The locked file with the terms, which are written to it if it is new."""
    path = results.with_name(results.name + TERMS_SUFFIX)
    file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644), "r+b")
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise CommandFailed(f"another `hotslot batch` writes to {results}; wait for it, or stop it") from error
        _check_terms(file, results, terms)
    except BaseException:
        file.close()
        raise
    return file


def _check_terms(file: BinaryIO, results: Path, terms: Terms) -> None:
    has_results = results.exists() and results.stat().st_size > 0
    before = _read_terms(file, results, has_results=has_results)
    if before is None:
        if has_results:
            raise WronglyUsed(f"{results} exists and is not the output of a batch; name another --out")
        file.seek(0)
        file.truncate()
        file.write(encode_line(terms))
        file.flush()
        os.fsync(file.fileno())
        sync_folder(results.parent)
    elif before != terms:
        raise WronglyUsed(_describe_difference(results, before, terms))


def _read_terms(file: BinaryIO, results: Path, *, has_results: bool) -> Terms | None:
    """The terms of the batch that began the results; None if there were none, or nothing came of them."""
    raw = file.read(_MAX_TERMS_BYTES)
    try:
        terms: Terms | None = load_json(raw, takes_halves=True) if raw.endswith(b"\n") and has_results else None
    except ValueError:
        raise WronglyUsed(f"{results}{TERMS_SUFFIX} is damaged; name another --out") from None
    return terms


def _describe_difference(results: Path, before: Terms, now: Terms) -> str:
    names = [name for name in now if now[name] != before.get(name)]
    if names == ["digest"]:
        return f"the input has changed since {results} was begun; name another --out"
    if not names:
        return f"{results} was begun by another version of hotslot; name another --out"
    shown = names[0]
    return (
        f"{results} was begun with another {shown} ({before.get(shown)!r}, now {now[shown]!r});"
        " give the same, or name another --out"
    )
