"""What the server counts of a bundle, over a span of time; and whether a revision needs more device time than another.

The latter is tested on the measured cost of their batches. Pure.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from math import atan2, cos, pi, sin, sqrt

ADDED = {"omit_default": True}  # fields of which builds before they were added must read records without them
_MAX_DEGREES = 1000  # of freedom: beyond it the distribution is the normal one


@dataclass(frozen=True, slots=True)
class CostBucket:
    """Cost per row, in seconds, of batches of similar size on one device; on a CPU the runner's CPU seconds."""

    device: str
    at_most_rows: int  # rows of a batch: such sizes are compared with each other alone
    batches: int
    row_seconds: float  # sum over the batches of the seconds a row
    row_seconds_squared: float  # sum over the batches of their squares


@dataclass(frozen=True, slots=True)
class Counts:
    """The server's counters of a bundle at some moment."""

    answered: int = 0
    failed: int = 0  # events, a runner's death being one
    not_finite: int = 0
    out_of_memory: int = 0
    restarts: int = 0  # deaths of its runner that count against it
    latency: tuple[int, ...] = ()  # answers a bucket, in the server's order
    latency_bounds: tuple[float, ...] = ()  # seconds, upper, of all buckets but the last; as the server sends them
    costs: tuple[CostBucket, ...] = ()
    late: int = field(default=0, metadata=ADDED)  # of the failed ones, those for one of LATE_REASONS


def subtract_counts(now: Counts, before: Counts) -> Counts:
    """The counters' increase between two moments of one incarnation of the server."""
    latency = tuple(max(0, a - b) for a, b in zip(now.latency, before.latency or (0,) * len(now.latency), strict=False))
    costs = subtract_costs(now.costs, before.costs)
    return Counts(
        answered=max(0, now.answered - before.answered),
        failed=max(0, now.failed - before.failed),
        not_finite=max(0, now.not_finite - before.not_finite),
        out_of_memory=max(0, now.out_of_memory - before.out_of_memory),
        late=max(0, now.late - before.late),
        restarts=max(0, now.restarts - before.restarts),
        latency=latency,
        latency_bounds=now.latency_bounds,
        costs=costs,
    )


def percentile(counts: Counts, share: float) -> float:
    """Latency within which this share of the requests was answered, from bucket counts; 0 without answers."""
    latency, bounds = counts.latency, counts.latency_bounds
    wanted, passed = share * sum(latency), 0.0
    if wanted <= 0 or not bounds:
        return 0.0
    lower = 0.0
    for count, upper in zip(latency, (*bounds, 2 * bounds[-1]), strict=False):
        if count and passed + count >= wanted:
            return lower + (upper - lower) * (wanted - passed) / count
        passed, lower = passed + count, upper
    return lower


def leave_out_late(counts: Counts) -> Counts:
    """The counts without the requests that failed only because they took too long."""
    return replace(counts, failed=max(0, counts.failed - counts.late), late=0)


@dataclass(frozen=True, slots=True)
class CostComparison:
    """The costs of two revisions on batches of the same sizes, and the probability that they differ by chance."""

    candidate_batches: int
    active_batches: int
    compared_seconds: float  # device seconds of the one that has computed less, about
    candidate_seconds: float  # a row; mean over the sizes that both computed
    active_seconds: float  # the same, with the same weights
    by_chance: float  # how likely a candidate at the allowed factor costs at least so much


@dataclass(frozen=True, slots=True)
class _Sample:
    """Mean and variance of one revision's costs at one batch size."""

    batches: int
    mean: float
    variance: float  # of the mean
    seconds: float  # of device time, about


