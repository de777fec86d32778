"""What became of requests: one event for each item, and the counters of each revision on each device.

The updater judges a trial by the counters, without a metrics system. An item is a unary request, a stream item, or a
stream message that does not parse. One that is not accepted is counted by `IncomingItem`; an accepted one when its
PendingRequest is done. Probes and self-tests are not items. Ends of runners are counted when it is known whose fault
they were; an input that caused them is remembered.
"""

import asyncio
import bisect
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import NamedTuple, Self

from common import errors, reasons
from common.records import record
from inference.server.events import Emit, ItemEnded, ItemOutcome
from inference.server.request import MAX_DEATHS, Attribution, InputId, Payload, PendingRequest

MAX_LABELS = 64  # different ones that are counted
MAX_INPUTS = 256  # that ended runners are remembered; the oldest is forgotten for a new one
LATENCY_BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)  # seconds, upper


class StatsKey(NamedTuple):
    """A revision on a device."""

    bundle_digest: str
    device: str


@record
class CallCosts:
    """Seconds a row, over device calls of about one size: the sums for a mean and a variance."""

    calls: int = 0
    row_seconds: float = 0.0  # sum over the calls
    row_seconds_squared: float = 0.0  # sum of the squares over the calls


NO_COSTS = CallCosts()


class LabelCounter:
    """How often each label was given. Bounded: what comes beyond MAX_LABELS different ones is counted as `other`."""

    def __init__(self, other: str = "other") -> None:
        self.counts: dict[str, int] = {}
        self._other = other

    def add(self, labels: Iterable[str]) -> None:
        """Count labels, each once."""
        counts = self.counts
        for label in labels:
            known = label if label in counts or len(counts) < MAX_LABELS - 1 else self._other
            counts[known] = counts.get(known, 0) + 1

    def copy(self) -> "LabelCounter":
        """A copy that later counts do not change."""
        copied = LabelCounter(self._other)
        copied.counts = dict(self.counts)
        return copied


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
    labels: LabelCounter = field(default_factory=LabelCounter)  # of its answers
    refused: dict[str, int] = field(default_factory=dict)  # valid, turned away while it was to answer, by reason

    def __post_init__(self) -> None:
        """Start all buckets at zero."""
        self.latency = self.latency or [0] * (len(self.latency_bounds) + 1)

    def count_answer(self, seconds: float, labels: Iterable[str] = ()) -> None:
        """Count an answered request, `seconds` after it was accepted."""
        self.answered += 1
        self.labels.add(labels)
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
            sums = self.costs.get(at_most, NO_COSTS)
            self.costs[at_most] = CallCosts(
                sums.calls + 1, sums.row_seconds + cost, sums.row_seconds_squared + cost * cost
            )

    def copy(self) -> "RevisionStats":
        """A copy that later counts do not change."""
        return replace(
            self,
            failed=dict(self.failed),
            latency=list(self.latency),
            costs=dict(self.costs),
            labels=self.labels.copy(),
            refused=dict(self.refused),
        )


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

    def count_refusal(self, key: StatsKey, error: errors.HotslotError) -> None:
        """Count a valid request that was turned away, for the revision that was to answer it."""
        if classify_error(error)[0] is ItemOutcome.REFUSED:
            row = self.get(key)
            row.refused[error.reason] = row.refused.get(error.reason, 0) + 1

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
                death.stats.count_failure(reasons.RUNNER_DIED)


