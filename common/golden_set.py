"""Golden sets: pictures or addresses with their expected answers, kept by the operator.

A golden set is a folder with `golden.jsonl` and its pictures. One line is one item: a JSON object

    {"item": "street-17", "image": "street-17.jpg", "statements": ["there is a dog"], "expected": ["yes"]}
    {"item": "order-4", "addresses": ["浙江省杭州市…"], "expected": [[["prov", "浙江省"], ["city", "杭州市"]]]}

`common.answers` has what an answer of each task may be. `premise` is allowed beside `statements`. For an item without
`expected` a candidate is compared with the active model.
`answers` keeps the active model's answers from when the item was recorded, for people. A first line
`{"min_accuracy": 0.8}` sets the lowest accuracy with which a candidate passes.
"""

import hashlib
import json
import os
import re
import stat
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from common.answers import TASK_ANSWERS, TaskAnswers
from common.durable import hold_lock, write_atomic
from common.engine_files import Task
from common.json_load import HalfCharacter, load_json

MAX_LINE_CHARS = 1 << 20
MAX_ITEMS = 10_000
MAX_TEXTS = 64  # of one item: as many as one call takes


class GoldenBroken(ValueError):
    """A golden set cannot be used; the message names the line and the reason.

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
    expected: tuple[str, ...] = ()  # answers in the form of `common.answers`; empty: none expected
    answers: tuple[str, ...] = ()  # the active model's when the item was recorded; for people

    @property
    def texts(self) -> tuple[str, ...]:
        """The statements or addresses; each is one question."""
        return self.statements or self.addresses


@dataclass(frozen=True, slots=True)
class GoldenSet:
    """All items of a set, without the pictures' bytes."""

    items: tuple[GoldenItem, ...]
    min_accuracy: float = 0.0  # least accuracy, 0 to 1

    @property
    def questions(self) -> int:
        """The number of questions in all items."""
        return sum(len(item.texts) for item in self.items)

    @property
    def expected(self) -> int:
        """The number of questions with an expected answer."""
        return sum(len(item.expected) for item in self.items)


def parse(text: str, task: str) -> GoldenSet:
    """Parse the content of `golden.jsonl`.

    Args:
        text: the whole file.
        task: of the model: "visual-entailment" or "token-classification".

    Raises:
        GoldenBroken: it has no items, a line is malformed, or an item is for another task.
    """
    items: list[GoldenItem] = []
    min_accuracy = 0.0
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        row = _object(line, number)
        if not items and set(row) == {"min_accuracy"}:
            min_accuracy = _share(row["min_accuracy"], number)
            continue
        items.append(_item(row, number, task))
        if len(items) > MAX_ITEMS:
            raise GoldenBroken("UNREADABLE", f"the set has more than {MAX_ITEMS} items")
    if not items:
        raise GoldenBroken("EMPTY", "the set has no items")
    name, times = Counter(item.item for item in items).most_common(1)[0]
    if times > 1:
        raise GoldenBroken("UNREADABLE", f"item {name[:80]!r} appears twice")
    return GoldenSet(tuple(items), min_accuracy)


def format_item(item: GoldenItem, answers: Sequence[str] = ()) -> str:
    """One item as a line of `golden.jsonl`, with `answers` or, if empty, the item's own recorded answers."""
    row: dict[str, object] = {"item": item.item}
    if item.image:
        row["image"] = item.image
    if item.premise:
        row["premise"] = item.premise
    rules = TASK_ANSWERS[Task.VISUAL_ENTAILMENT if item.statements else Task.ADDRESS_TAGGING]
    row[rules.texts_key] = list(item.texts)
    if item.expected:
        row["expected"] = [rules.to_json(answer) for answer in item.expected]
    recorded = answers or item.answers
    if recorded:
        row["answers"] = [rules.to_json(answer) for answer in recorded]
    return json.dumps(row, ensure_ascii=False) + "\n"


def _object(line: str, number: int) -> dict[str, object]:
    if len(line) > MAX_LINE_CHARS:
        raise GoldenBroken("UNREADABLE", f"line {number} has more than {MAX_LINE_CHARS} characters")
    try:
        row = load_json(line)
    except HalfCharacter as error:
        raise GoldenBroken("UNREADABLE", str(error).replace("line 1", f"line {number}", 1)) from error
    except ValueError as error:
        raise GoldenBroken("UNREADABLE", f"line {number} is not JSON") from error
    if not isinstance(row, dict):
        raise GoldenBroken("UNREADABLE", f"line {number} is not a JSON object")
    return row


