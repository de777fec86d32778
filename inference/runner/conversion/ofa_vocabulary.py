"""Vocabulary and answers of a published OFA: the label of each answer, and the tokens at which answers differ."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from common.source import ConversionRefused
from inference.runner.conversion.config_file import read_object, show_value
from inference.runner.conversion.ofa_added_words import read_added_words
from inference.runner.conversion.ofa_config import ARCHITECTURE, Architecture
from inference.runner.conversion.refusals import DisagreementRefused, refusing
from inference.runner.conversion.text_lines import read_lines
from inference.runner.engines.ofa.config import LABELS, Fork
from inference.runner.engines.ofa.tokenizer import BEGIN, END, PAD, UNKNOWN, Tokenizer

MAX_ANSWER_TOKENS = 32
_MEANINGS = {
    # Words of answers and their labels; the second word of each label is the name in the SNLI-VE data set.
    "yes": "yes",
    "entailment": "yes",
    "no": "no",
    "contradiction": "no",
    "maybe": "maybe",
    "neutral": "maybe",
}
_WORD = re.compile(r"[a-z]+")


@dataclass(frozen=True, slots=True)
class AnswerForks:
    """Tokens at which the answers are scored."""

    stem: tuple[int, ...]  # tokens that answers share, up to the last fork
    forks: tuple[Fork, ...]
    tokens: tuple[int, ...]  # continuations at the forks: the rows of the engine's `answer_embeddings`


def assign_answers(answer_map: Mapping[str, object]) -> dict[str, str]:
    """Return the answer of each label, in the order of LABELS.

    An answer's label follows from the only word in it that means yes, no or maybe.

    Raises:
        ConversionRefused: there are not exactly three answers, or one has no label or two.
    """
    found: dict[str, str] = {}
    for answer in answer_map:
        labels = {_MEANINGS[word] for word in _WORD.findall(answer.lower()) if word in _MEANINGS}
        if len(labels) == 1:
            found.setdefault(labels.pop(), answer)
    if set(found) != set(LABELS) or len(answer_map) != len(LABELS):
        answers = ", ".join(sorted(answer_map))[:80] or "none"
        message = f"the answers are {answers}, supported: one answer for each of "
        words = ", ".join(word for word in _MEANINGS if word not in LABELS)
        means = f"; an answer means one of them by a word in it, also {words}"
        raise ConversionRefused("ANSWERS_UNSUPPORTED", message + ", ".join(LABELS) + means)
    return {label: found[label] for label in LABELS}


def order_labels(answer_map: Mapping[str, object]) -> tuple[str, ...]:
    """Return the labels in the order of their answers' numbers in the map; in the file's order if numbers are missing.

    Raises:
        ConversionRefused: as in `assign_answers`.
    """
    label_of = {answer: label for label, answer in assign_answers(answer_map).items()}
    numbers = {answer: number for answer, number in answer_map.items() if type(number) is int}
    if len(set(numbers.values())) != len(answer_map):
        return tuple(label_of[answer] for answer in answer_map)
    return tuple(label_of[answer] for answer in sorted(numbers, key=lambda answer: numbers[answer]))


def find_forks(paths: Sequence[tuple[int, ...]]) -> AnswerForks:
    """Find the positions at which answers differ.

    Args:
        paths: tokens of each label's answer in the order of LABELS, each followed by the end token; all different.
    """
    stem: list[int] = []
    forks: list[Fork] = []
    tokens: list[int] = []
    undecided = set(range(len(paths)))
    while len(undecided) > 1:
        next_tokens = {label: paths[label][len(stem)] for label in sorted(undecided)}
        if len(set(next_tokens.values())) > 1:
            rows = {token: len(tokens) + number for number, token in enumerate(dict.fromkeys(next_tokens.values()))}
            yes, no, maybe = (rows[next_tokens[label]] if label in next_tokens else -1 for label in range(len(LABELS)))
            forks.append(Fork(len(stem), (yes, no, maybe)))
            tokens += rows
        # Of three answers at most one group of two continues with the same token.
        common = max(set(next_tokens.values()), key=list(next_tokens.values()).count)
        undecided = {label for label, token in next_tokens.items() if token == common}
        if len(undecided) > 1:
            stem.append(common)
    return AnswerForks(tuple(stem), tuple(forks), tuple(tokens))


MAX_VOCABULARY_BYTES = 32 << 20
_MERGES = "merges.txt"
_CODED = 9192  # tokens that the stock tokeniser adds in code


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Tokens, merges and answers of a published OFA."""

    ids: Mapping[str, int]  # by token, added words included
    merges: tuple[tuple[str, str], ...]  # in order of rank
    rows: int  # rows of the embedding that the ids use
    answers: AnswerForks
    labels: tuple[str, ...]  # in the order of the answer map's numbers
    added: Mapping[str, int]  # ids of words at which a text is cut before anything else
    notes: tuple[str, ...]

    def make_tokenizer(self) -> Tokenizer:
        """Return a tokenizer of this vocabulary."""
        return Tokenizer(self.ids, self.merges, self.added)

    def to_merges_text(self) -> bytes:
        """Return the content of the bundle's `merges.txt`: one pair a line, no header."""
        return "".join(f"{left} {right}\n" for left, right in self.merges).encode()


