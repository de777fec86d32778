"""Words beside the vocabulary, from the files that ModelScope's tokeniser reads."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from common.bundle import read_bundle
from common.source import ConversionRefused
from dev.parity.words import vocabulary
from inference.runner.conversion.ofa import convert_ofa
from inference.runner.conversion.ofa_added_words import AddedWords, read_added_words
from inference.runner.engines.ofa.load import read_tokenizer
from inference.runner.engines.ofa.tokenizer import Tokenizer
from tests.ofa.conftest import Publish

VOCABULARY = {word: number for word, number in vocabulary(1024).items() if not 1000 <= number < 1020}
ROWS = 1024 + 9192
Read = Callable[..., AddedWords]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """Write the tokeniser's files and read the added words."""

    def read_files(**files: Any) -> AddedWords:  # noqa: ANN401  JSON
        for name, content in files.items():
            (tmp_path / f"{name}.json").write_text(json.dumps(content))
        return read_added_words(tmp_path, VOCABULARY, ROWS)

    return read_files


def decoder(**flags: object) -> dict[str, Any]:
    """A tokenizer_config.json with one added word."""
    return {"added_tokens_decoder": {"1001": {"content": "street", **flags}}}


@pytest.mark.parametrize(
    ("files", "ids"),
    [
        ({}, {}),
        ({"added_tokens": {"dachshund": 1000}}, {"dachshund": 1000}),
        ({"added_tokens": {"dachshund": 1000}, "tokenizer_config": decoder()}, {"street": 1001}),
        ({"tokenizer": {"added_tokens": [{"id": 1002, "content": "x y"}]}}, {"x y": 1002}),
        ({"added_tokens": {f"<code_{number}>": 1024 + number for number in range(9)}}, {}),
        ({"added_tokens": {"<mask>": 1023, "<pad>": 1}}, {}),
        ({"tokenizer_config": decoder(special=True, lstrip=True)}, {}),
        ({"added_tokens": {"[X]": 1003}, "special_tokens_map": {"additional_special_tokens": ["[X]"]}}, {}),
        ({"added_tokens": {"dachshund": 1004}, "tokenizer_config": {"split_special_tokens": True}}, {}),
    ],
)
@pytest.mark.fault("H22")
def test_added_words_are_taken_from_the_file_that_counts(
    files: dict[str, object], ids: dict[str, int], read: Read
) -> None:
    """Special tokens and the codes that the loader adds itself are left out."""
    found = read(**files)

    assert found.ids == ({} if "split_special_tokens" in str(files) else ids)


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ({"added_tokens": {"dog": 99_999}}, "added word 'dog' has number 99999, config.json: vocab_size is 10216"),
        ({"added_tokens": {"dog": 40}}, "'dog' has number 40, which the vocabulary gives another word"),
        ({"added_tokens": {"dog": "x"}}, "added_tokens.json: the number of 'dog' is 'x'"),
        ({"added_tokens": {"<pad>": 7}}, "added_tokens.json: <pad> has number 7, the vocabulary has 1"),
        ({"added_tokens": {" ": 1000}}, "the added word 1000 is blank"),
        ({"tokenizer_config": decoder(single_word=True)}, "'street' has single_word, supported: words without these"),
        ({"tokenizer_config": {"add_prefix_space": True}}, "add_prefix_space is true, supported: false"),
        ({"tokenizer_config": {"unk_token": {"content": "?"}}}, 'unk_token is "?", supported: "<unk>"'),
        ({"tokenizer_config": {"vocab_file": "/etc/passwd"}}, 'vocab_file is "/etc/passwd", supported: null'),
        ({"special_tokens_map": {"eos_token": "<end>"}}, 'special_tokens_map.json: eos_token is "<end>", supported'),
        ({"tokenizer": {"model": 1}}, "tokenizer.json has no list added_tokens"),
    ],
)
@pytest.mark.fault("H22")
def test_words_that_cannot_be_read_alike_are_refused(files: dict[str, object], sentence: str, read: Read) -> None:
    """The sentence names the file and the word."""
    with pytest.raises(ConversionRefused, match=sentence.replace("?", r"\?")):
        read(**files)


@pytest.mark.parametrize(
    ("text", "cut"),
    [
        ("a dachshund runs", ["a ", 1000, " runs"]),
        ("dachshunds", [1001]),
        ("hotdachshund", ["hot", 1000]),
        ("dachshund dachshund", [1000, " ", 1000]),
        ("Dachshund", ["Dachshund"]),
    ],
)
@pytest.mark.fault("H22")
def test_texts_are_cut_at_added_words(text: str, cut: list[str | int]) -> None:
    """The longest word at each place; what is between is read as texts of their own."""
    plain = Tokenizer(VOCABULARY, [])
    found = Tokenizer(VOCABULARY, [], {"dachshund": 1000, "dachshunds": 1001}).encode(text)

    assert found == [number for part in cut for number in (plain.encode(part) if isinstance(part, str) else [part])]


@pytest.mark.fault("H22")
def test_a_bundle_keeps_its_added_words(publish: Publish, tmp_path: Path) -> None:
    """The runner reads them; a bundle without any has no file for them."""
    folder, into, other = publish(without=("vocab.json",)), tmp_path / "into", tmp_path / "other"
    (folder / "vocab.json").write_text(json.dumps(VOCABULARY))
    (folder / "added_tokens.json").write_text('{"dachshund": 1000}')
    into.mkdir()
    other.mkdir()

    bundle = convert_ofa(folder, into, "r", "float32")
    plain = convert_ofa(publish(), other, "r", "float32")

    assert bundle.notes == read_bundle(into).notes == ("1 word is added to the vocabulary: 'dachshund'",)
    assert {file.name for file in bundle.files} - {file.name for file in plain.files} == {"added_words.json"}
    assert read_tokenizer(into).encode("dachshund") == [1000]
