"""Golden sets: pictures or addresses with the answers expected to them; owned by the operator.

A golden set is a folder with `golden.jsonl` and its pictures. One line is one item: a JSON object

    {"item": "street-17", "image": "street-17.jpg", "statements": ["there is a dog"], "expected": ["yes"]}
    {"item": "order-4", "addresses": ["浙江省杭州市…"], "expected": [{"prov": "浙江省", "city": "杭州市"}]}

`premise` may stand beside `statements`. Without `expected` an item is one to be agreed with: `answers`
keeps what the active model said when the item was recorded, for people. A first line
`{"floor": 0.8}` sets the least accuracy that a candidate may have.
"""

import hashlib
import json
import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

MAX_LINE_CHARS = 1 << 20
MAX_ITEMS = 10_000
MAX_TEXTS = 64  # of one item: as many as one call takes
LABELS = ("yes", "no", "maybe")


class GoldenBroken(ValueError):
    """A golden set cannot be used; says which line and why.

    Attributes:
        problem: "EMPTY", "UNREADABLE" or "OTHER_TASK".
    """

    def __init__(self, problem: str, message: str) -> None:
        super().__init__(message)
        self.problem = problem


@dataclass(frozen=True, slots=True)
class GoldenItem:
    """One line of a golden set."""

    item: str  # unique in its set
    image: str = ""  # plain file name beside the set; empty for addresses
    premise: str = ""
    statements: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()
    expected: tuple[str, ...] = ()  # in the form of `canonical`; empty: to be agreed with
    answers: tuple[str, ...] = ()  # what the active model said when it was recorded; for people

    @property
    def texts(self) -> tuple[str, ...]:
        """What is asked, one question each."""
        return self.statements or self.addresses


@dataclass(frozen=True, slots=True)
class GoldenSet:
    """A whole set, without its pictures' bytes."""

    items: tuple[GoldenItem, ...]
    floor: float = 0.0  # least accuracy, 0 to 1

    @property
    def questions(self) -> int:
        """How many there are."""
        return sum(len(item.texts) for item in self.items)

    @property
    def expected(self) -> int:
        """How many of them have an expectation."""
        return sum(len(item.expected) for item in self.items)


def parse(text: str, task: str) -> GoldenSet:
    """Read the lines of `golden.jsonl`.

    Args:
        text: the whole file.
        task: of the model: "visual-entailment" or "token-classification".

    Raises:
        GoldenBroken: it holds no item, a line is malformed, or it is of another task.
    """
    items: list[GoldenItem] = []
    floor = 0.0
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        row = _object(line, number)
        if not items and set(row) == {"floor"}:
            floor = _share(row["floor"], number)
            continue
        items.append(_item(row, number, task))
        if len(items) > MAX_ITEMS:
            raise GoldenBroken("UNREADABLE", f"it holds more than {MAX_ITEMS} items")
    if not items:
        raise GoldenBroken("EMPTY", "it holds no items")
    names = [item.item for item in items]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise GoldenBroken("UNREADABLE", f"the item {twice[:80]!r} stands twice")
    return GoldenSet(tuple(items), floor)


def line_of(item: GoldenItem, answers: Sequence[str] = ()) -> str:
    """One item as a line of `golden.jsonl`; `answers`, or those that it has, are kept for people."""
    row: dict[str, object] = {"item": item.item}
    if item.image:
        row["image"] = item.image
    if item.premise:
        row["premise"] = item.premise
    row["statements" if item.statements else "addresses"] = list(item.texts)
    if item.expected:
        row["expected"] = list(item.expected) if item.statements else [json.loads(text) for text in item.expected]
    recorded = answers or item.answers
    if recorded:
        row["answers"] = list(recorded) if item.statements else [json.loads(text) for text in recorded]
    return json.dumps(row, ensure_ascii=False) + "\n"


def canonical(components: Mapping[str, str]) -> str:
    """Components of an address (kind → text) in the one form in which answers are compared."""
    return json.dumps(dict(sorted(components.items())), ensure_ascii=False)


# Helpers.


def _object(line: str, number: int) -> dict[str, object]:
    if len(line) > MAX_LINE_CHARS:
        raise GoldenBroken("UNREADABLE", f"line {number} has more than {MAX_LINE_CHARS} characters")
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise GoldenBroken("UNREADABLE", f"line {number} is no JSON") from error
    if not isinstance(row, dict):
        raise GoldenBroken("UNREADABLE", f"line {number} is no object")
    return row


