"""The mix of labels in a revision's answers, by the hour of the day, against that of the revision before. Pure.

Nothing is computed twice for it: the server counts the labels of the answers that it gives anyway. Requests differ
between day and night, so that only the same hours are compared.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

MAX_LABELS = 32  # kept of an hour; the rest is counted as one
OTHER = "other"
_MOST_ANSWERS = 200_000  # labels of an hour: beyond it the older ones count half
_SHOWN = 3  # labels named in a sentence


@dataclass(frozen=True, slots=True)
class LabelCount:
    """How often a label was given."""

    label: str
    count: int


@dataclass(frozen=True, slots=True)
class HourMix:
    """The labels that were given in one hour of the day, of all days."""

    hour: int  # 0 to 23, UTC
    labels: tuple[LabelCount, ...]

    @property
    def total(self) -> int:
        """All labels."""
        return sum(row.count for row in self.labels)


@dataclass(frozen=True, slots=True)
class LabelMix:
    """The labels of one bundle's answers."""

    bundle_digest: str
    revision: str  # for people
    hours: tuple[HourMix, ...] = ()


@dataclass(frozen=True, slots=True)
class LabelMark:
    """The server's counters when the labels were last added to a mix."""

    server_incarnation: str
    hour: int
    labels: tuple[LabelCount, ...]


@dataclass(frozen=True, slots=True)
class MixComparison:
    """How far two mixes are apart at the hours that both have."""

    distance: float  # total variation, 0 to 1: the share of labels that would have to change
    labels: int  # of the smaller one, at these hours
    shifts: tuple[tuple[str, float, float], ...]  # label, its share before and now, the largest first


def add_labels(mix: LabelMix, hour: int, labels: Mapping[str, int]) -> LabelMix:
    """The same mix with labels that were given in one hour."""
    counts = Counter({row.label: row.count for row in _find_hour(mix, hour).labels})
    if counts.total() > _MOST_ANSWERS:
        counts = Counter({label: count // 2 for label, count in counts.items()})
    counts.update(labels)
    rows = [LabelCount(label, count) for label, count in counts.most_common(MAX_LABELS) if count > 0]
    rest = counts.total() - sum(row.count for row in rows)
    rows += [LabelCount(OTHER, rest)] if rest > 0 else []
    hours = [row for row in mix.hours if row.hour != hour]
    return replace(mix, hours=tuple(sorted([*hours, HourMix(hour, tuple(rows))], key=lambda row: row.hour)))


def compare_mixes(before: LabelMix, now: LabelMix, least: int) -> MixComparison | None:
    """Compare two mixes at the hours of which both have at least so many labels; None if there is no such hour.

    The mix before is weighted as the present one is, hour by hour, so that more traffic at night is no difference.
    """
    old, new, common = Counter[str](), Counter[str](), 0
    for hour in now.hours:
        other = _find_hour(before, hour.hour)
        if min(hour.total, other.total) < least:
            continue
        common += min(hour.total, other.total)
        for row in hour.labels:
            new[row.label] += row.count
        for row in other.labels:
            old[row.label] += round(row.count * hour.total / other.total)
    if not common:
        return None
    totals = old.total(), new.total()
    shifts = [(label, old[label] / totals[0], new[label] / totals[1]) for label in old | new]
    shifts.sort(key=lambda row: -abs(row[2] - row[1]))
    return MixComparison(sum(abs(b - a) for _, a, b in shifts) / 2, common, tuple(shifts[:_SHOWN]))


def _find_hour(mix: LabelMix, hour: int) -> HourMix:
    return next((row for row in mix.hours if row.hour == hour), HourMix(hour, ()))