def encode_ids(ids: Mapping[str, int]) -> bytes:
    """Return the content of the bundle's `vocab.json` or `added_words.json`."""
    return json.dumps(dict(ids), ensure_ascii=False).encode() + b"\n"


def _describe_lacking(name: str, token: str, entries: int) -> str:
    advice = "publish the files with which the model was trained"
    return f"{name} lacks {token!r}: the vocabulary has {entries} entries; {advice}"


def read_vocabulary(folder: Path, architecture: Architecture, answer_map: str) -> Vocabulary:
    """Read and check vocabulary, merges and answers.

    Raises:
        ConversionRefused: a file is malformed, the ids do not fit the embedding, or the answers are not supported.
    """
    notes: list[str] = []
    name = "vocab.json" if (folder / "vocab.json").is_file() else "vocab.txt"
    with refusing(name):
        ids = _read_ids(folder, notes)
    rows = max(ids.values()) + 1
    if rows > architecture.vocabulary:
        message = (
            f"{name}: the vocabulary uses ids up to {rows - 1}, config.json: vocab_size is {architecture.vocabulary}"
        )
        raise DisagreementRefused("VOCABULARY_BROKEN", message, name, [(f"{ARCHITECTURE}: ", "vocab_size")])
    is_short = rows + _CODED < architecture.vocabulary
    counted = f"{name} has {len(ids)} tokens, config.json: vocab_size is {architecture.vocabulary}"
    counted += f", {_CODED} of them added in code"
    if is_short:
        notes.append(f"{counted}: if tokens were removed, others have their numbers")
    _check_special_tokens(name, ids, architecture)
    with refusing(_MERGES):
        merges = _read_merges(folder, notes)
    notes += describe_merges(merges, ids, name)
    added = read_added_words(folder, ids, architecture.vocabulary)
    ids |= added.ids
    rows = max(ids.values()) + 1
    answer_rows = read_object(folder, answer_map, MAX_VOCABULARY_BYTES)
    tokenizer = Tokenizer(ids, merges, added.ids)
    with refusing(answer_map, names_it=True):
        unknown = next((one for one in assign_answers(answer_rows).values() if lacks_token(tokenizer, ids, one)), "")
        if unknown and is_short:
            message = f"{counted}: it lacks the tokens of the answer {unknown[:80]!r}: is it cut off?"
            raise ConversionRefused("VOCABULARY_BROKEN", message, file=name)
        answers = _tokenize_answers(tokenizer, ids, answer_rows)
    notes += _describe_numbers(answer_map, answer_rows)
    return Vocabulary(ids, merges, rows, answers, order_labels(answer_rows), added.ids, (*notes, *added.notes))


def _describe_numbers(answer_map: str, answers: Mapping[str, object]) -> list[str]:
    """A note if two answers have one number."""
    numbers = [number for number in answers.values() if type(number) is int]
    if len(set(numbers)) == len(numbers):
        return []
    return [f"{answer_map}: two answers have the same number; their order in the file is used"]


def _check_special_tokens(name: str, ids: Mapping[str, int], architecture: Architecture) -> None:
    for token in (BEGIN, PAD, END, UNKNOWN):
        if token not in ids:
            raise ConversionRefused("VOCABULARY_BROKEN", _describe_lacking(name, token, len(ids)), file=name)
    if ids[PAD] == architecture.pad_token:
        return
    key = (f"{ARCHITECTURE}: ", "pad_token_id")
    if [ids[token] for token in (BEGIN, PAD, END, UNKNOWN)] != [0, 1, 2, 3]:  # as every trainer has them
        pad = f"{PAD!r} has number {ids[PAD]}, config.json: pad_token_id is {architecture.pad_token}"
        message = f"{name}: {pad}: are the tokens in another order than in training?"
        raise DisagreementRefused("VOCABULARY_BROKEN", message, name, [key], blames_keys=False)
    message = f"config.json: pad_token_id is {architecture.pad_token}, the vocabulary has {ids[PAD]}"
    raise DisagreementRefused("CONFIG_UNSUPPORTED", message, ARCHITECTURE, [key])