def _item(row: Mapping[str, object], number: int, task: str) -> GoldenItem:
    unknown = set(row) - {"item", "image", "premise", "statements", "addresses", "expected", "answers"}
    if unknown:
        raise GoldenBroken("UNREADABLE", f"line {number} has the unknown key {min(unknown)[:80]!r}")
    rules = TASK_ANSWERS[Task(task)]
    if rules.texts_key not in row:
        raise GoldenBroken("OTHER_TASK", f"line {number} is not an item for task {task}")
    texts = _texts(row, rules.texts_key, number)
    item, image, premise = (_text(row, key, number) for key in ("item", "image", "premise"))
    if not item or (rules.has_picture and not image):
        raise GoldenBroken("UNREADABLE", f"line {number} lacks {'item' if not item else 'image'}")
    if image != image.replace("\\", "/").rsplit("/", 1)[-1] or image in (".", "..") or "\0" in image:
        raise GoldenBroken("UNREADABLE", f"line {number}: image must be a file name without a folder")
    expected = _answers(row.get("expected"), "expected", texts, number, rules)
    answers = _answers(row.get("answers"), "answers", texts, number, rules)
    if rules.has_picture:
        return GoldenItem(item, image, premise, statements=texts, expected=expected, answers=answers)
    return GoldenItem(item, addresses=texts, expected=expected, answers=answers)


def _answers(value: object, key: str, texts: tuple[str, ...], number: int, rules: TaskAnswers) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or len(value) != len(texts):
        message = f"line {number}: {key} must be a list of {len(texts)} answers, one per question"
        raise GoldenBroken("UNREADABLE", message)
    try:
        return tuple(rules.parse(text, entry) for text, entry in zip(texts, value, strict=True))
    except ValueError as error:
        raise GoldenBroken("UNREADABLE", f"line {number}: {error}") from error


def _texts(row: Mapping[str, object], key: str, number: int) -> tuple[str, ...]:
    value = row[key]
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_TEXTS:
        raise GoldenBroken("UNREADABLE", f"line {number}: {key} must be a list of 1 to {MAX_TEXTS} texts")
    if not all(isinstance(entry, str) and entry for entry in value):
        raise GoldenBroken("UNREADABLE", f"line {number}: {key} must contain only non-empty texts")
    return tuple(value)


def _text(row: Mapping[str, object], key: str, number: int) -> str:
    value = row.get(key, "")
    if not isinstance(value, str):
        raise GoldenBroken("UNREADABLE", f"line {number}: {key} must be a text")
    return value


def _share(value: object, number: int) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise GoldenBroken("UNREADABLE", f"line {number}: min_accuracy must be a number from 0 to 1")
    return float(value)


SET_NAME = "golden.jsonl"
MAX_NAME_CHARS = 128
_LOCK_NAME, _LOCK_SECONDS = ".golden.lock", 10.0
_PICTURE_MARKS = ((".jpg", b"\xff\xd8\xff", b""), (".png", b"\x89PNG\r\n\x1a\n", b""), (".webp", b"RIFF", b"WEBP"))
MAX_SET_BYTES = 16 << 20
MAX_PICTURE_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class GoldenFolder:
    """A set that was read and checked; the pictures stay on disk."""

    folder: Path
    golden: GoldenSet
    digest: str  # of the questions, the expected answers and the pictures
    distinct: GoldenSet  # each question once, whatever pictures and items it is copied to: a copy proves nothing more

    @property
    def copies(self) -> int:
        """Questions that are asked several times in the set, without their first time."""
        return self.golden.questions - self.distinct.questions

    def picture(self, item: GoldenItem) -> bytes:
        """Read an item's picture.

        Raises:
            GoldenBroken: the file is missing, not a regular file, or too large.
        """
        return read_regular(self.folder / item.image, MAX_PICTURE_BYTES, f"the picture of {item.item!r}")


HashPicture = Callable[[Path, str], str]
"""(path of a picture, what it is, for messages) → its SHA-256; raises GoldenBroken."""


def hash_picture(path: Path, what: str) -> str:
    """SHA-256 of a picture.

    Raises:
        GoldenBroken: the file is missing, not a regular file, or too large.
    """
    return hashlib.sha256(read_regular(path, MAX_PICTURE_BYTES, what)).hexdigest()


def read_folder(folder: Path, task: str, hash_one: HashPicture = hash_picture) -> GoldenFolder:
    """Read and check the set in a folder.

    Args:
        folder: with `golden.jsonl` and the pictures.
        task: of the model.
        hash_one: reads one picture.

    Raises:
        GoldenBroken: the set is missing, empty, malformed or for another task, or a picture is missing.
    """
    raw = read_regular(folder / SET_NAME, MAX_SET_BYTES, SET_NAME)
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise GoldenBroken("UNREADABLE", f"{SET_NAME} is not UTF-8") from error
    golden = parse(text, task)
    pictures = {"": ""}
    for item in golden.items:
        if item.image not in pictures:
            pictures[item.image] = hash_one(folder / item.image, f"the picture of {item.item!r}")
    return GoldenFolder(folder, golden, _digest(golden, pictures), _drop_copies(golden, pictures))


