"""GPT-2's byte-level BPE (https://github.com/openai/gpt-2/blob/master/src/encoder.py) without special tokens.

A caller's text cannot produce a special token: the text is first split between letters and punctuation ("</", "s",
">"), so merges cannot join one.
"""

import heapq
from collections.abc import Mapping, Sequence
from functools import lru_cache

import regex  # type: ignore[import-untyped]

BEGIN, PAD, END, UNKNOWN, MASK = "<s>", "<pad>", "</s>", "<unk>", "<mask>"
SPECIAL = (BEGIN, PAD, END, UNKNOWN, MASK)
_MAX_CACHED_WORD = 32  # characters; longer words rarely repeat
_MAX_CACHED_WORDS = 16384
_WORDS = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")
_PRINTABLE = (*range(33, 127), *range(161, 173), *range(174, 256))
_Pair = tuple[str, str]


def byte_letters() -> tuple[str, ...]:
    """Return the character for each byte value: the byte itself if printable, else code points from 256 upwards."""
    hidden = [byte for byte in range(256) if byte not in _PRINTABLE]
    return tuple(chr(byte) if byte in _PRINTABLE else chr(256 + hidden.index(byte)) for byte in range(256))


_BYTE_LETTERS = byte_letters()


class Tokenizer:
    """Text to token ids. May be used from several threads at once."""

    def __init__(
        self, vocabulary: Mapping[str, int], merges: Sequence[_Pair], added: Mapping[str, int] | None = None
    ) -> None:
        """Create a tokenizer.

        Args:
            vocabulary: token to id; must contain BEGIN, PAD, END and UNKNOWN.
            merges: pairs in order of rank.
            added: word to id, of words at which a text is cut before anything else; not special tokens.
        """
        # Of words that begin at one place the longest is found, as in the stock tokeniser.
        words = sorted(added or (), key=lambda word: (-len(word), word))
        self._added = regex.compile("|".join(map(regex.escape, words))) if words else None
        self.begin = vocabulary[BEGIN]
        self.pad = vocabulary[PAD]
        self.end = vocabulary[END]
        self._unknown = vocabulary[UNKNOWN]
        self._ids = {**vocabulary, **(added or {})}
        self._ranks = {pair: rank for rank, pair in enumerate(merges)}
        self._cached = lru_cache(_MAX_CACHED_WORDS)(self._encode_word)

    def encode(self, text: str) -> list[int]:
        """Tokenise a text; tokens missing from the vocabulary become UNKNOWN."""
        if self._added is None:
            return self._encode_plain(text)
        ids: list[int] = []
        start = 0
        for found in self._added.finditer(text):
            ids += [*self._encode_plain(text[start : found.start()]), self._ids[found[0]]]
            start = found.end()
        return ids + self._encode_plain(text[start:])

    def _encode_plain(self, text: str) -> list[int]:
        """Tokenise a text without added words."""
        ids: list[int] = []
        for word in _WORDS.findall(text):
            ids.extend(self._cached(word) if len(word) <= _MAX_CACHED_WORD else self._encode_word(word))
        return ids

    def _encode_word(self, word: str) -> tuple[int, ...]:
        letters = [_BYTE_LETTERS[byte] for byte in word.encode("utf-8")]
        return tuple(self._ids.get(token, self._unknown) for token in merge(letters, self._ranks))


def merge(letters: Sequence[str], ranks: Mapping[_Pair, int]) -> list[str]:
    """Merge adjacent pairs, lowest rank first, until no pair has a rank.

    All pairs of one rank are merged from left to right before new pairs are considered, as in the original. A heap
    keeps the cost of a word of n letters at O(n log n), because callers choose n.
    """
    parts: list[str] = list(letters)
    after = [*range(1, len(parts) + 1)]
    before = [*range(-1, len(parts) - 1)]

    def rank_at(left: int) -> int | None:
        right = after[left]
        return ranks.get((parts[left], parts[right])) if right < len(parts) else None

    heap = [(rank, left) for left in range(len(parts)) if (rank := rank_at(left)) is not None]
    heapq.heapify(heap)
    while heap:
        joined: list[int] = []
        rank = heap[0][0]
        while heap and heap[0][0] == rank:
            left = heapq.heappop(heap)[1]
            if not parts[left] or rank_at(left) != rank:
                continue  # stale entry: a neighbour was merged
            right = after[left]
            parts[left] += parts[right]
            parts[right] = ""
            after[left] = after[right]
            if after[right] < len(parts):
                before[after[right]] = left
            joined.append(left)
        for left in joined:
            for start in {left, before[left]} - {-1}:
                if parts[start] and (found := rank_at(start)) is not None:
                    heapq.heappush(heap, (found, start))
    return [part for part in parts if part]
