"""Answers as text, and how two of them compare: one row of a table for each task. Pure.

Golden sets, the gate and the command line know answers only through `TaskAnswers`. An answer is a text that is equal
for equal answers.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, Protocol

from common.engine_files import Task
from common.json_load import load_json

LABELS = ("yes", "no", "maybe")
SURE = 0.9  # least probability of an answer of which a model is sure; of each part, where an answer has parts
MAX_DIRECTIONS = 5  # named of a comparison
ARROW = " → "  # between the two sides of a direction


@dataclass(frozen=True, slots=True)
class PartCounts:
    """Parts of answers, for precision and recall."""

    right: int = 0
    expected: int = 0
    given: int = 0

    def __add__(self, other: "PartCounts") -> "PartCounts":
        """The sum."""
        return PartCounts(self.right + other.right, self.expected + other.expected, self.given + other.given)

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall, 0 to 1; 1 if there is nothing to find and nothing was found."""
        total = self.expected + self.given
        return 2 * self.right / total if total else 1.0


class TaskAnswers(Protocol):
    """How a task's answers are written, read and compared."""

    @property
    def texts_key(self) -> str:
        """The key of the questions in a line of a golden set."""
        ...

    @property
    def has_picture(self) -> bool:
        """Whether each item has a picture."""
        ...

    @property
    def has_parts(self) -> bool:
        """Whether an answer can be right in part, so that F1 says more than the share of right answers."""
        ...

    def parse(self, text: str, value: object) -> str:
        """The answer to a question, from the JSON value that a person or `hotslot golden record` wrote.

        Raises:
            ValueError: it is not an answer; the message says what is.
        """
        ...

    def to_json(self, answer: str) -> object:
        """The inverse of `parse`."""
        ...

    def list_labels(self, answer: str) -> tuple[str, ...]:
        """The labels in an answer, for its distribution."""
        ...

    def find_directions(self, before: str, after: str) -> tuple[str, ...]:
        """How two answers differ, by label, for example "yes → no"; empty if they are equal."""
        ...

    def list_kept(self, before: str, after: str) -> tuple[str, ...]:
        """The labels that both answers have, at the same place."""
        ...

    def count_parts(self, expected: str, given: str) -> PartCounts:
        """How many parts of an answer are right."""
        ...


class StatementAnswers:
    """Answers of visual entailment: "yes", "no" or "maybe"."""

    texts_key = "statements"
    has_picture = True
    has_parts = False

    def parse(self, text: str, value: object) -> str:
        """See `TaskAnswers`."""
        del text
        if not isinstance(value, str) or value not in LABELS:
            raise ValueError(f"each answer must be one of {', '.join(LABELS)}")
        return value

    def to_json(self, answer: str) -> object:
        """See `TaskAnswers`."""
        return answer

    def list_labels(self, answer: str) -> tuple[str, ...]:
        """See `TaskAnswers`."""
        return (answer,)

    def find_directions(self, before: str, after: str) -> tuple[str, ...]:
        """See `TaskAnswers`."""
        return () if before == after else (f"{before}{ARROW}{after}",)

    def list_kept(self, before: str, after: str) -> tuple[str, ...]:
        """See `TaskAnswers`."""
        return (before,) if before == after else ()

    def count_parts(self, expected: str, given: str) -> PartCounts:
        """See `TaskAnswers`."""
        return PartCounts(int(expected == given), 1, 1)


@dataclass(frozen=True, slots=True)
class AddressPart:
    """One part of an address."""

    kind: str
    text: str
    start: int  # first code point

    @property
    def end(self) -> int:
        """Code point after the last."""
        return self.start + len(self.text)


