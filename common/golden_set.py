"""Golden sets: pictures with statements, and the answers expected to them; owned by the operator.

A set is a folder: `golden.jsonl`, one JSON object a line, beside the pictures that it names.

    {"item": "lamp-1", "image": "lamp-1.jpg", "statements": ["the lamp is on"], "expected": ["yes"]}

`item` is unique; `expected`, one answer a statement, may be left out: then the set asks for agreement with the
model that serves. `"recorded": [...]` keeps what the model answered when the set was recorded; it is for people.
"""

import hashlib
import json
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.published import ManifestBroken, check_names

SET_NAME = "golden.jsonl"
ANSWERS = ("yes", "no", "maybe")
MAX_SET_BYTES = 16 << 20
MAX_ITEMS = 10_000
MAX_PICTURE_BYTES = 16 << 20
MAX_STATEMENTS = 32
MAX_ITEM_CHARS = 200
_KNOWN = {"item", "image", "premise", "statements", "expected", "recorded"}


class GoldenSetBroken(ValueError):
    """A golden set cannot be used; the sentence says which line and what to do."""


@dataclass(frozen=True, slots=True)
class GoldenEntry:
    """One line of a golden set."""

    item: str
    image: str  # name of a picture in the set's folder
    statements: tuple[str, ...]
    expected: tuple[str, ...] = ()  # one a statement, or none at all
    premise: str = ""
    recorded: tuple[str, ...] = ()  # what a model answered once; for people


@dataclass(frozen=True, slots=True)
class GoldenFolder:
    """A golden set as it lies on disk."""

    folder: Path
    entries: tuple[GoldenEntry, ...]
    digest: str  # names the lines and the pictures: other pictures are another set

    def picture(self, entry: GoldenEntry) -> bytes:
        """The bytes of an item's picture.

        Raises:
            GoldenSetBroken: it is gone, no regular file, or too large.
        """
        return _read(self.folder / entry.image, MAX_PICTURE_BYTES, f"the picture of {entry.item!r}")


def read_golden_set(folder: Path) -> GoldenFolder:
    """Read and check a set; its pictures are hashed, not kept.

    Raises:
        GoldenSetBroken: it is missing, empty, malformed, for another task, or a picture is missing.
    """
    raw = _read(folder / SET_NAME, MAX_SET_BYTES, SET_NAME)
    try:
        lines = [line for line in raw.decode("utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise GoldenSetBroken(f"{SET_NAME} is not UTF-8") from error
    if not lines:
        raise GoldenSetBroken(f"{SET_NAME} has no items; `hotslot golden record FOLDER` makes some")
    if len(lines) > MAX_ITEMS:
        raise GoldenSetBroken(f"{SET_NAME} has {len(lines)} items, at most {MAX_ITEMS} are allowed")
    entries = tuple(_entry(line, number) for number, line in enumerate(lines, start=1))
    names = [entry.item for entry in entries]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise GoldenSetBroken(f"{SET_NAME}: the item {twice!r} stands twice")
    return GoldenFolder(folder, entries, _digest(folder, entries))


def golden_line(entry: GoldenEntry) -> str:
    """An entry as a line of the file."""
    row: dict[str, object] = {"item": entry.item, "image": entry.image, "statements": entry.statements}
    row |= {"premise": entry.premise} if entry.premise else {}
    row |= {"expected": entry.expected} if entry.expected else {}
    row |= {"recorded": entry.recorded} if entry.recorded else {}
    return json.dumps(row, ensure_ascii=False) + "\n"


def _entry(line: str, number: int) -> GoldenEntry:
    where = f"{SET_NAME}, line {number}"
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise GoldenSetBroken(f"{where} is no JSON") from error
    if not isinstance(row, dict):
        raise GoldenSetBroken(f"{where} holds no object")
    if "address" in row or "addresses" in row:
        raise GoldenSetBroken(f"{where} is for address tagging, and this model judges pictures")
    unknown = sorted(set(row) - _KNOWN)
    if unknown:
        raise GoldenSetBroken(f"{where}: unknown key {unknown[0]!r}; known are {', '.join(sorted(_KNOWN))}")
    statements = _words(row, "statements", where)
    expected, recorded = _words(row, "expected", where), _words(row, "recorded", where)
    if not 1 <= len(statements) <= MAX_STATEMENTS:
        raise GoldenSetBroken(f"{where}: statements needs 1 to {MAX_STATEMENTS} sentences")
    if expected and (len(expected) != len(statements) or not set(expected) <= set(ANSWERS)):
        raise GoldenSetBroken(f"{where}: expected needs one of {', '.join(ANSWERS)} for each statement")
    item, image, premise = (_text(row, key, where) for key in ("item", "image", "premise"))
    if not item or len(item) > MAX_ITEM_CHARS:
        raise GoldenSetBroken(f"{where}: item needs 1 to {MAX_ITEM_CHARS} characters")
    try:
        check_names([image])
    except ManifestBroken as error:
        raise GoldenSetBroken(f"{where}: image: {error}") from error
    return GoldenEntry(item, image, statements, expected, premise, recorded)


def _words(row: Mapping[str, Any], key: str, where: str) -> tuple[str, ...]:
    value = row.get(key) or []
    if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
        raise GoldenSetBroken(f"{where}: {key} is no list of words")
    return tuple(value)


def _text(row: Mapping[str, Any], key: str, where: str) -> str:
    value = row.get(key, "")
    if not isinstance(value, str):
        raise GoldenSetBroken(f"{where}: {key} is no text")
    return value


def _digest(folder: Path, entries: tuple[GoldenEntry, ...]) -> str:
    """SHA-256 over what is asked and expected, and over the pictures; what was recorded is only for people."""
    pictures: dict[str, str] = {}
    lines = []
    for entry in entries:
        if entry.image not in pictures:
            content = _read(folder / entry.image, MAX_PICTURE_BYTES, f"the picture of {entry.item!r}")
            pictures[entry.image] = hashlib.sha256(content).hexdigest()
        asked = [entry.item, pictures[entry.image], entry.premise, entry.statements, entry.expected]
        lines.append(json.dumps(asked, ensure_ascii=False))
    return "sha256:" + hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


def _read(path: Path, max_bytes: int, what: str) -> bytes:
    """A regular file of bounded size; a pipe in its place would never end."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise GoldenSetBroken(f"{what} is no regular file")
            content = file.read(max_bytes + 1)
    except OSError as error:
        raise GoldenSetBroken(f"{what} cannot be read: {(error.strerror or 'it failed').lower()}") from error
    if len(content) > max_bytes:
        raise GoldenSetBroken(f"{what} has more than {max_bytes} bytes")
    return content
