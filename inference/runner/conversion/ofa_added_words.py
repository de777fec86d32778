"""Words that a published OFA adds to its vocabulary, from the files that ModelScope's tokeniser reads beside it.

The stock tokeniser takes them from `tokenizer_config.json`, or if that lists none from `added_tokens.json`, and from
`tokenizer.json`. It cuts a text at every added word before anything else, so they change how texts are read.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from common.source import ConversionRefused
from inference.runner.conversion.config_file import ConfigSection, read_object, read_section, show_value
from inference.runner.engines.ofa.tokenizer import BEGIN, END, MASK, PAD, SPECIAL, UNKNOWN

TOKENIZER_CONFIG = "tokenizer_config.json"
ADDED_TOKENS = "added_tokens.json"
SPECIAL_TOKENS = "special_tokens_map.json"
FAST_TOKENIZER = "tokenizer.json"
MAX_FILE_BYTES = 32 << 20
MAX_ADDED_WORDS = 4096
_MAX_SHOWN = 5  # words in a sentence
_ROLES = {
    "bos_token": BEGIN,
    "cls_token": BEGIN,
    "eos_token": END,
    "sep_token": END,
    "pad_token": PAD,
    "unk_token": UNKNOWN,
    "mask_token": MASK,
}
_CODE = re.compile(r"<(?:code|bin)_[0-9]+>")  # the loader adds these itself
_FLAGS = ("lstrip", "rstrip", "single_word")


@dataclass(frozen=True, slots=True)
class AddedWords:
    """Words beside the vocabulary."""

    ids: Mapping[str, int]  # by word
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Entry:
    file: str
    word: str
    number: int
    is_special: bool


def read_added_words(folder: Path, vocabulary: Mapping[str, int], rows: int) -> AddedWords:
    """Read and check the added words.

    Args:
        folder: published.
        vocabulary: id by token, without added words.
        rows: of the embedding.

    Raises:
        ConversionRefused: a file is malformed, or asks for what this engine's tokeniser does not do.
        OSError: a file cannot be read.
    """
    has_config = (folder / TOKENIZER_CONFIG).is_file()
    config = read_section(folder, TOKENIZER_CONFIG) if has_config else ConfigSection(f"{TOKENIZER_CONFIG}: ", {})
    _check_config(config)
    entries, specials = _read_entries(folder, config)
    notes: list[str] = []
    ids: dict[str, int] = {}
    names = {number: token for token, number in vocabulary.items()}
    hidden = set()
    for entry in entries:
        if _CODE.fullmatch(entry.word) or _is_standard(entry, vocabulary):
            continue
        _check_number(entry, vocabulary, names, rows)
        if entry.is_special or entry.word in specials:
            hidden.add(entry.word)
        else:
            ids[entry.word] = entry.number
    if len(ids) > MAX_ADDED_WORDS:
        message = f"{len(ids)} words are added to the vocabulary, supported: {MAX_ADDED_WORDS}"
        raise ConversionRefused("VOCABULARY_BROKEN", message)
    if config.get_flag("split_special_tokens", default=False):
        ids = {}
    if hidden:
        shown = _show(hidden)
        notes.append(f"special tokens {shown} are added; a caller's text cannot produce them, as with </s>")
    if ids:
        notes.append(
            f"{'1 word is' if len(ids) == 1 else f'{len(ids)} words are'} added to the vocabulary: {_show(ids)}"
        )
    return AddedWords(ids, tuple(notes))


def _show(words: "set[str] | dict[str, int]") -> str:
    more = f" and {len(words) - _MAX_SHOWN} more" if len(words) > _MAX_SHOWN else ""
    return ", ".join(repr(word[:40]) for word in sorted(words)[:_MAX_SHOWN]) + more


def _check_config(config: ConfigSection) -> None:
    """Refuse settings under which the stock tokeniser reads texts otherwise than the engine's."""
    for role, token in _ROLES.items():
        if config.get(role) is not None:
            _check_role(config, role, config.get(role), token)
    config.get_choice("add_prefix_space", default=False, supported=(False,))
    config.get_choice("truncation_side", "right", ("right",))
    for key in ("vocab_file", "merges_file"):
        config.get_choice(key, None, (None,))
    if config.get("init_inputs"):
        config.refuse("init_inputs", config.get("init_inputs"), "an empty list")


def _check_role(keys: ConfigSection, role: str, value: object, token: str) -> None:
    text = value.get("content") if isinstance(value, Mapping) else value
    if text != token:
        keys.refuse(role, text, show_value(token))


