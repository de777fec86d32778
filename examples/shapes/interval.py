"""How sure an accuracy is."""

from __future__ import annotations

import math

_Z = 1.959964  # 95 % of a normal distribution lie within


def wilson(right: int, asked: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share.

    Args:
        right: how often it was so.
        asked: how often it was tried, at least 1.

    Returns:
        Lower and upper bound, 0 to 1.
    """
    share, z2 = right / asked, _Z * _Z
    middle = (share + z2 / (2 * asked)) / (1 + z2 / asked)
    reach = _Z / (1 + z2 / asked) * math.sqrt(share * (1 - share) / asked + z2 / (4 * asked * asked))
    return middle - reach, middle + reach
