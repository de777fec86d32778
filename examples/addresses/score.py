"""How good spans are: exact ones, with the interval of their F1."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from examples.addresses.layout import Address, Span

_ROUNDS = 1000  # of the bootstrap
Counts = tuple[int, int, int]  # spans right, found, expected


@dataclass(frozen=True, slots=True)
class Score:
    """Micro-averaged over all spans; a span counts as right if its kind and both its ends are."""

    right: int
    found: int
    expected: int
    low: float  # of the F1's 95 % interval
    high: float
    whole: float  # share of addresses without any error
    by_kind: dict[str, float]  # F1

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall, 0 to 1."""
        return f1(self.right, self.found, self.expected)


def f1(right: int, found: int, expected: int) -> float:
    """F1 from counts; 0 where there is nothing."""
    return 2 * right / (found + expected) if found + expected else 0.0


def score(addresses: Sequence[Address], answers: Sequence[Sequence[Span]]) -> Score:
    """Compare the spans found with those expected.

    Args:
        addresses: with the spans expected.
        answers: spans found, a list an address.
    """
    rows: list[Counts] = []
    kinds: dict[str, list[int]] = {}
    for address, found in zip(addresses, answers, strict=True):
        expected, got = Counter(address.spans), Counter(found)
        right = expected & got
        rows.append((right.total(), got.total(), expected.total()))
        for place, spans in enumerate((right, got, expected)):
            for span, times in spans.items():
                kinds.setdefault(span.kind, [0, 0, 0])[place] += times
    low, high = interval(rows)
    right_, found_, expected_ = (sum(column) for column in zip(*rows, strict=True))
    whole = sum(a == b == c for a, b, c in rows) / len(rows)
    return Score(right_, found_, expected_, low, high, whole, {kind: f1(*counts) for kind, counts in kinds.items()})


def interval(rows: Sequence[Counts]) -> tuple[float, float]:
    """The 95 % interval of the F1, by a bootstrap over addresses (Efron 1979): spans of one are not independent."""
    draw, values = random.Random(1), []
    for _ in range(_ROUNDS):
        sample = draw.choices(rows, k=len(rows))
        values.append(f1(*(sum(column) for column in zip(*sample, strict=True))))
    values.sort()
    return values[int(0.025 * _ROUNDS)], values[int(0.975 * _ROUNDS) - 1]
