"""Records in the words of updates.v1. Pure."""

import contextlib
from datetime import datetime

from google.protobuf.timestamp_pb2 import Timestamp

from common.bundle import Provenance
from hotslot.updates.v1 import updates_pb2 as pb
from updater.core.breaker import Breaker, BreakerState
from updater.core.record import CpuFallback, Evidence, HeldFor, ModelRecord, Outcome, Stage, Update
from updater.status import Share, StatusSnapshot
from updater.store.journal import PastEvent, PastUpdate

_NOTHING = Share()


def stage_of(stage: Stage) -> "pb.UpdateStage.ValueType":
    """The stage's number."""
    return pb.UpdateStage.Value(f"UPDATE_STAGE_{stage.value}")


def outcome_of(outcome: Outcome | None) -> "pb.UpdateOutcome.ValueType":
    """The outcome's number; unspecified while an update is under way."""
    return (
        pb.UPDATE_OUTCOME_UNSPECIFIED if outcome is None else pb.UpdateOutcome.Value(f"UPDATE_OUTCOME_{outcome.value}")
    )


def model_updates(snapshot: StatusSnapshot, share: Share = _NOTHING) -> pb.ModelUpdates:
    """A model's updates now; `share` is what has come of its transfer."""
    record = snapshot.record
    message = pb.ModelUpdates(
        model=record.model,
        stage=stage_of(record.stage),
        advice=advice_for(record),
        paused=record.paused,
        breakers=[breaker(row) for row in (record.hub, record.activation, record.device)],
        stage_fraction=share.fraction,
        received_bytes=share.done_bytes,
        expected_bytes=share.total_bytes,
    )
    if record.update is not None:
        message.current.CopyFrom(summary(record.model, record.update, record.stage))
    if record.committed is not None:
        message.committed_revision = record.committed.revision
        message.committed_source_digest = record.committed.source_digest
    watch = record.watch
    times = (
        (message.last_checked_at, watch.last_polled_at),
        (message.listing_changed_at, watch.changed_at),
        (message.newest_listed_at, watch.highest_at),
    )
    for field, at in times:
        if at is not None:
            field.CopyFrom(stamp(at))
    if record.cpu_fallback is not None:
        message.fallback.CopyFrom(fallback(record.cpu_fallback))
    for row in record.quarantine:
        entry = message.quarantine.add(source_digest=row.source_digest, revision=row.revision, reason=row.reason)
        entry.since.CopyFrom(stamp(row.since))
    return message


def fallback(row: CpuFallback) -> pb.CpuFallback:
    """A device that the model is kept off."""
    message = pb.CpuFallback(device=row.device, fallback_device=row.fallback_device, reason=row.reason)
    message.since.CopyFrom(stamp(row.since))
    return message


def breaker(row: Breaker) -> pb.Breaker:
    """A circuit breaker."""
    message = pb.Breaker(name=row.name.value, state=row.state.value, failures=row.failures, openings=row.openings)
    if row.state is not BreakerState.CLOSED:
        message.reason = row.reason
        message.open_left.FromNanoseconds(int(row.left_seconds * 1e9))
    return message


def summary(model: str, update: Update, stage: Stage) -> pb.UpdateSummary:
    """An update that is under way or held."""
    message = pb.UpdateSummary(
        update_id=update.update_id,
        model=model,
        revision=update.revision,
        source_digest=update.source_digest,
        bundle_digest=update.bundle_digest,
        stage=stage_of(stage),
        reason=update.reason,
        message=update.message,
    )
    message.started_at.CopyFrom(stamp(update.started_at))
    return message


def past_summary(past: PastUpdate) -> pb.UpdateSummary:
    """An update of the history."""
    message = summary(past.model, past.update, past.stage)
    message.outcome = outcome_of(past.outcome)
    if past.ended_at is not None:
        message.ended_at.CopyFrom(stamp(past.ended_at))
    return message


def past_event(event: PastEvent) -> pb.UpdateEvent:
    """A line of the audit trail."""
    message = pb.UpdateEvent(stage=stage_of(event.stage), name=event.name, message=event.message)
    message.at.CopyFrom(stamp(event.at))
    return message


def fill_evidence(message: pb.GetUpdateResponse, evidence: Evidence) -> None:
    """Add what was measured, and where the models differ."""
    for row in evidence.measured:
        message.measurements.add(
            name=row.name,
            candidate=row.candidate,
            active=row.active if row.active is not None else 0.0,
            threshold=row.threshold,
            passed=row.passed,
        )
    for item in evidence.differing:
        message.differing.add(
            item=item.item, text=item.text, expected=item.expected, active=item.active, candidate=item.candidate
        )


