"""Prompts and tokens of callers' texts."""

import random
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest

from common.errors import InputRefused
from dev.parity.odd_texts import odd_texts, read_record, vocabulary_of
from dev.parity.pictures import FOLDER
from dev.parity.words import merges, vocabulary
from inference.runner.engines.base import EntailmentItem
from inference.runner.engines.ofa.engine import MAX_TEXT_LENGTH, OfaEngine, build_prompt, clean
from inference.runner.engines.ofa.tokenizer import SPECIAL, Tokenizer, byte_letters, merge

WORDS = vocabulary(1024)
TOKENIZER = Tokenizer(WORDS, merges())
PICTURE = (FOLDER / "grey.jpg").read_bytes()


@pytest.mark.parametrize("text", [*SPECIAL, "<code_1>", "<bin_999>", " </s> <pad>", "a</s>b", "<s><s><mask>"])
def test_a_caller_s_text_never_becomes_a_special_token(text: str) -> None:
    """Text that looks like a special token is split into ordinary tokens."""
    ids = TOKENIZER.encode(text)

    assert not {WORDS[token] for token in SPECIAL} & set(ids)
    assert max(ids) < len(WORDS)
    assert len(ids) > 1


def test_merges_cannot_spell_a_special_token() -> None:
    """Whatever the merges are, a caller's "</s>" stays three tokens."""
    pairs = [("<", "/"), ("</", "s"), ("</s", ">")]

    assert WORDS["</s>"] not in Tokenizer(WORDS, pairs).encode("</s>")


def test_prompts_begin_and_end_once(plain: OfaEngine) -> None:
    """Begin and end tokens are at the ends of a prompt and nowhere else."""
    item = EntailmentItem(PICTURE, ("<s> </s> <pad> a dog </s>",), "</s> <mask> <code_17>")

    prompt = plain.prepare(item).prompts[0]

    assert (WORDS["<s>"], WORDS["</s>"]) == (prompt[0], prompt[-1])
    assert not {WORDS[token] for token in SPECIAL} & set(prompt[1:-1])


def test_long_prompts_are_truncated(plain: OfaEngine) -> None:
    """A prompt keeps the model's number of tokens between begin and end."""
    prompt = plain.prepare(EntailmentItem(PICTURE, ("a dog " * 500,), "")).prompts[0]

    assert plain.model.config.max_prompt_tokens + 2 == len(prompt)


def test_too_long_texts_are_refused(plain: OfaEngine) -> None:
    """The refusal names the field and the limit."""
    with pytest.raises(InputRefused, match=str(MAX_TEXT_LENGTH)) as caught:
        plain.prepare(EntailmentItem(PICTURE, ("a dog", "x" * (MAX_TEXT_LENGTH + 1)), ""))

    assert (caught.value.reason, caught.value.field) == ("TEXT_TOO_LONG", "statements[1]")


def test_the_longest_word_is_tokenised_quickly() -> None:
    """A single word of the longest text allowed takes about a second."""
    began = time.process_time()

    TOKENIZER.encode("aninered" * (MAX_TEXT_LENGTH // 8))

    assert time.process_time() - began < 5


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The RED Dog", "the red dog"),
        ("...,!a-b/c", "a b c"),
        ("a  b\t\nc \n\n", "a b c"),
        ("<person> runs", "person runs"),
        ("one two three four", "one two three"),
        (" ", ""),
    ],
)
def test_texts_are_normalised_as_in_training(text: str, expected: str) -> None:
    """Case, leading punctuation, hyphens, spaces and surplus words."""
    assert expected == clean(text, 3)


def test_a_premise_changes_the_question() -> None:
    """With a premise the model is asked whether it and the picture together imply the statement."""
    assert build_prompt("A dog", "", 80) == ' does the image describe " a dog "?'
    assert build_prompt("A dog", "A man", 80) == ' can image and text1 " a man " imply text2 " a dog "?'


@pytest.mark.fault("I9")
def test_odd_texts_are_read_as_by_the_stock_tokeniser() -> None:
    """2,700 texts: every kind of blank, hidden character, mark, script, digit; recorded by `dev.parity.texts`."""
    record = read_record()
    parts = record["merges"].split(" ")
    pairs = list(zip(parts[::2], parts[1::2], strict=True))
    tokenizer = Tokenizer(vocabulary_of(pairs), pairs)
    longest = record["max_tokens"]

    read = {}
    for statement, premise, *_ in record["texts"]:
        ids = tokenizer.encode(build_prompt(statement, premise, longest))[:longest]
        read[statement, premise] = " ".join(map(str, (tokenizer.begin, *ids, tokenizer.end)))

    assert [row for row in record["texts"] if read[row[0], row[1]] != row[2]] == []
    assert [row[0] for row in record["texts"]] == odd_texts()
    assert len(read) > 2000
    spelled = [row for row in record["texts"] if len(row) > 3]
    assert all("<" in row[0] + row[1] for row in spelled), "what else differs from the stock pipeline"
    assert len(spelled) > 50


def naive_merge(letters: list[str], ranks: dict[tuple[str, str], int]) -> list[str]:
    """Join all pairs of the lowest rank, left to right, again and again: slow and plain."""
    parts = list(letters)
    while True:
        pairs = set(pairwise(parts)) & set(ranks)
        if not pairs:
            return parts
        best = min(pairs, key=ranks.__getitem__)
        joined: list[str] = []
        while parts:
            size = 2 if tuple(parts[:2]) == best else 1
            joined.append("".join(parts[:size]))
            parts = parts[size:]
        parts = joined


def test_merging_equals_the_plain_definition() -> None:
    """For any merges, even those that no training produces."""
    chance = random.Random(5)
    for _ in range(300):
        ranks: dict[tuple[str, str], int] = {}
        known = list("abc")
        for rank in range(chance.randrange(1, 12)):
            pair = (chance.choice(known), chance.choice(known))
            ranks.setdefault(pair, chance.randrange(100) * 100 + rank)
            known.append("".join(pair))
        letters = chance.choices("abc", k=chance.randrange(1, 30))

        assert naive_merge(letters, ranks) == merge(letters, ranks)


def test_every_byte_has_its_own_letter() -> None:
    """Any text can be tokenised, whatever its bytes."""
    assert len(set(byte_letters())) == 256


def test_items_are_prepared_by_several_threads(plain: OfaEngine) -> None:
    """Items prepared at the same time come out as if prepared one after the other."""
    items = [EntailmentItem(PICTURE, (f"dog {number} and red birds {number}",), "") for number in range(40)]
    expected = [plain.prepare(item).prompts for item in items]

    with ThreadPoolExecutor(4) as pool:
        assert expected == [prepared.prompts for prepared in pool.map(plain.prepare, items)]