class AddressAnswers:
    """Answers of address tagging: the parts in reading order, as JSON rows of kind, text and first code point."""

    texts_key = "addresses"
    has_picture = False
    has_parts = True

    def parse(self, text: str, value: object) -> str:
        """See `TaskAnswers`. A person may leave out the places, and write an object where no kind is repeated."""
        if isinstance(value, Mapping):
            parts = sorted(
                (_find_part(text, kind, found, 0) for kind, found in value.items()), key=lambda part: part.start
            )
        elif isinstance(value, list):
            parts, end = [], 0
            for row in value:
                if not isinstance(row, list) or len(row) not in (2, 3):
                    raise ValueError(_FORM)
                part = _find_part(text, row[0], row[1], end)
                if len(row) == 3 and row[2] != part.start:  # noqa: PLR2004 - kind, text, place
                    part = _place_part(text, part, row[2])
                parts.append(part)
                end = part.end
        else:
            raise ValueError(_FORM)
        if any(left.end > right.start for left, right in pairwise(parts)):
            raise ValueError("the parts of an answer overlap, or are not in reading order")
        return format_parts(parts)

    def to_json(self, answer: str) -> object:
        """See `TaskAnswers`."""
        return load_json(answer)

    def list_labels(self, answer: str) -> tuple[str, ...]:
        """See `TaskAnswers`."""
        return tuple(part.kind for part in _read_parts(answer))

    def find_directions(self, before: str, after: str) -> tuple[str, ...]:
        """See `TaskAnswers`: for each part that is gone, the kind that its first character has now."""
        old, new = _read_parts(before), _read_parts(after)
        directions = []
        for part in old:
            if part not in new:
                now = next((one.kind for one in new if one.start <= part.start < one.end), "none")
                directions.append(f"{part.kind}{ARROW}{now if now != part.kind else 'other characters'}")
        covered = {place for part in old for place in range(part.start, part.end)}
        directions += [f"none{ARROW}{part.kind}" for part in new if part.start not in covered]
        return tuple(directions)

    def list_kept(self, before: str, after: str) -> tuple[str, ...]:
        """See `TaskAnswers`."""
        new = _read_parts(after)
        return tuple(part.kind for part in _read_parts(before) if part in new)

    def count_parts(self, expected: str, given: str) -> PartCounts:
        """See `TaskAnswers`: a part is right if its kind, place and text are."""
        wanted, found = _read_parts(expected), _read_parts(given)
        return PartCounts(len(set(wanted) & set(found)), len(wanted), len(found))


_FORM = 'each answer must be an object from kind to text, or a list of parts: [["prov", "浙江省"], ["city", "杭州市"]]'


def format_parts(parts: Iterable[AddressPart]) -> str:
    """The parts of an address, in reading order, as an answer."""
    return json.dumps([[part.kind, part.text, part.start] for part in parts], ensure_ascii=False)


def _read_parts(answer: str) -> tuple[AddressPart, ...]:
    """The parts of an answer; none of an answer that failed."""
    try:
        return tuple(AddressPart(kind, text, start) for kind, text, start in load_json(answer))
    except (ValueError, TypeError):
        return ()


def _find_part(text: str, kind: object, part: object, after: int) -> AddressPart:
    if not isinstance(kind, str) or not isinstance(part, str) or not kind or not part:
        raise ValueError(_FORM)
    start = text.find(part, after)
    if start < 0:
        raise ValueError(f"the part {part[:40]!r} is not in {text[:80]!r}" + (" after the one before" if after else ""))
    return AddressPart(kind, part, start)


def _place_part(text: str, part: AddressPart, start: object) -> AddressPart:
    if type(start) is not int or not start >= 0 or text[start : start + len(part.text)] != part.text:
        raise ValueError(f"the part {part.text[:40]!r} is not at {str(start)[:20]} in {text[:80]!r}")
    return AddressPart(part.kind, part.text, start)


TASK_ANSWERS: Final[Mapping[Task, TaskAnswers]] = {
    Task.VISUAL_ENTAILMENT: StatementAnswers(),
    Task.ADDRESS_TAGGING: AddressAnswers(),
}


def count_directions(rules: TaskAnswers, pairs: Iterable[tuple[str, str]]) -> list[tuple[str, int]]:
    """How answers differ, the most frequent ways first, with how often; at most MAX_DIRECTIONS."""
    counted = Counter(way for before, after in pairs for way in rules.find_directions(before, after))
    return counted.most_common(MAX_DIRECTIONS)


def count_label_pairs(rules: TaskAnswers, pairs: Iterable[tuple[str, str]]) -> list[tuple[str, str, int]]:
    """How often a label became which, or stayed, over pairs of answers; the most frequent first."""
    counted = Counter[tuple[str, str]]()
    for before, after in pairs:
        counted.update((label, label) for label in rules.list_kept(before, after))
        for direction in rules.find_directions(before, after):
            old, _, new = direction.partition(ARROW)
            counted[old, new] += 1
    return [(*pair, count) for pair, count in counted.most_common()]


def measure_distribution(rules: TaskAnswers, answers: Iterable[str]) -> dict[str, float]:
    """The share of each label in answers, the most frequent first."""
    counted = Counter(label for answer in answers for label in rules.list_labels(answer))
    return {label: count / counted.total() for label, count in counted.most_common()}


def sum_parts(rules: TaskAnswers, pairs: Sequence[tuple[str, str]]) -> PartCounts:
    """The parts of all answers, each pair the expected answer and the given one."""
    return sum((rules.count_parts(expected, given) for expected, given in pairs), PartCounts())