def fill_provenance(message: pb.Provenance, row: Provenance | None) -> None:
    """Say where a bundle came from; nothing, if it does not say."""
    if row is None:
        return
    message.hub_kind, message.endpoint, message.hub_model = row.place.kind.value, row.place.endpoint, row.place.model
    message.revision = row.revision
    message.checked.extend(row.checked)
    for field, text in ((message.fetched_at, row.fetched_at), (message.verified_at, row.verified_at)):
        with contextlib.suppress(ValueError):  # empty
            field.FromJsonString(text)


def current_of(record: ModelRecord) -> pb.UpdateSummary:
    """The update under way; empty if there is none."""
    return pb.UpdateSummary() if record.update is None else summary(record.model, record.update, record.stage)


def stamp(at: datetime) -> Timestamp:
    """A time as a message."""
    message = Timestamp()
    message.FromDatetime(at)
    return message


_APPROVE = (
    "look at it with `hotslot updates show {id}`, then `hotslot updates approve {digest}` or publish a better one"
)
_HELD = {
    HeldFor.APPROVAL: "policy asks a person: " + _APPROVE,
    HeldFor.AGREEMENT: "it answers otherwise than what serves, which may be better: " + _APPROVE,
    HeldFor.NOISE: "the golden set is too small to tell: add items with expectations, or " + _APPROVE,
    HeldFor.SLOWER: "it needs more device time, or answers later, than what serves, which may be the machine's doing: "
    "`hotslot updates resume` tries it again; or " + _APPROVE,
    HeldFor.NO_GOLDEN: "make a golden set with `hotslot golden record FOLDER` and name it in hotslot.toml, or "
    + _APPROVE,
    HeldFor.GOLDEN_UNUSABLE: "mend the golden set (`hotslot golden show` says what is wrong), or " + _APPROVE,
    HeldFor.DOES_NOT_FIT: "it needs more memory than there is: free some, then `hotslot updates resume` tries it again",
    HeldFor.INCONCLUSIVE: "it came to no verdict: see `hotslot updates show {id}`, then `hotslot updates resume`",
    HeldFor.CONVERSION: "this hotslot cannot convert what is committed; what serves stays: `hotslot updates resume`",
    HeldFor.SERVER_CRASHED: "the server died while it was tried: see its log, then `hotslot updates resume`",
    HeldFor.TAKEN_BACK: "somebody else ended its trial: find out who, then `hotslot updates resume`",
    HeldFor.COMMITTED_BROKEN: "the committed revision no longer loads, the one before serves: publish a new revision",
    HeldFor.STUCK: "it took too many steps: see `hotslot updates show {id}`, then `hotslot updates resume`",
}


def advice_for(record: ModelRecord) -> str:
    """What to do about a model's updates as they stand."""
    update = record.update
    if record.stage is Stage.HELD and update is not None:
        held_for = None if update.ending is None else update.ending.held_for
        text = _HELD.get(held_for or HeldFor.STUCK, _HELD[HeldFor.STUCK])
        return text.format(id=update.update_id, digest=_short(update.source_digest)) + _waiting_return(record)
    if record.paused:
        why = f" ({record.pause_reason})" if record.pause_reason else ""
        return f"updates are on hold{why}: `hotslot updates resume` takes them again" + _waiting_return(record)
    return _about_breakers(record) or record.watch.message


def advice_for_past(past: PastUpdate, record: ModelRecord | None) -> str:
    """What to do about one update."""
    is_current = record is not None and record.update is not None and record.update.update_id == past.update.update_id
    if is_current and record is not None:
        return advice_for(record)
    is_blocked = record is not None and record.is_quarantined(past.update.source_digest)
    if is_blocked:
        digest = _short(past.update.source_digest)
        return f"publish a better revision; if this one is wrongly accused, `hotslot updates unquarantine {digest}`"
    if past.outcome is Outcome.ABANDONED:
        return "nothing: it stopped without blame and is taken up again by itself"
    return ""


def _about_breakers(record: ModelRecord) -> str:
    """The breaker that waits, the one first that a person can do something about."""
    if record.activation.state is BreakerState.OPEN:
        return "too many updates failed: see `hotslot updates history`, then `hotslot updates breaker reset activation`"
    if record.cpu_fallback is not None and record.device.state is BreakerState.OPEN:
        return (
            f"{record.cpu_fallback.device} ran out of memory: free some; it is tried again by itself, or at once with "
            "`hotslot updates breaker reset device`"
        )
    if record.hub.state is BreakerState.OPEN:
        return f"the hub does not answer: {record.hub.reason or 'see the log'}; it is asked again by itself"
    return ""


def _waiting_return(record: ModelRecord) -> str:
    """What else waits for a person: from HELD or on hold no device is tried."""
    return "" if record.cpu_fallback is None else f"; the way back to {record.cpu_fallback.device} waits for this too"


def _short(digest: str) -> str:
    return digest.removeprefix("sha256:")[:12]