def _item(row: Mapping[str, object], number: int, task: str) -> GoldenItem:
    unknown = set(row) - {"item", "image", "premise", "statements", "addresses", "expected", "answers"}
    if unknown:
        raise GoldenBroken("UNREADABLE", f"line {number} has the unknown key {min(unknown)[:80]!r}")
    is_picture = task == "visual-entailment"
    if ("statements" if is_picture else "addresses") not in row:
        raise GoldenBroken("OTHER_TASK", f"line {number} is no item for a model of the task {task}")
    texts = _texts(row, "statements" if is_picture else "addresses", number)
    item, image, premise = (_text(row, key, number) for key in ("item", "image", "premise"))
    if not item or (is_picture and not image):
        raise GoldenBroken("UNREADABLE", f"line {number} lacks {'item' if not item else 'image'}")
    if image != image.replace("\\", "/").rsplit("/", 1)[-1] or image in (".", "..") or "\0" in image:
        raise GoldenBroken("UNREADABLE", f"line {number}: image must be a plain file name")
    expected = _answers(row.get("expected"), "expected", len(texts), number, is_picture=is_picture)
    answers = _answers(row.get("answers"), "answers", len(texts), number, is_picture=is_picture)
    if is_picture:
        return GoldenItem(item, image, premise, statements=texts, expected=expected, answers=answers)
    return GoldenItem(item, addresses=texts, expected=expected, answers=answers)


def _answers(value: object, key: str, count: int, number: int, *, is_picture: bool) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or len(value) != count:
        raise GoldenBroken("UNREADABLE", f"line {number}: {key} must hold {count} answers, one a text")
    if is_picture:
        if not all(entry in LABELS for entry in value):
            raise GoldenBroken("UNREADABLE", f"line {number}: an answer is one of {', '.join(LABELS)}")
        return tuple(value)
    if not all(isinstance(entry, dict) and all(isinstance(part, str) for part in entry.values()) for entry in value):
        raise GoldenBroken("UNREADABLE", f"line {number}: an answer is an object, kind to text")
    return tuple(canonical(entry) for entry in value)


def _texts(row: Mapping[str, object], key: str, number: int) -> tuple[str, ...]:
    value = row[key]
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_TEXTS:
        raise GoldenBroken("UNREADABLE", f"line {number}: {key} must hold 1 to {MAX_TEXTS} texts")
    if not all(isinstance(entry, str) and entry for entry in value):
        raise GoldenBroken("UNREADABLE", f"line {number}: {key} must hold texts")
    return tuple(value)


def _text(row: Mapping[str, object], key: str, number: int) -> str:
    value = row.get(key, "")
    if not isinstance(value, str):
        raise GoldenBroken("UNREADABLE", f"line {number}: {key} must be a text")
    return value


def _share(value: object, number: int) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise GoldenBroken("UNREADABLE", f"line {number}: floor must be a number from 0 to 1")
    return float(value)


SET_NAME = "golden.jsonl"
MAX_SET_BYTES = 16 << 20
MAX_PICTURE_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class GoldenFolder:
    """A set that was read and checked; its pictures were hashed, not kept."""

    folder: Path
    golden: GoldenSet
    digest: str  # names what is asked and expected, and the pictures

    def picture(self, item: GoldenItem) -> bytes:
        """The bytes of an item's picture.

        Raises:
            GoldenBroken: it is gone, no regular file, or too large.
        """
        return read_regular(self.folder / item.image, MAX_PICTURE_BYTES, f"the picture of {item.item!r}")


def read_folder(folder: Path, task: str) -> GoldenFolder:
    """Read and check a set.

    Args:
        folder: where it lies.
        task: of the model that it is for.

    Raises:
        GoldenBroken: it is missing, empty, malformed or of another task, or a picture is missing.
    """
    raw = read_regular(folder / SET_NAME, MAX_SET_BYTES, SET_NAME)
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise GoldenBroken("UNREADABLE", f"{SET_NAME} is not UTF-8") from error
    golden = parse(text, task)
    return GoldenFolder(folder, golden, _digest(folder, golden))


def read_regular(path: Path, max_bytes: int, what: str) -> bytes:
    """A regular file of bounded size; a pipe in its place would never end.

    Raises:
        GoldenBroken: it is missing, no regular file, or too large.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise GoldenBroken("UNREADABLE", f"{what} is no regular file")
            content = file.read(max_bytes + 1)
    except OSError as error:
        raise GoldenBroken("UNREADABLE", f"{what} cannot be read: {(error.strerror or 'failed').lower()}") from error
    if len(content) > max_bytes:
        raise GoldenBroken("UNREADABLE", f"{what} has more than {max_bytes} bytes")
    return content


def _digest(folder: Path, golden: GoldenSet) -> str:
    """SHA-256 over what is asked and expected, and over the pictures; recorded answers are only for people."""
    pictures = {"": ""}
    lines = [f"floor {golden.floor!r}"]
    for item in golden.items:
        if item.image not in pictures:
            content = read_regular(folder / item.image, MAX_PICTURE_BYTES, f"the picture of {item.item!r}")
            pictures[item.image] = hashlib.sha256(content).hexdigest()
        asked = [item.item, pictures[item.image], item.premise, item.texts, item.expected]
        lines.append(json.dumps(asked, ensure_ascii=False))
    return "sha256:" + hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()
