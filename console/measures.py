"""What each measure of a gate or a trial is: a plain name, its unit, and which direction is better. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from hotslot.updates.v1 import updates_pb2

GROUPS = ("Answers to the golden set", "Answers to callers", "Speed and memory")
_GOLDEN, _CALLERS, _SPEED = GROUPS
LOWER, HIGHER = "lower is better", "higher is better"


@dataclass(frozen=True, slots=True)
class Measure:
    """How a measured number is shown. Every text is a key of `console.words`."""

    label: str
    unit: str  # "%", "ms", "s", "bytes", or "" for a count or a number without unit
    better: str  # LOWER or HIGHER
    group: str
    has_limit: bool = True


MEASURES: dict[str, Measure] = {
    "accuracy": Measure("right answers", "%", HIGHER, _GOLDEN),
    "min_accuracy": Measure("right answers, against the least that is required", "%", HIGHER, _GOLDEN),
    "negative_flips": Measure("answers that were right before and are wrong now", "%", LOWER, _GOLDEN),
    "worse_by_chance": Measure("chance that an equally good model looks as bad", "%", HIGHER, _GOLDEN),
    "agreement": Measure("same answers as the active model", "%", HIGHER, _GOLDEN),
    "micro_f1": Measure("right parts of addresses (F1)", "%", HIGHER, _GOLDEN, has_limit=False),
    "not_finite": Measure("answers that are no number", "", LOWER, _GOLDEN),
    "failed_answers": Measure("questions without an answer", "", LOWER, _GOLDEN),
    "changed_answers": Measure("answers that differ from the previous revision's", "%", LOWER, _CALLERS),
    "error_share": Measure("failed requests", "%", LOWER, _CALLERS),
    "failed_with_probes": Measure("failed requests and probes", "", LOWER, _CALLERS),
    "runner_deaths": Measure("unexpected ends of its process", "", LOWER, _CALLERS),
    "latency_p95_seconds": Measure("time to answer, p95", "ms", LOWER, _SPEED),
    "cost_seconds_a_row": Measure("device time of one question", "ms", LOWER, _SPEED),
    "slower_by_chance": Measure("chance that an equally fast model looks as slow", "%", HIGHER, _SPEED),
    "cost_seconds": Measure("device time of the whole golden set", "s", LOWER, _SPEED),
    "memory_bytes": Measure("memory, against the plan", "bytes", LOWER, _SPEED),
}
_FACTORS = {"%": 100.0, "ms": 1000.0}
_LEAST = 0.01  # smaller numbers are said to be below it


@dataclass(frozen=True, slots=True)
class MeasureRow:
    """One line of the table."""

    measure: Measure
    candidate: str
    active: str
    limit: str
    passed: bool


def group_measures(rows: Sequence[updates_pb2.Measurement]) -> list[tuple[str, list[MeasureRow]]]:
    """The measures by group, in the order of GROUPS; one that this build does not know is shown by its name."""
    found: dict[str, list[MeasureRow]] = {group: [] for group in GROUPS}
    for row in rows:
        measure = MEASURES.get(row.name) or Measure(row.name.replace("_", " "), "", "", _SPEED)
        limit = format_measure(row.threshold, measure.unit) if measure.has_limit else "–"
        active = format_measure(row.active, measure.unit) if row.HasField("active") else "–"
        shown = MeasureRow(measure, format_measure(row.candidate, measure.unit), active, limit, row.passed)
        found[measure.group].append(shown)
    return [(group, shown) for group, shown in found.items() if shown]


def format_measure(value: float, unit: str) -> str:
    """A measured number without useless digits."""
    if unit == "bytes":
        return f"{value / (1 << 20):,.0f} MiB"
    shown = value * _FACTORS.get(unit, 1.0)
    return f"< {_LEAST}" if 0 < shown < _LEAST else f"{shown:.4g}"
