"""Reads JSON from a file, a peer or a variable: whatever is wrong with it is a ValueError."""

import json
from collections.abc import Callable
from typing import Any

MAX_DEPTH = 100  # of lists and objects within each other; what we read has fewer than ten

PairsHook = Callable[[list[tuple[str, Any]]], Any]


class NestedTooDeeply(ValueError):
    """The brackets of a text are nested too deeply."""


def load_json(content: bytes | str, pairs_hook: PairsHook | None = None) -> Any:  # noqa: ANN401  as json.loads
    """Parse JSON. Unlike json.loads it raises no RecursionError, and what it returns causes none in its reader.

    Args:
        content: of a bounded length; bytes in UTF-8, UTF-16 or UTF-32.
        pairs_hook: makes the value of each object.

    Raises:
        ValueError: it is not JSON (`json.JSONDecodeError`), not in that encoding (`UnicodeDecodeError`), nested more
            than MAX_DEPTH deep (`NestedTooDeeply`), or has a number of thousands of digits.
    """
    try:
        value = json.loads(content, object_pairs_hook=pairs_hook)
    except RecursionError as error:
        raise NestedTooDeeply("its brackets are nested too deeply") from error
    if _count_brackets(content) > MAX_DEPTH and _is_deep(value):
        raise NestedTooDeeply("its brackets are nested too deeply")
    return value


def _count_brackets(content: bytes | str) -> int:
    if isinstance(content, str):
        return content.count("[") + content.count("{")
    return content.count(b"[") + content.count(b"{")


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
