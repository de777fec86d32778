"""How values are shown on the pages, and the lists that the templates draw. Pure."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from markupsafe import Markup, escape

from console.history import History
from console.live import Snapshot
from hotslot.control.v1 import control_pb2
from hotslot.status.v1 import status_pb2
from hotslot.updates.v1 import updates_pb2

LABELS = ("yes", "no", "maybe")
STAGES = ("STAGING", "VERIFYING", "GATING", "SHADOWING", "ACTIVATING", "OBSERVING", "COMMITTING")
_OPTIONAL = ("SHADOWING",)  # only in some rollouts
_KIB, _MINUTE, _HOUR = 1024, 60, 3600
_SHOWN_DIGITS, _SHOWN_LABELS = 8, 8
_NO_KINDS = ("none", "other characters")  # no kinds of parts: what a part of an address became


@dataclass(frozen=True, slots=True)
class StageRow:
    """One stage of an update's timeline."""

    name: str
    state: str  # "done", "now", "stopped" or "next"
    began_at: datetime | None = None
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class TrafficRow:
    """The traffic of one revision in the last hour."""

    revision: str
    digest: str
    line: int  # number of its line in the charts
    answered: int
    failed: int
    p50_ms: float | None
    p99_ms: float | None
    is_active: bool
    reasons: list[tuple[str, int]]  # of the failures, the most frequent first
    refusals: list[tuple[str, int]]  # of valid requests that were turned away

    @property
    def refused(self) -> int:
        """Valid requests that were turned away."""
        return sum(count for _, count in self.refusals)


@dataclass(frozen=True, slots=True)
class ModelView:
    """All that a page shows of one model."""

    number: int
    model: status_pb2.Model
    state: control_pb2.ModelState | None
    health: status_pb2.CapabilityHealth | None
    updates: updates_pb2.ModelUpdates | None
    under_way: updates_pb2.GetUpdateResponse | None
    history: History

    @property
    def name(self) -> str:
        """Name of the model."""
        return self.model.name

    @property
    def is_entailment(self) -> bool:
        """Whether it judges statements about pictures."""
        return self.model.task == "visual-entailment"

    @property
    def active(self) -> status_pb2.Slot | None:
        """The slot that answers."""
        return next((slot for slot in self.model.slots if slot.name == self.model.active_slot), None)

    @property
    def other(self) -> control_pb2.SlotStatus | None:
        """The other slot, if it holds a model that can be asked."""
        if self.state is None:
            return None
        return next(
            (one for one in self.state.slots if one.slot != self.model.active_slot and one.state == "LOADED"), None
        )

    @property
    def stages(self) -> list[StageRow]:
        """The timeline of the update under way."""
        return [] if self.under_way is None else list_stages(self.under_way)

    @property
    def label_mix(self) -> list[tuple[str, int, list[tuple[str, float]]]]:
        """Of each revision since the server started: its name, its labels, and the share of the most frequent."""
        counts: dict[str, Counter[str]] = {}
        for row in self.state.stats if self.state is not None else ():
            counts.setdefault(row.bundle_digest, Counter()).update({one.label: one.count for one in row.labels})
        return [
            (
                self.history.names.get(digest, short(digest)),
                found.total(),
                [(label, count / found.total()) for label, count in found.most_common(_SHOWN_LABELS)],
            )
            for digest, found in counts.items()
            if found.total()
        ]

    @property
    def traffic(self) -> list[TrafficRow]:
        """The revisions of the last hour."""
        active = "" if self.active is None else self.active.digest
        return [
            TrafficRow(
                self.history.names.get(digest, short(digest)),
                digest,
                number,
                round(total.answered),
                round(total.failed),
                None if total.p50 is None else total.p50 * 1000,
                None if total.p99 is None else total.p99 * 1000,
                digest == active,
                Counter(total.reasons).most_common(_SHOWN_LABELS),
                Counter(total.refusals).most_common(_SHOWN_LABELS),
            )
            for number, (digest, total) in enumerate(self.history.totals())
        ]


def list_models(snapshot: Snapshot, histories: Mapping[str, History]) -> list[ModelView]:
    """The models in the configuration's order."""
    health = {one.model: one for one in (snapshot.server.capabilities if snapshot.server is not None else ())}
    return [
        ModelView(
            number,
            model,
            snapshot.control.get(model.name),
            health.get(model.name),
            snapshot.updates.get(model.name),
            snapshot.under_way.get(model.name),
            histories.get(model.name, History()),
        )
        for number, model in enumerate(snapshot.models)
    ]


