"""The rows of a batch's input: a folder of pictures, a table (CSV, TSV, JSONL, Parquet), a file of addresses.

Rows are read one after another, never all at once. A row that cannot be used has a `mistake`: it is a result without
an answer, and the rows after it are not concerned. Only what makes the whole input unusable is raised.
"""

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from cli.batch.ordering import Key, sort_keys
from cli.batch.records import KINDS, Records
from cli.problems import WronglyUsed
from common.durable import describe_odd_entry
from common.engine_files import Task

PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
_SAMPLED_BYTES = 1 << 20  # at the begin and at the end of a file, for its digest


@dataclass(frozen=True, slots=True)
class Question:
    """The question for rows without one of their own."""

    statements: tuple[str, ...] = ()
    premise: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the input."""

    key: Key  # number from 1, or the picture's path in its folder
    id: str = ""  # the caller's own
    image: Path | bytes = b""
    image_name: str = ""  # as the input has it
    statements: tuple[str, ...] = ()
    premise: str = ""
    address: str = ""
    mistake: str = ""  # why it cannot be sent


def key_of(row: Row) -> Key:
    """The key of a row."""
    return row.key


class Source(Protocol):
    """An input."""

    @property
    def task(self) -> Task:
        """The task of the rows."""
        ...

    def digest(self) -> str:
        """Differs if the input has changed so that its rows are no longer the same."""
        ...

    def count(self) -> int:
        """How many rows there are."""
        ...

    def rows(self) -> Iterator[Row]:
        """The rows in the order of their keys.

        Raises:
            CommandFailed: the input cannot be read further.
        """
        ...


def open_source(path: Path, question: Question) -> Source:
    """The input at a path, by its kind.

    Raises:
        WronglyUsed: it is of no known kind, or the question does not fit.
    """
    if path.is_dir():
        if not question.statements:
            raise WronglyUsed('a folder of pictures needs a statement: --statement "there is a person"')
        folder = Folder(path, question)
        if folder.is_empty():  # another folder was meant, or it is not mounted
            raise WronglyUsed(f"no file below {path} ends in {', '.join(PICTURE_SUFFIXES)}")
        return folder
    if not path.exists():
        raise WronglyUsed(f"{path} {describe_odd_entry(path) or 'does not exist'}")
    if not path.is_file():
        raise WronglyUsed(f"{path} is not a regular file; rows are read more than once")
    kind = KINDS.get(path.suffix.lower())
    if kind is None:
        raise WronglyUsed(f"{path} is of no known kind; name a folder or a file ending in {', '.join(KINDS)}")
    return Table(path, kind(path), question)


class Folder:
    """The pictures below a folder, by their suffix; links to folders are not followed."""

    task = Task.VISUAL_ENTAILMENT

    def __init__(self, path: Path, question: Question) -> None:
        self._path = path
        self._question = question

    def digest(self) -> str:
        """Always the same: pictures may be added between two runs."""
        return ""

    def is_empty(self) -> bool:
        """Whether there is no picture."""
        return next(self._names(), None) is None

    def count(self) -> int:
        """See `Source`."""
        return sum(1 for _ in self._names())

    def rows(self) -> Iterator[Row]:
        """See `Source`."""
        for name in sort_keys(self._names()):
            yield Row(
                name,
                image=self._path / str(name),
                image_name=str(name),
                statements=self._question.statements,
                premise=self._question.premise,
            )

    def _names(self) -> Iterator[str]:
        folders = [""]
        while folders:
            folder = folders.pop()
            with os.scandir(self._path / folder) as found:
                for entry in found:
                    name = f"{folder}{entry.name}"
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(f"{name}/")
                    elif entry.name.lower().endswith(PICTURE_SUFFIXES) and entry.is_file():
                        yield name


class Table:
    """The records of a file as rows."""

    def __init__(self, path: Path, records: Records, question: Question) -> None:
        self._path = path
        self._records = records
        self._question = question
        names = records.columns()
        first = names if names is not None else _first_names(records)
        self.task = Task.ADDRESS_TAGGING if "address" in first else Task.VISUAL_ENTAILMENT
        if names is not None:
            _check_columns(path, names, question)

    def digest(self) -> str:
        """Of the file's size, begin and end."""
        with self._path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            found = hashlib.sha256(f"{size}\n".encode())
            found.update(file.read(_SAMPLED_BYTES))
            file.seek(max(0, size - _SAMPLED_BYTES))
            found.update(file.read(_SAMPLED_BYTES))
        return f"sha256:{found.hexdigest()}"

    def count(self) -> int:
        """See `Source`."""
        return self._records.count()

    def rows(self) -> Iterator[Row]:
        """See `Source`."""
        for number, record in self._records.read():
            yield self._row_of(number, record)

    def _row_of(self, number: int, record: Mapping[str, Any] | str) -> Row:
        if isinstance(record, str):
            return Row(number, mistake=record)
        own = record.get("id")
        name = "" if own is None else str(own)
        try:
            if self.task is Task.ADDRESS_TAGGING:
                return Row(number, name, address=_text(record, "address"))
            statements = _statements(record, self._question)
            premise = _text(record, "premise") if record.get("premise") else self._question.premise
            image, shown = self._image(record)
            return Row(number, name, image, shown, statements, premise)
        except _RowMistake as error:
            return Row(number, name, mistake=str(error))

    def _image(self, record: Mapping[str, Any]) -> tuple[Path | bytes, str]:
        """The picture, or where it is: relative to the table's folder."""
        value = record.get("image")
        if isinstance(value, Mapping):  # as the `datasets` library writes it
            value = value.get("bytes") or value.get("path")
        if isinstance(value, bytes) and value:
            return value, ""
        if not isinstance(value, str) or not value or "\0" in value:
            raise _RowMistake("it has no image")
        _text({"image": value}, "image")
        return self._path.parent / value, value


class _RowMistake(ValueError):
    """A record that cannot be a row."""


def _text(record: Mapping[str, Any], name: str) -> str:
    value = record.get(name)
    if not isinstance(value, str) or not value:
        raise _RowMistake(f"it has no {name}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise _RowMistake(f"its {name} has half a character") from None
    return value


def _statements(record: Mapping[str, Any], question: Question) -> tuple[str, ...]:
    several = record.get("statements")
    if several is not None:
        if not isinstance(several, Sequence) or isinstance(several, str):
            raise _RowMistake("its statements are no list of texts")
        return tuple(_text({"statement": one}, "statement") for one in several)
    found = (_text(record, "statement"),) if record.get("statement") else question.statements
    if not found:
        raise _RowMistake("it has no statement")
    return found


def _check_columns(path: Path, names: set[str], question: Question) -> None:
    if "address" in names:
        return
    if "image" not in names:
        found = ", ".join(sorted(names)) or "none"
        raise WronglyUsed(f"{path} has no column `image` and none `address`; it has {found}")
    if not names & {"statement", "statements"} and not question.statements:
        raise WronglyUsed(f"{path} has no column `statement`; add it, or give --statement")


def _first_names(records: Records) -> set[str]:
    """The keys of the first usable record."""
    for _, record in records.read():
        if not isinstance(record, str):
            return set(record)
    return set()
