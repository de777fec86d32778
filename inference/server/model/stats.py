"""Counters of each revision on each device: the updater judges a trial by them without a metrics system."""

import bisect
from collections import OrderedDict
from dataclasses import dataclass, field, replace

from inference.server.request import Attribution

LATENCY_BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)  # seconds, upper


@dataclass(frozen=True, slots=True)
class StatsKey:
    """A revision on a device."""

    bundle_digest: str
    device: str


@dataclass(frozen=True, slots=True)
class CallCosts:
    """Seconds a row, over device calls of about one size: the sums for a mean and a variance."""

    calls: int = 0
    row_seconds: float = 0.0  # sum over the calls
    row_seconds_squared: float = 0.0  # sum of the squares over the calls


@dataclass(slots=True)
class RevisionStats:
    """Counters of one revision on one device since the server started."""

    key: StatsKey
    answered: int = 0
    failed: dict[str, int] = field(default_factory=dict)  # by reason
    answered_by_previous: int = 0
    latency_bounds: tuple[float, ...] = LATENCY_BOUNDS
    latency: list[int] = field(default_factory=list)  # answers per bucket; the last bucket has no upper bound
    deaths: int = 0
    void_deaths: int = 0
    computed_seconds: float = 0.0
    rows: int = 0
    costs: dict[int, CallCosts] = field(default_factory=dict)  # by the largest size of a call in rows, a power of two

    def __post_init__(self) -> None:
        """Start all buckets at zero."""
        self.latency = self.latency or [0] * (len(self.latency_bounds) + 1)

    def count_answer(self, seconds: float) -> None:
        """Count an answered request, `seconds` after it was accepted."""
        self.answered += 1
        self.latency[bisect.bisect_left(self.latency_bounds, seconds)] += 1

    def count_failure(self, reason: str) -> None:
        """Count a request that this revision failed."""
        self.failed[reason] = self.failed.get(reason, 0) + 1

    def count_call(self, seconds: float, rows: int) -> None:
        """Count a device call of `rows` rows, 0 if it failed; `seconds` is CPU time on a CPU, device time elsewhere."""
        self.computed_seconds += seconds
        self.rows += rows
        if rows > 0:
            at_most, cost = 1 << (rows - 1).bit_length(), seconds / rows
            sums = self.costs.get(at_most, CallCosts())
            self.costs[at_most] = CallCosts(
                sums.calls + 1, sums.row_seconds + cost, sums.row_seconds_squared + cost * cost
            )

    def copy(self) -> "RevisionStats":
        """A copy that later counts do not change."""
        return replace(self, failed=dict(self.failed), latency=list(self.latency), costs=dict(self.costs))


class StatsTable:
    """The counters of one model. Bounded: the least recently used revisions are dropped."""

    def __init__(self, max_revisions: int = 32) -> None:
        self._max = max_revisions
        self._rows: OrderedDict[StatsKey, RevisionStats] = OrderedDict()
        self.baseline: RevisionStats | None = None  # of the revision before the trial, at its activation

    def get(self, key: StatsKey) -> RevisionStats:
        """The counters of one revision; created at zero if absent."""
        row = self._rows.get(key)
        if row is not None:
            self._rows.move_to_end(key)
            return row
        row = self._rows[key] = RevisionStats(key)
        while len(self._rows) > self._max:
            self._rows.popitem(last=False)
        return row

    def count_attribution(self, attribution: Attribution) -> None:
        """Count a failure against the trial, now that the previous slot has answered the request."""
        row = self.get(StatsKey(attribution.bundle_digest, attribution.device))
        row.answered_by_previous += 1
        if attribution.reason:
            row.count_failure(attribution.reason)

    def freeze_baseline(self, key: StatsKey | None) -> None:
        """Keep a copy of the present counters of a revision as the baseline; none without a key."""
        self.baseline = None if key is None else self.get(key).copy()

    def rows(self) -> list[RevisionStats]:
        """All counters, the most recently used last."""
        return list(self._rows.values())


@dataclass(slots=True, eq=False)
class RunnerDeath:
    """One end of a runner process, counted when all requests that it held are done."""

    stats: RevisionStats
    suspect_requests: set[int]  # ids of requests that it held and that are not done
    is_void: bool = False  # one of these requests ended a second runner too: not the model's fault
    failed: int = 0  # requests that a trial failed by this death


class DeathTracker:
    """Deaths that are not counted yet."""

    def __init__(self) -> None:
        self._open: list[RunnerDeath] = []

    def add(self, death: RunnerDeath) -> None:
        """Record a death; it is counted at once if no request is suspected."""
        self._open.append(death)
        self._count_resolved()

    def mark_input_at_fault(self, request_id: int) -> None:
        """Record that a request ended two runners: no death that it took part in counts against a model."""
        for death in self._open:
            if request_id in death.suspect_requests:
                death.is_void = True

    def on_request_done(self, request_id: int) -> None:
        """Remove a finished request from the suspects; count the deaths that have none left."""
        if not self._open:
            return
        for death in self._open:
            death.suspect_requests.discard(request_id)
        self._count_resolved()

    def _count_resolved(self) -> None:
        for death in [death for death in self._open if not death.suspect_requests]:
            self._open.remove(death)
            if death.is_void:
                death.stats.void_deaths += 1
                continue
            death.stats.deaths += 1
            for _ in range(death.failed):
                death.stats.count_failure("RUNNER_DIED")
