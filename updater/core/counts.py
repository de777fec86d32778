"""What the server's counters of a bundle say about a span of time. Pure."""

from dataclasses import replace

from updater.core.costs import subtract_costs
from updater.core.record import Counts


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