def _read_entries(folder: Path, config: ConfigSection) -> tuple[list[_Entry], set[str]]:
    """Added tokens from where the stock tokeniser takes them, and the words that are special by another file."""
    if config.has("added_tokens_decoder"):
        rows = config.get_section("added_tokens_decoder").values
        found = [_read_row(TOKENIZER_CONFIG, number, row) for number, row in rows.items()]
        return found, set()
    entries: list[_Entry] = []
    specials = _read_specials(folder, config)
    if (folder / ADDED_TOKENS).is_file():
        for word, number in read_object(folder, ADDED_TOKENS, MAX_FILE_BYTES).items():
            entries.append(_Entry(ADDED_TOKENS, word, _number(ADDED_TOKENS, word, number), is_special=False))
    if (folder / FAST_TOKENIZER).is_file():
        listed = read_object(folder, FAST_TOKENIZER, MAX_FILE_BYTES).get("added_tokens")
        if not isinstance(listed, list):
            raise ConversionRefused("VOCABULARY_BROKEN", f"{FAST_TOKENIZER} has no list added_tokens")
        for row in listed:
            number = row.get("id") if isinstance(row, dict) else None
            entries.append(_read_row(FAST_TOKENIZER, number, row))
    return entries, specials


def _read_specials(folder: Path, config: ConfigSection) -> set[str]:
    """Special words beside the standard ones; the standard ones must be the standard ones."""
    values: list[object] = []
    keys = config
    if (folder / SPECIAL_TOKENS).is_file():
        keys = read_section(folder, SPECIAL_TOKENS)
        for role, token in _ROLES.items():
            if keys.get(role) is not None:
                _check_role(keys, role, keys.get(role), token)
    for section in (config, keys):
        extra = section.get("additional_special_tokens")
        values += extra if isinstance(extra, list) else []
    texts = [value.get("content") if isinstance(value, Mapping) else value for value in values]
    return {text for text in texts if isinstance(text, str)}


def _read_row(file: str, number: object, row: object) -> _Entry:
    word = row.get("content") if isinstance(row, Mapping) else None
    if not isinstance(row, Mapping) or not isinstance(word, str):
        raise ConversionRefused("VOCABULARY_BROKEN", f"{file}: the added token {str(number)[:40]!r} has no content")
    is_special = row.get("special") is True
    if word not in SPECIAL and not is_special and any(row.get(flag) for flag in _FLAGS):
        flags = ", ".join(flag for flag in _FLAGS if row.get(flag))
        message = f"{file}: the added word {word[:40]!r} has {flags}, supported: words without these flags"
        raise ConversionRefused("VOCABULARY_BROKEN", message)
    return _Entry(file, word, _number(file, word, number), is_special)


def _number(file: str, word: str, number: object) -> int:
    text = str(number)
    if isinstance(number, bool) or not isinstance(number, int | str) or not text.isdecimal() or len(text) > 9:  # noqa: PLR2004 - digits
        raise ConversionRefused("VOCABULARY_BROKEN", f"{file}: the number of {word[:40]!r} is {text[:40]!r}")
    return int(text)


def _is_standard(entry: _Entry, vocabulary: Mapping[str, int]) -> bool:
    """Whether a token is one of the five standard ones; they must have the vocabulary's numbers."""
    if entry.word not in SPECIAL:
        return False
    if entry.number != vocabulary.get(entry.word, entry.number):
        message = f"{entry.file}: {entry.word} has number {entry.number}, the vocabulary has {vocabulary[entry.word]}"
        raise ConversionRefused("VOCABULARY_BROKEN", message, file=entry.file)
    return True


def _check_number(entry: _Entry, vocabulary: Mapping[str, int], names: Mapping[int, str], rows: int) -> None:
    word, number = entry.word[:40], entry.number
    if not entry.word.strip():
        raise ConversionRefused("VOCABULARY_BROKEN", f"{entry.file}: the added word {number} is blank", file=entry.file)
    if number >= rows:
        message = f"{entry.file}: the added word {word!r} has number {number}, config.json: vocab_size is {rows}"
        raise ConversionRefused("VOCABULARY_BROKEN", message, file=entry.file)
    other = names.get(number, entry.word)
    if other != entry.word or vocabulary.get(entry.word, number) != number:
        message = f"{entry.file}: the added word {word!r} has number {number}, which the vocabulary gives another word"
        raise ConversionRefused("VOCABULARY_BROKEN", message, file=entry.file)
