"""Rates and latencies of the last hour, from the counters that the server reports. Pure."""

import itertools
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from hotslot.control.v1 import control_pb2

SPAN_SECONDS = 3600.0
STEP_SECONDS = 5.0  # between stored samples; 720 of them are an hour
MAX_SAMPLES = int(SPAN_SECONDS / STEP_SECONDS) + 1
_P50, _P99 = 0.50, 0.99


@dataclass(frozen=True, slots=True)
class RevisionCounts:
    """The counters of one revision since the server started."""

    answered: int
    failed: int
    bounds: tuple[float, ...]  # upper bounds of latency, seconds; the last bucket has none
    counts: tuple[int, ...]  # answers by bucket, one more than the bounds
    reasons: Mapping[str, int] = field(default_factory=dict)  # of failures
    refusals: Mapping[str, int] = field(default_factory=dict)  # valid requests that were turned away, by reason

    @property
    def is_any(self) -> bool:
        """Whether anything was counted."""
        return bool(self.answered or self.failed or self.refusals)


@dataclass(frozen=True, slots=True)
class Sample:
    """The counters of one model at one moment."""

    at: float  # clock seconds
    wall: datetime
    started_at: float  # when the server process started; a new one counts from 0
    active: str  # digest of the active slot's bundle
    revisions: Mapping[str, RevisionCounts]  # by digest


@dataclass(frozen=True, slots=True)
class Rate:
    """The rates of one revision between two samples."""

    answered: float  # a second
    failed: float  # a second
    p50: float | None  # seconds; None without answers
    p99: float | None
    reasons: Mapping[str, int] = field(default_factory=dict)  # of failures: how many, not a second
    refusals: Mapping[str, int] = field(default_factory=dict)  # of requests that were turned away: how many


@dataclass(frozen=True, slots=True)
class Point:
    """One step of the last hour."""

    at: float
    wall: datetime
    rates: Mapping[str, Rate]  # by digest
    swapped_to: str = ""  # digest; empty if the active slot is the same as before


@dataclass
class History:
    """The samples of one model, at most an hour and `MAX_SAMPLES` of them."""

    names: dict[str, str] = field(default_factory=dict)  # digest → revision
    _samples: deque[Sample] = field(default_factory=lambda: deque(maxlen=MAX_SAMPLES))

    def add(self, state: control_pb2.ModelState, started_at: float, at: float, wall: datetime) -> None:
        """Store the counters of a model, unless the last sample is nearly as young and nothing was swapped."""
        sample = read_sample(state, started_at, at, wall)
        for slot in state.slots:
            if slot.bundle_digest and slot.revision:
                self.names[slot.bundle_digest] = slot.revision
        last = self._samples[-1] if self._samples else None
        if last is not None and at - last.at < STEP_SECONDS and last.active == sample.active:
            return
        self._samples.append(sample)
        while self._samples and at - self._samples[0].at > SPAN_SECONDS:
            self._samples.popleft()
        seen = {digest for one in self._samples for digest in one.revisions} | {sample.active}
        self.names = {digest: name for digest, name in self.names.items() if digest in seen}

    def points(self) -> list[Point]:
        """The steps between the samples, oldest first."""
        return [_compare(before, after) for before, after in itertools.pairwise(self._samples)]

    def totals(self) -> list[tuple[str, Rate]]:
        """Each revision of the last hour: answers and failures in all (not a second), and its latencies."""
        sums: dict[str, RevisionCounts] = {}
        for before, after in itertools.pairwise(self._samples):
            for digest, counts in _differences(before, after).items():
                sums[digest] = _add(sums[digest], counts) if digest in sums else counts
        return [(digest, _rate(counts, 1.0)) for digest, counts in sums.items() if counts.is_any]


def read_sample(state: control_pb2.ModelState, started_at: float, at: float, wall: datetime) -> Sample:
    """The counters of a model, summed over devices."""
    revisions: dict[str, RevisionCounts] = {}
    for row in state.stats:
        counts = RevisionCounts(
            row.answered,
            sum(row.failed.values()),
            tuple(bucket.at_most.ToTimedelta().total_seconds() for bucket in row.latency if bucket.HasField("at_most")),
            tuple(bucket.count for bucket in row.latency),
            dict(row.failed),
            dict(row.refused),
        )
        known = revisions.get(row.bundle_digest)
        revisions[row.bundle_digest] = counts if known is None else _add(known, counts)
    active = next((slot.bundle_digest for slot in state.slots if slot.role in ("ACTIVE", "TRIAL")), "")
    return Sample(at, wall, started_at, active, revisions)


def find_quantile(share: float, bounds: Sequence[float], counts: Sequence[int]) -> float | None:
    """A quantile of a histogram, interpolated in its bucket; of the last bucket its lower bound. None if empty."""
    total = sum(counts)
    if not total:
        return None
    wanted, below = share * total, 0
    for number, count in enumerate(counts):
        if count and below + count >= wanted:
            lower = bounds[number - 1] if number else 0.0
            if number >= len(bounds):
                return lower
            return lower + (bounds[number] - lower) * (wanted - below) / count
        below += count
    return bounds[-1] if bounds else None


def _compare(before: Sample, after: Sample) -> Point:
    seconds = max(after.at - before.at, 1e-3)
    rates = {digest: _rate(counts, seconds) for digest, counts in _differences(before, after).items()}
    swapped = after.active if after.active and before.active and after.active != before.active else ""
    return Point(after.at, after.wall, rates, swapped)


def _differences(before: Sample, after: Sample) -> dict[str, RevisionCounts]:
    """The counts of each revision between two samples; after a restart of the server, all that it has counted."""
    is_new = after.started_at != before.started_at
    nothing = RevisionCounts(0, 0, (), ())
    return {
        digest: _subtract(counts, nothing if is_new else before.revisions.get(digest, nothing))
        for digest, counts in after.revisions.items()
    }


def _subtract(after: RevisionCounts, before: RevisionCounts) -> RevisionCounts:
    if before.answered > after.answered or (before.counts and before.bounds != after.bounds):
        return after
    older = before.counts or (0,) * len(after.counts)
    counts = tuple(max(0, new - old) for new, old in zip(after.counts, older, strict=False))
    failed = max(0, after.failed - before.failed)
    reasons, refusals = Counter(after.reasons), Counter(after.refusals)
    reasons.subtract(before.reasons)
    refusals.subtract(before.refusals)
    return RevisionCounts(after.answered - before.answered, failed, after.bounds, counts, +reasons, +refusals)


def _add(one: RevisionCounts, other: RevisionCounts) -> RevisionCounts:
    answered, failed = one.answered + other.answered, one.failed + other.failed
    reasons, refusals = Counter(one.reasons) + Counter(other.reasons), Counter(one.refusals) + Counter(other.refusals)
    counts = other.counts
    if one.bounds == other.bounds:
        counts = tuple(itertools.starmap(int.__add__, zip(one.counts, other.counts, strict=False)))
    return RevisionCounts(answered, failed, other.bounds, counts, reasons, refusals)


def _rate(counts: RevisionCounts, seconds: float) -> Rate:
    quantiles = (find_quantile(share, counts.bounds, counts.counts) for share in (_P50, _P99))
    p50, p99 = quantiles
    return Rate(counts.answered / seconds, counts.failed / seconds, p50, p99, counts.reasons, counts.refusals)


def list_digests(points: Iterable[Point]) -> list[str]:
    """The revisions that answered or failed anything, in the order of their first answer."""
    found: dict[str, None] = {}
    for point in points:
        found.update({digest: None for digest, rate in point.rates.items() if rate.answered or rate.failed})
    return list(found)
