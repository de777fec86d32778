"""Finds the key that a misspelt key of a configuration file was meant to be."""

from collections.abc import Collection, Iterable

_SHORT = 6  # letters; a shorter key may differ by one letter only
_SEPARATORS = str.maketrans("", "", "_-. ")


def find_misspelt(keys: Iterable[str], known: Collection[str]) -> dict[str, str]:
    """Return the known key that each of some unknown keys nearly is; of keys that resemble none, nothing.

    Args:
        keys: of a file, that no part reads.
        known: keys that were asked for and that the file lacks.
    """
    found = {}
    for key in keys:
        near = [(_distance(_plain(key), _plain(other)), other) for other in known if other != key]
        distance, other = min(near, default=(_SHORT, ""))
        if distance <= (2 if len(_plain(other)) >= _SHORT else 1):
            found[key] = other
    return found


def _plain(key: str) -> str:
    return key.lower().translate(_SEPARATORS)


def _distance(one: str, other: str) -> int:
    """Letters to insert, remove, replace, or exchange with their neighbour."""
    if abs(len(one) - len(other)) > 2:  # noqa: PLR2004 - farther than any difference that counts
        return _SHORT
    before: list[int] = []
    row = list(range(len(other) + 1))
    for i, letter in enumerate(one, start=1):
        before, last, row = row, before, [i]
        for j, wanted in enumerate(other, start=1):
            cost = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (letter != wanted))
            if i > 1 and j > 1 and (letter, wanted) == (other[j - 2], one[i - 2]):
                cost = min(cost, last[j - 2] + 1)
            row.append(cost)
    return row[-1]
