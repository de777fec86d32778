"""Reads JSON from a file, a peer or a variable: whatever is wrong with it is a ValueError."""

import json
import re
from collections.abc import Callable
from typing import Any

MAX_DEPTH = 100  # of lists and objects within each other; what we read has fewer than ten

PairsHook = Callable[[list[tuple[str, Any]]], Any]


# A text up to the first half of a surrogate pair whose other half is missing, as an escape sequence.
_UP_TO_HALF = re.compile(
    r"(?:[^\\]++|\\[^u]|\\u(?![dD][89a-fA-F])|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2})*+"
)
_MAY_BE_HALF = re.compile(r"\\u[dD][89a-fA-F]")


class NestedTooDeeply(ValueError):
    """The brackets of a text are nested too deeply."""


class HalfCharacter(ValueError):
    """A text has half of a surrogate pair, as text that was cut in the middle of an emoji has; no encoding takes it."""


def load_json(content: bytes | str, pairs_hook: PairsHook | None = None, *, takes_halves: bool = False) -> Any:  # noqa: ANN401  as json.loads
    """Parse JSON. Unlike json.loads it raises no RecursionError, and what it returns causes none in its reader.

    Every text in the value can be encoded as UTF-8: whoever prints, hashes, stores or sends it need not check that.

    Args:
        content: of a bounded length; bytes in UTF-8, UTF-16 or UTF-32.
        pairs_hook: makes the value of each object.
        takes_halves: for a caller that escapes half characters itself, or reads what our own processes wrote: the path
            of a file whose name is not UTF-8 has some.

    Raises:
        ValueError: it is not JSON (`json.JSONDecodeError`), not in that encoding (`UnicodeDecodeError`), nested more
            than MAX_DEPTH deep (`NestedTooDeeply`), has half of a surrogate pair (`HalfCharacter`), or a number of
            thousands of digits.
    """
    # json.loads would let surrogates in bytes pass, which are no UTF-8.
    text = content if isinstance(content, str) else content.decode(json.detect_encoding(content))
    try:
        value = json.loads(text, object_pairs_hook=pairs_hook)
    except RecursionError as error:
        raise NestedTooDeeply("its brackets are nested too deeply") from error
    if text.count("[") + text.count("{") > MAX_DEPTH and _is_deep(value):
        raise NestedTooDeeply("its brackets are nested too deeply")
    if not takes_halves:
        _refuse_half_characters(text)
    return value


def _refuse_half_characters(text: str) -> None:
    """Fail if a text, which was parsed as JSON, has a lone surrogate, as an escape sequence or as it is."""
    try:
        text.isascii() or text.encode()
    except UnicodeEncodeError as error:
        raise _build_half(text, error.start, f"{ord(text[error.start]):04x}") from error
    if _MAY_BE_HALF.search(text) is None:
        return
    found = _UP_TO_HALF.match(text)
    if found is not None and found.end() < len(text):
        raise _build_half(text, found.end(), text[found.end() + 2 : found.end() + 6].lower())


def _build_half(text: str, position: int, digits: str) -> HalfCharacter:
    line = text.count("\n", 0, position) + 1
    return HalfCharacter(f"line {line} has half of a character: \\u{digits} without its other half")


def _is_deep(value: object) -> bool:
    """Whether lists and objects are nested more than MAX_DEPTH deep."""
    level = [value]
    for _ in range(MAX_DEPTH):
        inner: list[object] = []
        for one in level:
            inner += one.values() if isinstance(one, dict) else one if isinstance(one, list) else ()
        level = [one for one in inner if isinstance(one, dict | list)]
        if not level:
            return False
    return True