def read_regular(path: Path, max_bytes: int, what: str) -> bytes:
    """Read a regular file of limited size; a pipe would block for ever.

    Raises:
        GoldenBroken: the file is missing, not a regular file, or too large.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise GoldenBroken("UNREADABLE", f"{what} is not a regular file")
            content = file.read(max_bytes + 1)
    except OSError as error:
        raise GoldenBroken("UNREADABLE", f"{what} cannot be read: {(error.strerror or 'failed').lower()}") from error
    if len(content) > max_bytes:
        raise GoldenBroken("UNREADABLE", f"{what} has more than {max_bytes} bytes")
    return content


def _digest(golden: GoldenSet, pictures: Mapping[str, str]) -> str:
    """SHA-256 of the questions, the expected answers and the pictures; recorded answers are left out."""
    lines = [f"floor {golden.min_accuracy!r}"]  # the key's earlier name: digests of recorded sets must not change
    for item in golden.items:
        asked = [item.item, pictures[item.image], item.premise, item.texts, item.expected]
        lines.append(json.dumps(asked, ensure_ascii=False))
    return "sha256:" + hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


def _drop_copies(golden: GoldenSet, pictures: Mapping[str, str]) -> GoldenSet:
    """The set with each question once: where an answer is expected, if it is anywhere, else where it comes first."""
    places: dict[tuple[str, str, str], tuple[int, int]] = {}
    for with_expected in (True, False):
        for number, item in enumerate(golden.items):
            if bool(item.expected) is with_expected:
                for position, text in enumerate(item.texts):
                    places.setdefault((pictures[item.image], item.premise, text), (number, position))
    if len(places) == golden.questions:
        return golden
    kept: dict[int, list[int]] = {}
    for number, position in sorted(places.values()):
        kept.setdefault(number, []).append(position)
    return replace(golden, items=tuple(_keep(golden.items[number], positions) for number, positions in kept.items()))


def _keep(item: GoldenItem, positions: Sequence[int]) -> GoldenItem:
    """An item with some of its questions."""
    statements, addresses, expected, answers = (
        tuple(row[position] for position in positions) if row else ()
        for row in (item.statements, item.addresses, item.expected, item.answers)
    )
    return replace(item, statements=statements, addresses=addresses, expected=expected, answers=answers)


class ItemExists(ValueError):
    """An item of this name is in the set already."""


def add_item(folder: Path, task: Task, item: GoldenItem, picture: bytes = b"") -> GoldenItem:
    """Add an item at the end of the set in a folder; a set that is missing begins with it.

    The picture is written before the line that names it, each as a whole, so a reader sees the set of before or after.

    Args:
        folder: of the set; must exist.
        task: of the model.
        item: without the picture's file name; an empty name is made from the content.
        picture: bytes of the picture; empty for addresses.

    Returns:
        The item as it was added.

    Raises:
        GoldenBroken: the item is malformed, or the set is.
        ItemExists: its name is taken.
        OSError: nothing was written.
        LockTimeout: another process is writing.
    """
    content = repr((item.premise, item.texts, item.expected)).encode() + picture
    name = item.item or f"item-{hashlib.sha256(content).hexdigest()[:12]}"
    if len(name) > MAX_NAME_CHARS or not name.isprintable():
        raise GoldenBroken("UNREADABLE", f"the name of an item has 1 to {MAX_NAME_CHARS} printable characters")
    image = _picture_name(name, picture) if TASK_ANSWERS[task].has_picture else ""
    added = replace(item, item=name, image=image)
    line = format_item(added)
    parse(line, task.value)
    with hold_lock(folder / _LOCK_NAME, _LOCK_SECONDS):
        path = folder / SET_NAME
        before = read_regular(path, MAX_SET_BYTES, SET_NAME) if path.exists() else b""
        known = parse(before.decode("utf-8"), task.value).items if before.strip() else ()
        if any(name == other.item for other in known):
            raise ItemExists(f"the set has an item {name!r} already")
        if image and (folder / image).exists():
            image = f"{Path(image).stem}-{hashlib.sha256(picture).hexdigest()[:12]}{Path(image).suffix}"
            added = replace(added, image=image)
            line = format_item(added)
        after = before + (b"" if not before or before.endswith(b"\n") else b"\n") + line.encode()
        parse(after.decode("utf-8"), task.value)
        if image:
            write_atomic(folder / image, picture)
        write_atomic(path, after)
    return added


def _picture_name(item: str, picture: bytes) -> str:
    """A plain file name for a picture, by its content.

    Raises:
        GoldenBroken: it is none of the formats that a server takes, or too large.
    """
    if len(picture) > MAX_PICTURE_BYTES:
        raise GoldenBroken("UNREADABLE", f"the picture has {len(picture)} bytes, more than {MAX_PICTURE_BYTES}")
    for suffix, start, inner in _PICTURE_MARKS:
        if picture.startswith(start) and picture[8 : 8 + len(inner)] == inner:
            return (re.sub(r"[^A-Za-z0-9_-]+", "-", item).strip("-") or "item")[:80] + suffix
    raise GoldenBroken("UNREADABLE", "the picture is no JPEG, PNG or WebP" if picture else "the item needs a picture")
