"""What is counted of each revision on each device: enough to judge a trial without a metrics system."""

import bisect
from collections import OrderedDict
from dataclasses import dataclass, field, replace

from inference.server.request import Charge

LATENCY_BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)  # seconds, upper


@dataclass(frozen=True, slots=True)
class StatsKey:
    """Whose numbers they are."""

    bundle_digest: str
    device: str


@dataclass(frozen=True, slots=True)
class BatchCosts:
    """Seconds a row of batches of about one size: the sums that a mean and a variance are computed from."""

    batches: int = 0
    row_seconds: float = 0.0  # sum over the batches of the seconds a row
    row_seconds_squared: float = 0.0  # sum over the batches of their squares


@dataclass(slots=True)
class RevisionStats:
    """Numbers of one revision on one device since the server started."""

    key: StatsKey
    answered: int = 0
    failed: dict[str, int] = field(default_factory=dict)
    answered_by_previous: int = 0
    latency_bounds: tuple[float, ...] = LATENCY_BOUNDS
    latency: list[int] = field(default_factory=list)  # answers a bucket; the last bucket has no bound
    restarts: int = 0
    void_restarts: int = 0
    computed_seconds: float = 0.0
    rows: int = 0
    costs: dict[int, BatchCosts] = field(default_factory=dict)  # by the most rows of such a batch, a power of two

    def __post_init__(self) -> None:
        """Begin all buckets at zero."""
        self.latency = self.latency or [0] * (len(self.latency_bounds) + 1)

    def count_answer(self, seconds: float) -> None:
        """A request was answered, so long after its acceptance."""
        self.answered += 1
        self.latency[bisect.bisect_left(self.latency_bounds, seconds)] += 1

    def count_failure(self, reason: str) -> None:
        """A request was failed by this revision."""
        self.failed[reason] = self.failed.get(reason, 0) + 1

    def count_batch(self, seconds: float, rows: int) -> None:
        """A batch of so many rows was computed in so many CPU or device seconds."""
        self.computed_seconds += seconds
        self.rows += rows
        if rows > 0:
            at_most, cost = 1 << (rows - 1).bit_length(), seconds / rows
            sums = self.costs.get(at_most, BatchCosts())
            self.costs[at_most] = BatchCosts(
                sums.batches + 1, sums.row_seconds + cost, sums.row_seconds_squared + cost * cost
            )

    def frozen(self) -> "RevisionStats":
        """A copy that no longer moves."""
        return replace(self, failed=dict(self.failed), latency=list(self.latency), costs=dict(self.costs))


class StatsBook:
    """All numbers of one model. Bounded: the revisions that were not in use for longest are forgotten."""

    def __init__(self, max_revisions: int = 32) -> None:
        self._max = max_revisions
        self._rows: OrderedDict[StatsKey, RevisionStats] = OrderedDict()

    def of(self, key: StatsKey) -> RevisionStats:
        """The numbers of one revision, begun at zero."""
        row = self._rows.get(key)
        if row is not None:
            self._rows.move_to_end(key)
            return row
        row = self._rows[key] = RevisionStats(key)
        while len(self._rows) > self._max:
            self._rows.popitem(last=False)
        return row

    def settle_charge(self, charge: Charge) -> None:
        """The previous slot has answered what a trial failed: now it counts."""
        row = self.of(StatsKey(charge.bundle_digest, charge.device))
        row.answered_by_previous += 1
        if charge.reason:
            row.count_failure(charge.reason)

    def rows(self) -> list[RevisionStats]:
        """All rows, those that were used last at the end."""
        return list(self._rows.values())


@dataclass(slots=True, eq=False)
class Death:
    """One end of a runner, judged when the requests it held have settled."""

    stats: RevisionStats
    suspects: set[int]  # ids of tickets that it held and that are not settled
    is_void: bool = False  # one of them was found to kill any runner
    failed: int = 0  # requests that a trial failed by it


class DeathLedger:
    """Deaths that wait for their judgement."""

    def __init__(self) -> None:
        self._open: list[Death] = []

    def add(self, death: Death) -> None:
        """A runner died; with nobody in its hands it is judged at once."""
        self._open.append(death)
        self._judge()

    def blame_input(self, ticket_id: int) -> None:
        """A ticket has killed twice: no death that it took part in counts against a model."""
        for death in self._open:
            if ticket_id in death.suspects:
                death.is_void = True

    def settled(self, ticket_id: int) -> None:
        """A ticket has its outcome."""
        if not self._open:
            return
        for death in self._open:
            death.suspects.discard(ticket_id)
        self._judge()

    def _judge(self) -> None:
        for death in [death for death in self._open if not death.suspects]:
            self._open.remove(death)
            if death.is_void:
                death.stats.void_restarts += 1
                continue
            death.stats.restarts += 1
            for _ in range(death.failed):
                death.stats.count_failure("RUNNER_DIED")
