"""Target: texts, from the caller's characters to token ids."""

from functools import cache
from itertools import pairwise

import regex  # type: ignore[import-untyped]

from common.errors import InputRefused
from dev.parity.odd_texts import read_record, vocabulary_of
from inference.runner.engines.ofa.engine import build_prompt
from inference.runner.engines.ofa.tokenizer import BEGIN, END, MASK, PAD, SPECIAL, UNKNOWN, Tokenizer, byte_letters
from inference.server.api.texts import as_seen, read_text
from inference.server.settings import TextRule
from tests.fuzz.refusals import check_refusal
from tests.fuzz.source import Source

_MAX_CHARS, _MAX_WORDS = 60, 40
_LETTERS = byte_letters()
_BYTES = {letter: byte for byte, letter in enumerate(_LETTERS)}
_GPT2 = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")


def check(data: bytes) -> None:
    """Read a statement and a premise, and tokenise their prompt; the plain definition of BPE is the oracle."""
    source = Source(data)
    rule = source.choose(tuple(TextRule))
    statement, premise = _read(source.text(_MAX_CHARS), rule), _read(source.text(_MAX_CHARS), rule)
    tokenizer, names, ranks = _tokenizer()
    prompt = build_prompt(statement, premise, _MAX_WORDS)
    ids = tokenizer.encode(prompt)
    tokens = [names[token] for token in ids]
    assert not {BEGIN, END, PAD, UNKNOWN, MASK} & set(tokens)
    assert bytes(_BYTES[letter] for token in tokens for letter in token) == prompt.encode(), "nothing is lost"
    assert tokens == [token for word in _GPT2.findall(prompt) for token in _merge_plainly(word, ranks)]


def _read(text: str, rule: TextRule) -> str:
    """The text that the model reads; the caller's if it is refused, since the tokeniser must stand it as well."""
    try:
        read = read_text(text, rule, "premise", "PREMISE_EMPTY")
    except InputRefused as error:
        check_refusal(error)
        return text
    assert read.strip()
    if rule is TextRule.AS_SEEN:
        assert not any(character.isspace() and character != " " for character in read)
        assert as_seen(text.replace("a", "\u200ba").replace(" ", "\xa0")) == as_seen(text.replace("a", "\ufeffa"))
    else:
        assert read == text
    return read


def _merge_plainly(word: str, ranks: dict[tuple[str, str], int]) -> list[str]:
    parts = [_LETTERS[byte] for byte in word.encode()]
    while known := [pair for pair in pairwise(parts) if pair in ranks]:
        best = min(known, key=ranks.__getitem__)
        joined: list[str] = []
        while parts:
            size = 2 if tuple(parts[:2]) == best else 1
            joined.append("".join(parts[:size]))
            parts = parts[size:]
        parts = joined
    return parts


@cache
def _tokenizer() -> tuple[Tokenizer, dict[int, str], dict[tuple[str, str], int]]:
    parts = read_record()["merges"].split(" ")
    merges = list(zip(parts[::2], parts[1::2], strict=True))
    vocabulary = vocabulary_of(merges)
    assert set(SPECIAL) <= set(vocabulary)
    names = {number: token for token, number in vocabulary.items()}
    return Tokenizer(vocabulary, merges), names, {pair: rank for rank, pair in enumerate(merges)}