def _read_ids(folder: Path, notes: list[str]) -> dict[str, int]:
    """Read ids by token from `vocab.json`, or from `vocab.txt` with one token a line."""
    if (folder / "vocab.json").is_file():
        row = read_object(folder, "vocab.json", MAX_VOCABULARY_BYTES)
        count = len(row)
        ids = {token: number for token, number in row.items() if type(number) is int and number >= 0}
    else:
        text = read_lines(folder, "vocab.txt", MAX_VOCABULARY_BYTES)
        count = len(text.lines)
        ids = {token: number for number, token in enumerate(text.lines)}
        notes += text.notes
        notes.append("vocab.txt: the words are read from it, since there is no vocab.json, which ModelScope requires")
    if not ids or len(ids) != count or len(set(ids.values())) != count:
        raise ConversionRefused("VOCABULARY_BROKEN", _describe_ids(folder))
    return ids


def _describe_ids(folder: Path) -> str:
    """What is wrong with ids that are not one integer each."""
    if not (folder / "vocab.json").is_file():
        return "vocab.txt: the vocabulary has a duplicate token, or is empty"
    row = read_object(folder, "vocab.json", MAX_VOCABULARY_BYTES)
    seen: dict[object, str] = {}
    for token, number in row.items():
        if type(number) is not int or number < 0:
            pair = f"{token[:40]!r} is {show_value(number)}"
            turned = " (are tokens and ids exchanged?)" if token.isdecimal() and isinstance(number, str) else ""
            return f"vocab.json: the id of {pair}, supported: an integer of at least 0 for each token{turned}"
        if number in seen:
            tokens = f"{seen[number][:40]!r} and {token[:40]!r}"
            return f"vocab.json: the vocabulary has a duplicate id: {tokens} are both {number}"
        seen[number] = token
    return "vocab.json has no tokens"


def _read_merges(folder: Path, notes: list[str]) -> tuple[tuple[str, str], ...]:
    """Read the pairs as the stock tokenizer does: without the first line, and without a last line that has no end."""
    text = read_lines(folder, _MERGES, MAX_VOCABULARY_BYTES)
    notes += text.notes
    header, *lines = text.lines
    if not header.startswith("#"):
        notes.append(f"{_MERGES}: the first line {header[:40]!r} is ignored, as in ModelScope's tokenizer")
    if not text.is_ended and lines:
        last = lines.pop()
        notes.append(
            f"{_MERGES}: the last line {last[:40]!r} has no line end and is ignored, as in ModelScope's tokenizer"
        )
    for number, line in enumerate(lines, start=2):
        if len(line.split()) not in (0, 2):
            message = f"{_MERGES}: line {number} is {line[:40]!r}, supported: two parts separated by a space"
            raise ConversionRefused("VOCABULARY_BROKEN", message)
    pairs = [line.split() for line in lines]
    return tuple((pair[0], pair[1]) for pair in pairs if pair)


def lacks_token(tokenizer: Tokenizer, ids: Mapping[str, int], answer: str) -> bool:
    """Whether a vocabulary has no token for a part of an answer."""
    return ids[UNKNOWN] in tokenizer.encode(f" {answer}")


def describe_merges(merges: Sequence[tuple[str, str]], ids: Mapping[str, int], name: str) -> tuple[str, ...]:
    """A note about merges that do not belong to a vocabulary."""
    if not merges:
        return (f"{_MERGES} has no pairs, so that every word is read letter by letter: is it the model's own?",)
    lacking = sum(left + right not in ids for left, right in merges)
    if lacking * 10 <= len(merges):
        return ()
    return (f"{_MERGES}: {lacking} of {len(merges)} pairs make words that {name} lacks: is it of another model?",)


def _tokenize_answers(tokenizer: Tokenizer, ids: Mapping[str, int], answer_map: Mapping[str, object]) -> AnswerForks:
    """Tokenise the answers and find their forks."""
    paths: list[tuple[int, ...]] = []
    for answer in assign_answers(answer_map).values():
        tokens = tokenizer.encode(f" {answer}")
        if not 0 < len(tokens) <= MAX_ANSWER_TOKENS or ids[UNKNOWN] in tokens:
            message = f"answer {answer[:80]!r} is {len(tokens)} tokens or contains an unknown one, supported: 1 to "
            raise ConversionRefused("ANSWERS_UNSUPPORTED", f"{message}{MAX_ANSWER_TOKENS} tokens of the vocabulary")
        paths.append((*tokens, ids[END]))
    if len(set(paths)) != len(paths):
        raise ConversionRefused(
            "ANSWERS_UNSUPPORTED", "two answers have the same tokens, supported: three different answers"
        )
    return find_forks(paths)
