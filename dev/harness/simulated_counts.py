"""Counters of the simulated server: answers, costs, and the comparison of two slots' answers."""

from dataclasses import dataclass, replace

from updater.core.comparison import AnswerComparison, ChangedDirection
from updater.core.counts import CostBucket, Counts
from updater.core.effects import LATE_REASONS, ShadowCopies
from updater.core.facts import ShadowSnapshot

BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
DIRECTION = "yes → no"


@dataclass(slots=True)
class SimShadow:
    """Requests that a second slot answers too."""

    load_id: str  # that is judged
    copies: ShadowCopies
    requests: float = 0.0  # compared
    changed: float = 0.0  # of these
    failed: float = 0.0  # copies
    out_of_memory: float = 0.0  # of these

    def compare(self, requests: int, changes: float, failure: str) -> None:
        """Requests have come, of whose answers this share differs, or which fail for a reason."""
        copied = requests * self.copies.share
        if failure:
            self.failed += copied
            self.out_of_memory += copied if failure == "OUT_OF_MEMORY" else 0.0
            return
        self.requests += copied
        self.changed += copied * changes

    @property
    def seen(self) -> ShadowSnapshot:
        """As the server reports it."""
        compared, changed = int(self.requests), int(self.changed)
        rows = (ChangedDirection(DIRECTION, changed),) if changed else ()
        comparison = AnswerComparison(compared, compared, changed, rows, compared, changed)
        return ShadowSnapshot(self.load_id, comparison, int(self.failed), out_of_memory=int(self.out_of_memory))


def count_batches(before: Counts, device: str, batches: int, seconds: float) -> Counts:
    """Add one batch of one row per request; every second one takes 10 % longer."""
    longer = batches // 2
    old = before.costs[0] if before.costs else CostBucket(device, 1, 0, 0.0, 0.0)
    bucket = CostBucket(
        device,
        at_most_rows=1,
        batches=old.batches + batches,
        row_seconds=old.row_seconds + seconds * (batches + 0.1 * longer),
        row_seconds_squared=old.row_seconds_squared + seconds**2 * (batches + 0.21 * longer),
    )
    return replace(before, costs=(bucket,))


def count_requests(before: Counts, requests: int, reason: str) -> Counts:
    """Add requests, answered if there is no reason of a failure."""
    if not reason:
        latency = tuple(a + b for a, b in zip(before.latency or (0,) * 13, (0, requests, *(0,) * 11), strict=True))
        return replace(before, answered=before.answered + requests, latency=latency, latency_bounds=BOUNDS)
    return replace(
        before,
        failed=before.failed + requests,
        not_finite=before.not_finite + (requests if reason == "NOT_FINITE" else 0),
        out_of_memory=before.out_of_memory + (requests if reason == "OUT_OF_MEMORY" else 0),
        late=before.late + (requests if reason in LATE_REASONS else 0),
        restarts=before.restarts + (1 if reason == "RUNNER_DIED" else 0),
    )
