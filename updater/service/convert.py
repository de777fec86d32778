"""Records in the words of updates.v1. Pure."""

import contextlib
from datetime import datetime

from google.protobuf.timestamp_pb2 import Timestamp

from common.bundle import Provenance
from hotslot.updates.v1 import updates_pb2 as pb
from updater.core.breaker import Breaker, BreakerState
from updater.core.record import CpuFallback, Evidence, ModelRecord, Outcome, Stage, Update
from updater.service.advice import advice_for
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
