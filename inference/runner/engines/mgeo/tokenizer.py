"""Texts to words and token ids: BERT's WordPiece, by Hugging Face's `tokenizers`, without special tokens.

A caller's text cannot produce a special token: "[SEP]" in it is five characters like any others.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from tokenizers import Encoding, Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

from inference.runner.engines.mgeo.config import WordRules

_MAX_WORD_CHARACTERS = 100  # a longer word is unknown, as in BERT's tokeniser


@dataclass(frozen=True, slots=True)
class Words:
    """The words of a text. Each has at least one token; the model's label of a word is that of its first token."""

    ids: tuple[int, ...]  # of all tokens, without begin and end token
    first: tuple[int, ...]  # index of each word's first token in `ids`
    extents: tuple[tuple[int, int], ...]  # of each word: its first code point, and the one after its last


class WordTokenizer:
    """Texts to words. May be used from several threads at once."""

    def __init__(self, vocabulary: Mapping[str, int], rules: WordRules) -> None:
        """Create a tokeniser.

        Args:
            vocabulary: token to id; must contain `rules.unknown`.
            rules: how texts are cut.
        """
        self._by_character = rules.by_character
        self._unknown = vocabulary[rules.unknown]
        model = WordPiece(dict(vocabulary), unk_token=rules.unknown, max_input_chars_per_word=_MAX_WORD_CHARACTERS)
        self._tokenizer = Tokenizer(model)
        self._tokenizer.normalizer = BertNormalizer(
            clean_text=True,
            handle_chinese_chars=rules.split_ideographs,
            strip_accents=rules.strip_accents,
            lowercase=rules.lowercase,
        )
        self._tokenizer.pre_tokenizer = BertPreTokenizer()

    def encode(self, text: str) -> Words:
        """Cut a text into words and their tokens; none if nothing in it can be read."""
        if self._by_character:
            return self._encode_characters(text)
        found = self._tokenizer.encode(text, add_special_tokens=False)
        first: list[int] = []
        extents: list[tuple[int, int]] = []
        last = None
        for index, (word, (start, end)) in enumerate(zip(found.word_ids, found.offsets, strict=True)):
            if word != last:
                last = word
                first.append(index)
                extents.append((start, end))
            else:
                extents[-1] = (extents[-1][0], end)
        return Words(tuple(found.ids), tuple(first), tuple(extents))

    def _encode_characters(self, text: str) -> Words:
        """Each character on its own; one that cannot be read is unknown."""
        pieces: list[Encoding] = self._tokenizer.encode_batch(list(text), add_special_tokens=False)
        ids: list[int] = []
        first: list[int] = []
        for piece in pieces:
            first.append(len(ids))
            ids += piece.ids or [self._unknown]
        return Words(tuple(ids), tuple(first), tuple((place, place + 1) for place in range(len(text))))