def list_stages(update: updates_pb2.GetUpdateResponse) -> list[StageRow]:
    """The stages of an update, with the time that each took, from its events."""
    began: dict[str, datetime] = {}
    ended_at: datetime | None = None
    for event in update.events:
        ended_at = event.at.ToDatetime(tzinfo=UTC)
        began.setdefault(stage_name(event.stage), ended_at)
    current = stage_name(update.update.stage)
    is_over = update.update.outcome != updates_pb2.UPDATE_OUTCOME_UNSPECIFIED
    is_good = update.update.outcome == updates_pb2.UPDATE_OUTCOME_COMMITTED
    reached = [stage for stage in STAGES if stage in began]
    rows = []
    for stage in STAGES:
        at = began.get(stage)
        if at is None:
            if stage in _OPTIONAL:
                continue
            state = "done" if is_good else "next"
            rows.append(StageRow(stage, state))
            continue
        later = [began[other] for other in reached if began[other] > at]
        end = min(later, default=ended_at if is_over or current in ("HELD", "ROLLING_BACK") else None)
        is_last = stage == reached[-1]
        state = "now" if is_last and not is_over and current == stage else "done"
        if is_last and ((is_over and not is_good) or current in ("HELD", "ROLLING_BACK")):
            state = "stopped"
        rows.append(StageRow(stage, state, at, None if end is None else (end - at).total_seconds()))
    return rows


def stage_name(stage: "updates_pb2.UpdateStage.ValueType") -> str:
    """A stage without its prefix, for example "GATING"."""
    return _name(updates_pb2.UpdateStage, stage)


def outcome_name(outcome: "updates_pb2.UpdateOutcome.ValueType") -> str:
    """An outcome without its prefix; empty while the update is in progress."""
    return _name(updates_pb2.UpdateOutcome, outcome) if outcome else ""


def role_name(role: "status_pb2.SlotRole.ValueType") -> str:
    """A role without its prefix, for example "ACTIVE"."""
    return _name(status_pb2.SlotRole, role)


def state_name(state: "status_pb2.SlotState.ValueType") -> str:
    """A state of a slot without its prefix, for example "LOADED"."""
    return _name(status_pb2.SlotState, state)


def level_name(level: "status_pb2.HealthLevel.ValueType") -> str:
    """A level of health without its prefix, for example "OK"."""
    return _name(status_pb2.HealthLevel, level)


def _name(enum: object, value: int) -> str:
    """A value that this build does not know is shown as its number."""
    try:
        full: str = enum.Name(value)  # type: ignore[attr-defined]
    except ValueError:
        return str(value)
    prefix = "".join(f"_{part}" if part.isupper() else part for part in enum.DESCRIPTOR.name)  # type: ignore[attr-defined]
    return full.removeprefix(f"{prefix.lstrip('_').upper()}_")


def short(digest: str) -> str:
    """A digest as people compare it."""
    return digest.removeprefix("sha256:")[:_SHOWN_DIGITS]


def seconds(value: Duration | float | None) -> str:
    """A duration with the unit that suits it."""
    if value is None:
        return "–"
    number = value.ToTimedelta().total_seconds() if isinstance(value, Duration) else float(value)
    if number < 1:
        return f"{number * 1000:.0f} ms"
    if number < 2 * _MINUTE:
        return f"{number:.1f} s"
    return f"{number / _MINUTE:.0f} min" if number < 2 * _HOUR else f"{number / _HOUR:.1f} h"


def size(value: float) -> str:
    """Bytes with the unit that suits them."""
    number = float(value)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < _KIB:
            return f"{number:.0f} {unit}"
        number /= _KIB
    return f"{number:.1f} TiB"


def moment(at: Timestamp | datetime | None) -> str:
    """A time in UTC, to the second."""
    if at is None:
        return "–"
    when = at.ToDatetime(tzinfo=UTC) if isinstance(at, Timestamp) else at
    return f"{when:%Y-%m-%d %H:%M:%S}"


def percent(share: float) -> str:
    """A share as a percentage."""
    return f"{share * 100:.1f} %"


def mark_code(sentence: str) -> Markup:
    """A sentence whose parts in backquotes are code; everything is escaped."""
    parts = sentence.split("`")
    if len(parts) % 2 == 0:  # one stands alone
        return escape(sentence)
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if number % 2 else escape(part) for number, part in enumerate(parts)
    )


@dataclass(frozen=True, slots=True)
class LabelMatrix:
    """How often the active model's label became which of the candidate's."""

    columns: list[str]
    rows: list[tuple[str, list[int]]]  # the active model's label, and a count for each column
    changed: int  # counts off the diagonal
    total: int


def build_label_matrix(pairs: Sequence[updates_pb2.LabelPair]) -> LabelMatrix | None:
    """The table of both models' labels; None if there are none. Of many labels, those that changed."""
    counts = {(pair.active, pair.candidate): pair.count for pair in pairs}
    changed = {label for active, candidate in counts if active != candidate for label in (active, candidate)}
    seen = {label for pair in counts for label in pair}
    labels = list(LABELS) if seen <= set(LABELS) else sorted(changed.difference(_NO_KINDS))
    if not counts or not labels:
        return None
    rows = [*labels, *(label for label in _NO_KINDS if any(pair[0] == label for pair in counts))]
    columns = [*labels, *(label for label in _NO_KINDS if any(pair[1] == label for pair in counts))]
    return LabelMatrix(
        columns,
        [(row, [counts.get((row, column), 0) for column in columns]) for row in rows],
        sum(count for (active, candidate), count in counts.items() if active != candidate),
        sum(counts.values()),
    )
