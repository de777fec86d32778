"""Numbers of a load: how long answers took, and which came when."""

import math
from collections.abc import Sequence
from itertools import pairwise

from dev.harness.load import LoadReport


def percentile(values: Sequence[float], share: float) -> float:
    """The value that a share of all does not exceed; 0 without any."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, math.ceil(share * len(ordered)) - 1)] if ordered else 0.0


def took_between(report: LoadReport, since: float, until: float) -> list[float]:
    """Seconds of each answer that came in a time, time.monotonic()."""
    return [one.seconds for one in report.answers if since <= one.at < until]


def gap_outside(report: LoadReport, spans: Sequence[tuple[float, float]]) -> float:
    """Longest time without any answer, seconds, but for gaps that reach into a span of time.monotonic()."""
    pairs = pairwise(one.at for one in report.answers)
    gaps = [(a, b) for a, b in pairs if not any(a <= until and b >= since for since, until in spans)]
    return max((b - a for a, b in gaps), default=0.0)


def ms(seconds: float) -> float:
    """Rounded milliseconds."""
    return round(1000 * seconds, 1)