@dataclass(slots=True)
class PoisonMemory:
    """The inputs of one model that ended MAX_DEATHS runners, or one runner each time that they were computed alone.

    An input whose caller left before it could be run again alone is suspected: sent again, it is computed alone.

    Bounded in number and time. An input is hashed only if one of its size is remembered.

    Attributes:
        seconds: how long an input is refused, and how long a single death counts.
    """

    seconds: float
    _deaths: OrderedDict[InputId, tuple[int, float]] = field(default_factory=OrderedDict)  # deaths, until when
    _sizes: frozenset[int] = frozenset()

    def add(self, payload: InputId, now: float, deaths: int = 1) -> None:
        """Record that an input has ended runners, computed alone the last time; 0 if others were computed with it."""
        if self.seconds <= 0:
            return
        before = self._deaths.pop(payload, (0, 0.0))[0]
        self._deaths[payload] = (max(deaths, before + min(deaths, 1)), now + self.seconds)
        while len(self._deaths) > MAX_INPUTS:
            self._deaths.popitem(last=False)
        self._forget_old(now)

    def clear(self, payload: Payload) -> None:
        """Record that an input was answered: the runners that it seemed to have ended had other reasons."""
        if self._sizes and payload.size_bytes in self._sizes:
            self._deaths.pop(payload.identify(), None)

    def count_deaths(self, payload: Payload, now: float) -> int | None:
        """How many runners an input has ended alone; None if it is not suspected. It is refused after MAX_DEATHS."""
        if not self._sizes or payload.size_bytes not in self._sizes:
            return None
        self._forget_old(now)
        row = self._deaths.get(payload.identify())
        return None if row is None else row[0]

    def count(self, now: float) -> int:
        """How many inputs are refused now; from any thread."""
        rows = list(self._deaths.values())
        return sum(deaths >= MAX_DEATHS and until > now for deaths, until in rows)

    def _forget_old(self, now: float) -> None:
        for row in [row for row, (_, until) in self._deaths.items() if until <= now]:
            del self._deaths[row]
        self._sizes = frozenset(row.size_bytes for row in self._deaths)


_OUTCOMES: dict[type[errors.HotslotError], ItemOutcome] = {
    errors.InputRefused: ItemOutcome.INVALID,
    errors.NotFound: ItemOutcome.INVALID,
    errors.Overloaded: ItemOutcome.REFUSED,
    errors.NotReady: ItemOutcome.REFUSED,
    errors.DeadlineMissed: ItemOutcome.EXPIRED,
}


def classify_error(error: BaseException) -> tuple[ItemOutcome, str]:
    """The outcome and reason of an item that ended with this error."""
    if not isinstance(error, errors.HotslotError):
        return ItemOutcome.FAILED, errors.Failed.default_reason
    if error.reason == "DEADLINE_TOO_SHORT":  # the deadline has not passed
        return ItemOutcome.REFUSED, error.reason
    return _OUTCOMES.get(type(error), ItemOutcome.FAILED), error.reason


def classify_cancellation(*, has_expired: bool) -> tuple[ItemOutcome, str]:
    """The outcome and reason of an item whose call was ended by its caller, or by its deadline."""
    return (ItemOutcome.EXPIRED, reasons.DEADLINE_EXPIRED) if has_expired else (ItemOutcome.CANCELLED, "CANCELLED")


def describe_item(model: str, request: PendingRequest, now: float) -> ItemEnded:
    """The event of an accepted item that is done."""
    seconds = now - request.accepted_at
    attribution = request.attribution
    handover = "" if attribution is None else attribution.reason
    facts = (request.on_slot, handover, None if request.is_copy else request.tags.trace)
    if request.outcome.cancelled():
        has_expired = request.has_expired or now >= request.deadline
        outcome, reason = classify_cancellation(has_expired=has_expired)
        return ItemEnded(model, request.revision, request.device, outcome, reason, (), seconds, 0.0, 0.0, 0.0, *facts)
    error = request.outcome.exception()
    if error is not None:
        outcome, reason = classify_error(error)
        return ItemEnded(model, request.revision, request.device, outcome, reason, (), seconds, 0.0, 0.0, 0.0, *facts)
    prediction = request.outcome.result()
    served = prediction.served_by
    return ItemEnded(
        served.model,
        served.revision,
        served.device,
        ItemOutcome.ANSWERED,
        "",
        prediction.labels,
        seconds,
        prediction.queued_seconds,
        prediction.prepared_seconds,
        prediction.computed_seconds,
        *facts,
    )


class IncomingItem:
    """A `with` block around the acceptance of an item: an error that leaves it is the item's outcome.

    So is the end of a call whose message has not been read; `has_expired` says whether its deadline has ended it.
    """

    __slots__ = ("_emit", "_has_expired", "model")

    def __init__(self, emit: Emit, has_expired: Callable[[], bool] | None = None) -> None:
        self._emit = emit
        self._has_expired = has_expired  # None: the block awaits nothing
        self.model = ""  # the configured name, once it is found

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, Exception):
            outcome, reason = classify_error(error)
        elif isinstance(error, asyncio.CancelledError):
            outcome, reason = classify_cancellation(has_expired=self._has_expired is not None and self._has_expired())
        else:
            return
        self._emit(ItemEnded(self.model, "", "", outcome, reason))
