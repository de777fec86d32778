"""Converts the server's status to the records that decisions use. Pure."""

from datetime import UTC

from common import reasons
from common.answers import ARROW
from hotslot.control.v1 import control_pb2 as pb
from updater.core.comparison import AnswerComparison, ChangedDirection
from updater.core.counts import CostBucket, Counts
from updater.core.effects import LATE_REASONS
from updater.core.facts import (
    DeviceSnapshot,
    RevisionSnapshot,
    ServerState,
    ShadowSnapshot,
    SlotSnapshot,
    TrialEndSnapshot,
    TrialSnapshot,
)
from updater.core.label_mix import LabelCount
from updater.core.record import CpuFallback


def convert_server_state(response: pb.GetStatusResponse, *, last_ended_orderly: bool) -> ServerState:
    """The state of one model.

    Args:
        response: of GetStatus for one model.
        last_ended_orderly: whether the server process before this one stopped in good order, as far as is known.
    """
    (model,) = response.models
    return ServerState(
        incarnation=response.server_started_at.ToJsonString(),
        generation=model.generation,
        slots=tuple(_convert_slot(slot) for slot in model.slots),
        active_load_id=model.active_load_id,
        is_ready=model.ready,
        is_draining=response.draining,
        last_ended_orderly=last_ended_orderly,
        trial=_convert_trial(model.trial) if model.HasField("trial") else None,
        shadow=_convert_shadow(model),
        last_trial=(
            TrialEndSnapshot(model.last_trial.bundle_digest, model.last_trial.outcome, model.last_trial.reason)
            if model.HasField("last_trial")
            else None
        ),
        stats=tuple(_convert_stats(row) for row in model.stats),
        devices=tuple(DeviceSnapshot(one.device, one.precision) for one in response.devices),
        cpu_fallback=_convert_fallback(model.cpu_fallback) if model.HasField("cpu_fallback") else None,
    )


def _convert_stats(row: pb.RevisionStats) -> RevisionSnapshot:
    labels = tuple(LabelCount(one.label, one.count) for one in row.labels)
    return RevisionSnapshot(row.bundle_digest, row.device, convert_counts(row), labels)


def convert_counts(row: pb.RevisionStats) -> Counts:
    """The counts of one revision; the death of a runner counts as one failure, however many requests it had."""
    by_reason = dict(row.failed)
    singles = sum(count for reason, count in by_reason.items() if reason != reasons.RUNNER_DIED)
    return Counts(
        answered=row.answered,
        failed=singles + row.restarts,
        not_finite=by_reason.get(reasons.NOT_FINITE, 0),
        out_of_memory=by_reason.get(reasons.OUT_OF_MEMORY, 0),
        late=sum(by_reason.get(reason, 0) for reason in LATE_REASONS),
        restarts=row.restarts,
        latency=tuple(bucket.count for bucket in row.latency),
        latency_bounds=tuple(
            bucket.at_most.ToNanoseconds() / 1e9 for bucket in row.latency if bucket.HasField("at_most")
        ),
        costs=tuple(
            CostBucket(row.device, one.at_most_rows, one.batches, one.row_seconds, one.row_seconds_squared)
            for one in row.costs
        ),
    )


def _convert_slot(slot: pb.SlotStatus) -> SlotSnapshot:
    return SlotSnapshot(
        load_id=slot.load_id,
        bundle_digest=slot.bundle_digest,
        device=slot.device,
        precision=slot.precision,
        state=slot.state,
        role=slot.role,
        restarts=slot.restarts,
        resident_bytes=slot.resident_bytes,
        last_failure=slot.last_failure,
    )


def _convert_fallback(row: pb.CpuFallback) -> CpuFallback:
    since = row.since.ToDatetime(tzinfo=UTC)
    return CpuFallback(row.device, row.fallback_device, row.bundle_digest, since, row.reason)


def _convert_trial(trial: pb.TrialState) -> TrialSnapshot:
    return TrialSnapshot(
        load_id=trial.load_id,
        bundle_digest=trial.bundle_digest,
        previous_load_id=trial.previous_load_id,
        lease_left_seconds=trial.lease_left.ToTimedelta().total_seconds(),
        baseline=convert_counts(trial.baseline) if trial.HasField("baseline") else Counts(),
        awaiting_previous=trial.awaiting_previous,
        percent=trial.percent,
    )


def _convert_shadow(model: pb.ModelState) -> ShadowSnapshot | None:
    """The comparison of the trial, or of a candidate; None if nothing is compared."""
    if model.HasField("trial"):
        if not model.trial.HasField("comparison"):
            return None
        return _convert_comparison(model.trial.load_id, model.trial.comparison)
    return _convert_comparison(model.shadow.load_id, model.shadow.comparison) if model.HasField("shadow") else None


def _convert_comparison(load_id: str, row: pb.Comparison) -> ShadowSnapshot:
    comparison = AnswerComparison(
        requests=row.requests_compared,
        compared=row.answers_compared,
        changed=row.answers_compared - row.answers_equal,
        directions=tuple(ChangedDirection(f"{one.before}{ARROW}{one.after}", one.count) for one in row.directions),
        sure_compared=row.sure_compared,
        sure_changed=row.sure_compared - row.sure_equal,
        dropped=sum(row.dropped.values()),
    )
    failed = sum(count for reason, count in row.failed.items() if reason not in LATE_REASONS)
    judged = {reason: count for reason, count in row.judged_failed.items() if reason not in LATE_REASONS}
    counts = convert_counts(pb.RevisionStats(answered=row.judged_answered, failed=judged))
    return ShadowSnapshot(load_id, comparison, failed, counts, row.failed.get(reasons.OUT_OF_MEMORY, 0))
