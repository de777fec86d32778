"""Values from a fuzzer's bytes."""

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")

_WIDTHS = (1, 2, 4, 8)
# Each is a way of writing a text: single bytes of the fuzzer choose from these, so that it finds odd ones soon.
_ALPHABETS = (
    "abcdefghijklmnopqrstuvwxyz ABC019.,!?-/'\"<>_s",
    "\t\n\r\v\f\x1c\x85\xa0\u1680\u2003\u2028\u202f\u205f\u2800\u3000\u3164\uffa0 ab.",
    "\0\x07\x1b\x7f\x9f\xad\u034f\u061c\u115f\u180b\u180e\u200b\u200c\u200d\u200e\u202e\u2060\ufe0f\ufeff\ufff9a é1",
    "e\u0301\u0323\u0300o\u1100\u1161\u11a8\u0958\u212a\u2126\uf900\u1e9eßİ\u0131Σςﬁ\u0345\u20e3\u05b0",
    "😀👩🏽\u200d⚕\ufe0f🏴\U000e0067\U000e007f🇩🇪1#*\u20e3漢葛\U000e0100𠀀\ue000\U0010ffff\ufffe\u0378म\u094d\u200c",
)
_SPELLED = (
    "</s>",
    "<s>",
    "<pad>",
    "<unk>",
    "<mask>",
    "<code_1>",
    "<bin_999>",
    "<person>",
    "<PERSON>",
    "there are two dogs",
)


class Source:
    """Takes values from bytes, in order; when they are used up, all values are the smallest ones."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def is_empty(self) -> bool:
        """Whether all bytes are used up."""
        return self._at >= len(self._data)

    def integer(self, low: int, high: int) -> int:
        """Return a number of this range, ends included."""
        width = next(width for width in _WIDTHS if high - low < 1 << 8 * width)
        return low + int.from_bytes(self._next(width), "little") % (high - low + 1)

    def choose(self, options: Sequence[T]) -> T:
        """Return one of the options."""
        return options[self.integer(0, len(options) - 1)]

    def is_one_in(self, count: int) -> bool:
        """Return true for one of `count` values of a byte; false when the bytes are used up."""
        return not self.is_empty and self.integer(0, count - 1) == count - 1

    def take(self, most: int) -> bytes:
        """Return up to `most` bytes."""
        return self._next(self.integer(0, most))

    def rest(self) -> bytes:
        """Return all that is left."""
        return self._next(len(self._data) - self._at)

    def text(self, most: int) -> str:
        """Return a text of up to `most` characters; no surrogates."""
        kind = self.integer(0, len(_ALPHABETS) + 1)
        if kind == len(_ALPHABETS):
            return self.choose(_SPELLED)
        if kind > len(_ALPHABETS):
            return self.take(most).decode("utf-8", "ignore")
        return "".join(_ALPHABETS[kind][byte % len(_ALPHABETS[kind])] for byte in self.take(most))

    def _next(self, count: int) -> bytes:
        part = self._data[self._at : self._at + count]
        self._at += count
        return part
