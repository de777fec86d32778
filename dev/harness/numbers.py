"""Statistics of a load: latencies and gaps."""

import math
from collections.abc import Sequence
from itertools import pairwise

from dev.harness.load import LoadReport


def percentile(values: Sequence[float], share: float) -> float:
    """The percentile for a share; 0 without values."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, math.ceil(share * len(ordered)) - 1)] if ordered else 0.0


def took_between(report: LoadReport, since: float, until: float) -> list[float]:
    """Latency of each answer in an interval of time.monotonic(), seconds."""
    return [one.seconds for one in report.answers if since <= one.at < until]


def gap_outside(report: LoadReport, spans: Sequence[tuple[float, float]]) -> float:
    """Longest time without any answer, seconds, except gaps that overlap a span of time.monotonic()."""
    pairs = pairwise(one.at for one in report.answers)
    gaps = [(a, b) for a, b in pairs if not any(a <= until and b >= since for since, until in spans)]
    return max((b - a for a, b in gaps), default=0.0)


def ms(seconds: float) -> float:
    """Rounded milliseconds."""
    return round(1000 * seconds, 1)
