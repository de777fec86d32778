"""The answers of a published OFA: whose label each is, and where they part."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from common.source import ConversionRefused
from inference.runner.engines.ofa.config import LABELS, Fork

MAX_ANSWER_TOKENS = 32
_MEANINGS = {
    # A word of an answer, and the label that it means; the second of each is the task's own name of it.
    "yes": "yes",
    "entailment": "yes",
    "no": "no",
    "contradiction": "no",
    "maybe": "maybe",
    "neutral": "maybe",
}
_WORD = re.compile(r"[a-z]+")


@dataclass(frozen=True, slots=True)
class Answers:
    """How the answers are scored."""

    stem: tuple[int, ...]  # tokens that answers have in common, up to the last fork
    forks: tuple[Fork, ...]
    tokens: tuple[int, ...]  # by which answers go on at the forks: the rows of the engine's `answers`


def answers_by_label(answer_map: Mapping[str, object]) -> dict[str, str]:
    """The answer of each label, in the order of LABELS.

    An answer has the label of the one word in it that says yes, no or maybe.

    Raises:
        ConversionRefused: there are others than three, or one says nothing or two things.
    """
    found: dict[str, str] = {}
    for answer in answer_map:
        labels = {_MEANINGS[word] for word in _WORD.findall(answer.lower()) if word in _MEANINGS}
        if len(labels) == 1:
            found.setdefault(labels.pop(), answer)
    if set(found) != set(LABELS) or len(answer_map) != len(LABELS):
        message = f"the answers are {', '.join(sorted(answer_map))[:80]}, supported: one each that says "
        raise ConversionRefused("ANSWERS_UNSUPPORTED", message + ", ".join(LABELS))
    return {label: found[label] for label in LABELS}


def labels_in_order(answer_map: Mapping[str, object]) -> tuple[str, ...]:
    """The labels by the numbers that the map gives to their answers; in the file's order where it gives none.

    Raises:
        ConversionRefused: as `answers_by_label` says.
    """
    label_of = {answer: label for label, answer in answers_by_label(answer_map).items()}
    numbers = {answer: number for answer, number in answer_map.items() if type(number) is int}
    if len(set(numbers.values())) != len(answer_map):
        return tuple(label_of[answer] for answer in answer_map)
    return tuple(label_of[answer] for answer in sorted(numbers, key=lambda answer: numbers[answer]))


def score_answers(paths: Sequence[tuple[int, ...]]) -> Answers:
    """Find where answers part.

    Args:
        paths: tokens of the answer of each of LABELS, each with the end token behind it; no two are equal.
    """
    stem: list[int] = []
    forks: list[Fork] = []
    tokens: list[int] = []
    together = set(range(len(paths)))
    while len(together) > 1:
        ways = {label: paths[label][len(stem)] for label in sorted(together)}
        if len(set(ways.values())) > 1:
            rows = {token: len(tokens) + number for number, token in enumerate(dict.fromkeys(ways.values()))}
            yes, no, maybe = (rows[ways[label]] if label in ways else -1 for label in range(len(LABELS)))
            forks.append(Fork(len(stem), (yes, no, maybe)))
            tokens += rows
        # Of three, no more than one group goes on together.
        common = max(set(ways.values()), key=list(ways.values()).count)
        together = {label for label, token in ways.items() if token == common}
        if len(together) > 1:
            stem.append(common)
    return Answers(tuple(stem), tuple(forks), tuple(tokens))
