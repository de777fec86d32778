"""A soak run's own count of outcomes, and the server's metrics since its begin."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from dev.harness.loadgen import Outcome
from dev.harness.metrics import read_families
from dev.soak.faults import DEAF_REASON
from dev.soak.traffic import OVERSIZED_REQUEST

Key = tuple[str, ...]
ITEMS, ANSWERS = "hotslot_items", "hotslot_answers"
_KINDS = {"OK": "answered", "INVALID_ARGUMENT": "invalid", "NOT_FOUND": "invalid", "INTERNAL": "failed"}
_MAY_BE_ANYTHING = "unknown"  # the caller left before the outcome; the server may have counted another, or nothing


@dataclass(slots=True)
class MetricCounts:
    """Increments of counters since the first look; series of revisions that are dropped meanwhile stay counted."""

    port: int
    _last: dict[str, dict[Key, float]] = field(default_factory=dict)
    _sums: dict[str, Counter[Key]] = field(default_factory=dict)

    def look(self) -> None:
        """Read the metrics; at least once for every 32 revisions."""
        families = read_families(self.port)
        for name in (ITEMS, ANSWERS):
            rows = [row for row in families[name].samples if row.name.endswith("_total")]
            now = {tuple(value for _, value in sorted(row.labels.items())): row for row in rows}
            before = self._last.get(name)
            sums = self._sums.setdefault(name, Counter())
            for key, row in now.items():
                known = 0.0 if before is None else before.get(key, 0.0)
                if before is not None:
                    sums[(row.labels.get("outcome", ""), row.labels.get("reason", ""))] += round(row.value - known)
            self._last[name] = {key: row.value for key, row in now.items()}

    def items(self) -> Counter[Key]:
        """Items by outcome and reason."""
        return self._sums[ITEMS]

    def rows(self) -> int:
        """Rows answered."""
        return sum(self._sums[ANSWERS].values())


@dataclass(slots=True)
class OwnCounts:
    """What callers saw."""

    items: Counter[Key] = field(default_factory=Counter)  # by outcome and reason
    rows: int = 0  # answered
    unknown_rows: int = 0
    groups: Counter[tuple[str, str]] = field(default_factory=Counter)  # by group and outcome

    def add(self, outcomes: Iterable[Outcome]) -> None:
        """Count outcomes."""
        for one in outcomes:
            kind = kind_of(one)
            self.groups[one.group, kind] += 1
            self.items[kind, "" if kind in ("answered", _MAY_BE_ANYTHING) else one.reason] += 1
            self.rows += one.rows * (kind == "answered")
            self.unknown_rows += one.rows * (kind == _MAY_BE_ANYTHING)

    def refused_share(self, group: str) -> float:
        """Share of a group's calls that were refused."""
        total = sum(count for (name, _), count in self.groups.items() if name == group)
        return self.groups[group, "refused"] / total if total else 0.0

    def differences(self, metrics: MetricCounts) -> Iterator[str]:
        """Where the metrics cannot be right."""
        unknown = self.items[_MAY_BE_ANYTHING, ""]
        told = Counter({key: count for key, count in metrics.items().items() if key[1] != DEAF_REASON})
        for key in sorted({*self.items, *told} - {(_MAY_BE_ANYTHING, "")}):
            own, theirs = self.items[key], told[key]
            # What a caller left may have ended as anything but an error of ours or of its input.
            spare = 0 if key[0] in ("invalid", "failed") else unknown
            if not own <= theirs <= own + spare:
                yield f"{' '.join(key)}: {own} seen by callers, {theirs} in the metrics, {spare} of unknown outcome"
        own = sum(self.items.values())
        if not own - unknown <= told.total() <= own:
            yield f"{told.total()} items in the metrics, {own} sent, {unknown} of them of unknown outcome"
        if not self.rows <= metrics.rows() <= self.rows + self.unknown_rows:
            yield f"{metrics.rows()} rows answered in the metrics, {self.rows} received"


def kind_of(one: Outcome) -> str:
    """The metrics' name of an outcome."""
    if one.group == "invalid" and one.request == OVERSIZED_REQUEST:
        return _MAY_BE_ANYTHING  # the transport ends it, which the server sees as a caller who leaves
    if one.code in _KINDS:
        return _KINDS[one.code]
    if one.code == "RESOURCE_EXHAUSTED" or one.reason == "DEADLINE_TOO_SHORT":
        return "refused"
    if one.code == "DEADLINE_EXCEEDED" and one.reason:
        return "expired"
    return _MAY_BE_ANYTHING if one.code in ("CANCELLED", "DEADLINE_EXCEEDED") else "failed"
