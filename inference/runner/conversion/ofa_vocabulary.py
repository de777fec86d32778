"""The answers of a published OFA: whose label each is, and where they part."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from common.durable import read_bounded
from common.source import ConversionRefused
from inference.runner.conversion.ofa_config import Architecture, read_object
from inference.runner.engines.ofa.config import LABELS, Fork
from inference.runner.engines.ofa.tokenizer import BEGIN, END, PAD, UNKNOWN, Tokenizer

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


MAX_WORDS_BYTES = 32 << 20
_MERGES = "merges.txt"


@dataclass(frozen=True, slots=True)
class Words:
    """What a text can be cut into."""

    vocabulary: Mapping[str, int]
    merges: tuple[tuple[str, str], ...]  # in order of rank
    rows: int  # of the embedding that these words use
    answers: Answers
    labels: tuple[str, ...]  # in the order of the answer map's own numbers

    def tokenizer(self) -> Tokenizer:
        """A tokenizer of these words."""
        return Tokenizer(self.vocabulary, self.merges)

    def vocabulary_json(self) -> bytes:
        """Content of the sealed `vocab.json`."""
        return json.dumps(self.vocabulary, ensure_ascii=False).encode() + b"\n"

    def merges_text(self) -> bytes:
        """Content of the sealed `merges.txt`: a pair a line, no header."""
        return "".join(f"{left} {right}\n" for left, right in self.merges).encode()


def read_words(folder: Path, architecture: Architecture, answer_map: str) -> Words:
    """Read and check the words.

    Raises:
        ConversionRefused: they are malformed, do not fit the embedding, or the answers are not ours.
    """
    vocabulary = _read_vocabulary(folder)
    rows = max(vocabulary.values()) + 1
    if rows > architecture.vocabulary:
        message = f"the vocabulary uses ids up to {rows - 1}, config.json: vocab_size is {architecture.vocabulary}"
        raise ConversionRefused("VOCABULARY_BROKEN", message)
    for token in (BEGIN, PAD, END, UNKNOWN):
        if token not in vocabulary:
            raise ConversionRefused("VOCABULARY_BROKEN", f"the vocabulary lacks {token!r}")
    if vocabulary[PAD] != architecture.pad_token:
        message = f"config.json: pad_token_id is {architecture.pad_token}, the vocabulary says {vocabulary[PAD]}"
        raise ConversionRefused("CONFIG_UNSUPPORTED", message)
    merges = _read_merges(folder)
    answer_rows = read_object(folder, answer_map, MAX_WORDS_BYTES)
    answers = _answers(Tokenizer(vocabulary, merges), vocabulary, answer_rows)
    return Words(vocabulary, merges, rows, answers, labels_in_order(answer_rows))


def _read_vocabulary(folder: Path) -> dict[str, int]:
    """Token to id, from `vocab.json`, or from `vocab.txt` with a token a line."""
    if (folder / "vocab.json").is_file():
        row = read_object(folder, "vocab.json", MAX_WORDS_BYTES)
        count = len(row)
        vocabulary = {token: number for token, number in row.items() if type(number) is int and number >= 0}
    else:
        lines = _lines(folder, "vocab.txt")
        count = len(lines)
        vocabulary = {token: number for number, token in enumerate(lines)}
    if not vocabulary or len(vocabulary) != count or len(set(vocabulary.values())) != count:
        message = "the vocabulary holds a token twice, or an id that is no unique integer of at least 0"
        raise ConversionRefused("VOCABULARY_BROKEN", message)
    return vocabulary


def _read_merges(folder: Path) -> tuple[tuple[str, str], ...]:
    """Pairs after the header line."""
    pairs = [line.split() for line in _lines(folder, _MERGES)[1:]]
    if any(len(pair) != 2 for pair in pairs):  # noqa: PLR2004 - a pair is two
        raise ConversionRefused("VOCABULARY_BROKEN", f"{_MERGES} holds a line that is no pair")
    return tuple((left, right) for left, right in pairs)


def _lines(folder: Path, name: str) -> list[str]:
    try:
        return read_bounded(folder / name, MAX_WORDS_BYTES).decode("utf-8").removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise ConversionRefused("VOCABULARY_BROKEN", f"{name} is no UTF-8") from error
    except ValueError as error:
        raise ConversionRefused("VOCABULARY_BROKEN", str(error)) from error


def _answers(tokenizer: Tokenizer, vocabulary: Mapping[str, int], answer_map: Mapping[str, object]) -> Answers:
    """Cut the answers into tokens and find where they part."""
    paths: list[tuple[int, ...]] = []
    for answer in answers_by_label(answer_map).values():
        tokens = tokenizer.encode(f" {answer}")
        if not 0 < len(tokens) <= MAX_ANSWER_TOKENS or vocabulary[UNKNOWN] in tokens:
            message = f"answer {answer[:80]!r} is {len(tokens)} tokens or holds an unknown one, supported: 1 to "
            raise ConversionRefused("ANSWERS_UNSUPPORTED", f"{message}{MAX_ANSWER_TOKENS} tokens of the vocabulary")
        paths.append((*tokens, vocabulary[END]))
    if len(set(paths)) != len(paths):
        raise ConversionRefused("ANSWERS_UNSUPPORTED", "two answers are the same tokens, supported: three that differ")
    return score_answers(paths)