def compare_costs(
    candidate: Iterable[CostBucket], active: Iterable[CostBucket], factor: float
) -> CostComparison | None:
    """Test whether the candidate costs more than `factor` times what the active model does; None if nothing compares.

    Welch's one-sided t-test of means with unequal variances (B. L. Welch, "The generalization of 'Student's' problem
    when several different population variances are involved", Biometrika 34, 1947), on the mean difference over
    sizes of batches, each weighted by n·m / (n + m) as in the test of Cochran (Biometrics 10, 1954). Strata are
    needed because a row costs less in a large batch: a change in the number of callers must not appear as a change in
    cost. The degrees of freedom are Satterthwaite's (Biometrics Bulletin 2, 1946).

    Batches of the same minute are not independent, and other processes on the machine raise CPU seconds too, so the
    test alone would report false differences; the factor prevents that.
    """
    pairs = list(_pairs(candidate, active))
    weights = [a.batches * b.batches / (a.batches + b.batches) for a, b in pairs]
    whole = sum(weights)
    if not pairs:
        return None
    shares = [weight / whole for weight in weights]
    mean = sum(share * a.mean for share, (a, _) in zip(shares, pairs, strict=True))
    before = sum(share * b.mean for share, (_, b) in zip(shares, pairs, strict=True))
    parts = [
        (share * share * scale * scale * sample.variance, sample.batches - 1)
        for share, (a, b) in zip(shares, pairs, strict=True)
        for scale, sample in ((1.0, a), (factor, b))
    ]
    return CostComparison(
        candidate_batches=sum(a.batches for a, _ in pairs),
        active_batches=sum(b.batches for _, b in pairs),
        compared_seconds=min(sum(a.seconds for a, _ in pairs), sum(b.seconds for _, b in pairs)),
        candidate_seconds=mean,
        active_seconds=before,
        by_chance=_by_chance(mean - factor * before, parts),
    )


def subtract_costs(now: Iterable[CostBucket], before: Iterable[CostBucket]) -> tuple[CostBucket, ...]:
    """The costs counted between two moments of one incarnation of the server."""
    old = {(row.device, row.at_most_rows): row for row in before}
    rows = []
    for row in now:
        gone = old.get((row.device, row.at_most_rows))
        if gone is not None:
            row = CostBucket(  # noqa: PLW2901  the same bucket, later
                row.device,
                row.at_most_rows,
                row.batches - gone.batches,
                row.row_seconds - gone.row_seconds,
                row.row_seconds_squared - gone.row_seconds_squared,
            )
        if row.batches > 0:
            rows.append(row)
    return tuple(rows)


def t_tail(t: float, degrees: int) -> float:
    """Probability that Student's t of so many degrees of freedom is at least `t`.

    The finite series 26.7.3 and 26.7.4 of Abramowitz and Stegun, "Handbook of Mathematical Functions" (1964).
    """
    degrees = max(1, min(degrees, _MAX_DEGREES))
    angle = atan2(t, sqrt(degrees))
    step, power = cos(angle) ** 2, cos(angle) if degrees % 2 else 1.0
    total, term = 0.0, power
    for k in range(2 + degrees % 2, degrees + 1, 2):
        total += term
        term *= step * (k - 1) / k
    series = sin(angle) * total
    within = 2.0 / pi * (angle + series) if degrees % 2 else series
    return min(1.0, max(0.0, (1.0 - within) / 2.0))


def _pairs(candidate: Iterable[CostBucket], active: Iterable[CostBucket]) -> Iterator[tuple[_Sample, _Sample]]:
    """Both revisions' samples for each device and size where both have a variance."""
    others = {(row.device, row.at_most_rows): row for row in active if row.batches > 1}
    for row in candidate:
        other = others.get((row.device, row.at_most_rows))
        if row.batches > 1 and other is not None:
            yield _sample(row), _sample(other)


def _sample(row: CostBucket) -> _Sample:
    mean = row.row_seconds / row.batches
    spread = max(0.0, row.row_seconds_squared - row.batches * mean * mean) / (row.batches - 1)
    return _Sample(row.batches, mean, spread / row.batches, row.row_seconds * row.at_most_rows)


def _by_chance(difference: float, parts: list[tuple[float, int]]) -> float:
    """The tail probability of a difference whose variance is a sum of parts, each with its degrees of freedom."""
    variance = sum(part for part, _ in parts)
    if variance <= 0.0:
        return 0.0 if difference > 0.0 else 1.0
    degrees = variance * variance / sum(part * part / free for part, free in parts)
    return t_tail(difference / sqrt(variance), int(degrees))
