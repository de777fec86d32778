"""The state of the models as messages of the control socket."""

import math

from common.answers import ARROW
from common.clock import Clock
from hotslot.control.v1 import control_pb2
from inference.server.model.comparison import DISTANCE_BOUNDS, Comparison
from inference.server.model.manager import ModelManager
from inference.server.model.pair import Shadow, SlotRecord
from inference.server.model.stats import LabelCounter, RevisionStats


def build_model_state(manager: ModelManager, clock: Clock, *, with_stats: bool = True) -> control_pb2.ModelState:
    """The state of one model: slots, trial, and, `with_stats`, the counters."""
    pair = manager.pair
    state = control_pb2.ModelState(
        model=manager.options.model,
        task=manager.options.task.value,
        generation=pair.generation,
        slots=[_slot(manager, slot) for slot in pair],
        ready=manager.is_ready and not manager.options.drain.is_leaving,
        stats=[build_stats(row) for row in manager.stats.rows()] if with_stats else (),
    )
    active = pair.active_slot
    if active is not None and active.load is not None:
        state.active_load_id = active.load.load_id
    if manager.committed is not None:
        state.committed_digest = manager.committed.bundle_digest
    if pair.trial is not None:
        _fill_trial(state.trial, manager, clock, with_stats=with_stats)
    elif pair.shadow is not None:
        state.shadow.load_id = pair.shadow.load_id
        state.shadow.active = pair.shadow.is_copying(clock.monotonic())
        _fill_comparison(state.shadow.policy, state.shadow.comparison, manager, pair.shadow, with_stats=with_stats)
    if pair.last_trial is not None:
        state.last_trial.bundle_digest = pair.last_trial.bundle_digest
        state.last_trial.outcome = pair.last_trial.outcome.value
        state.last_trial.ended_at.FromDatetime(pair.last_trial.ended_at)
        state.last_trial.reason = pair.last_trial.reason
    row = pair.cpu_fallback
    if row is not None:
        state.cpu_fallback.device, state.cpu_fallback.fallback_device = row.device, row.fallback_device
        state.cpu_fallback.bundle_digest, state.cpu_fallback.reason = row.bundle_digest, row.reason
        state.cpu_fallback.since.FromDatetime(row.since)
    return state


def list_devices(managers: list[ModelManager]) -> list[control_pb2.DeviceState]:
    """The devices that the runners have reported."""
    found: dict[str, str] = {}
    for manager in managers:
        for slot in manager.pair:
            found.update(slot.devices)
    return [control_pb2.DeviceState(device=device, precision=precision) for device, precision in found.items()]


def build_stats(row: RevisionStats) -> control_pb2.RevisionStats:
    """Convert the counters of one revision."""
    message = control_pb2.RevisionStats(
        bundle_digest=row.key.bundle_digest,
        device=row.key.device,
        answered=row.answered,
        failed=row.failed,
        answered_by_previous=row.answered_by_previous,
        restarts=row.deaths,
        void_restarts=row.void_deaths,
        rows=row.rows,
        refused=row.refused,
    )
    message.computed.FromNanoseconds(int(row.computed_seconds * 1e9))
    for position, count in enumerate(row.latency):
        bucket = message.latency.add(count=count)
        if position < len(row.latency_bounds):
            bucket.at_most.FromNanoseconds(round(row.latency_bounds[position] * 1e9))
    message.labels.extend(build_labels(row.labels))
    for at_most, sums in sorted(row.costs.items()):
        message.costs.add(
            at_most_rows=at_most,
            batches=sums.calls,
            row_seconds=sums.row_seconds,
            row_seconds_squared=sums.row_seconds_squared,
        )
    return message


def _slot(manager: ModelManager, slot: SlotRecord) -> control_pb2.SlotStatus:
    status = control_pb2.SlotStatus(
        slot=slot.name,
        state=slot.state.value,
        role=manager.pair.role_of(slot.name).value,
        restarts=slot.deaths,
        last_failure=slot.last_failure,
    )
    process = manager.machine.slots[slot.name].process
    if process is not None:
        status.pid, status.resident_bytes = process.pid, process.resident_bytes
    load = slot.load
    if load is not None:
        status.load_id = load.load_id
        status.bundle_digest, status.source_digest = load.bundle.bundle_digest, load.bundle.source_digest
        status.revision, status.device, status.precision = load.bundle.revision, load.device, load.precision
        status.load_duration.FromNanoseconds(int(load.load_seconds * 1e9))
    return status


def _fill_trial(message: control_pb2.TrialState, manager: ModelManager, clock: Clock, *, with_stats: bool) -> None:
    pair, trial, baseline = manager.pair, manager.pair.trial, manager.stats.baseline
    if trial is None:
        return
    load = pair[trial.slot].load
    if load is not None:
        message.load_id, message.bundle_digest = load.load_id, load.bundle.bundle_digest
    previous = None if pair.previous_of_trial is None else pair.previous_of_trial.load
    if previous is not None:
        message.previous_load_id = previous.load_id
    message.lease_left.FromNanoseconds(int(max(0.0, trial.lease_ends - clock.monotonic()) * 1e9))
    message.started_at.FromDatetime(trial.started_at)
    message.percent = pair.trial_percent
    if pair.shadow is not None:
        _fill_comparison(message.shadow, message.comparison, manager, pair.shadow, with_stats=with_stats)
    message.awaiting_previous = manager.requests.count_awaiting_previous(message.bundle_digest)
    if baseline is not None and with_stats:
        message.baseline.CopyFrom(build_stats(baseline))


def build_labels(labels: LabelCounter) -> list[control_pb2.LabelCount]:
    """Convert counts of labels, the most frequent first."""
    rows = sorted(labels.counts.items(), key=lambda row: -row[1])
    return [control_pb2.LabelCount(label=label, count=count) for label, count in rows]


def _fill_comparison(
    policy: control_pb2.ShadowPolicy,
    message: control_pb2.Comparison,
    manager: ModelManager,
    shadow: Shadow,
    *,
    with_stats: bool,
) -> None:
    policy.share, policy.busy_share = shadow.policy.share, shadow.policy.busy_share
    if math.isfinite(shadow.policy.max_seconds):
        policy.max_duration.FromNanoseconds(int(shadow.policy.max_seconds * 1e9))
    message.started_at.FromDatetime(shadow.started_at)
    comparison, compared = manager.requests.shadows.comparison, manager.pair.compared_slots()
    if compared is not None:
        message.bundle_digest, message.previous_digest = compared[0].digest, compared[1].digest
    if comparison is not None and with_stats:
        message.MergeFrom(build_comparison(comparison))


def build_comparison(comparison: Comparison) -> control_pb2.Comparison:
    """Convert what was found by comparing two slots."""
    message = control_pb2.Comparison(
        bundle_digest=comparison.judged_digest,
        previous_digest=comparison.reference_digest,
        requests_compared=comparison.requests,
        requests_equal=comparison.equal_requests,
        answers_compared=comparison.answers,
        answers_equal=comparison.equal_answers,
        sure_compared=comparison.sure_answers,
        sure_equal=comparison.equal_sure_answers,
        labels=build_labels(comparison.labels),
        previous_labels=build_labels(comparison.reference_labels),
        dropped=comparison.dropped,
        failed=comparison.failed,
        judged_answered=comparison.judged_answered,
        judged_failed=comparison.judged_failed,
    )
    for direction, count in sorted(comparison.directions.counts.items(), key=lambda row: -row[1]):
        before, _, after = direction.partition(ARROW)
        message.directions.add(before=before, after=after, count=count)
    for at_most, count in zip(DISTANCE_BOUNDS, comparison.distances, strict=True):
        message.distances.add(at_most=at_most, count=count)
    for row in comparison.differing:
        message.differing.add(
            request_id=row.request_id,
            item_id=row.item_id,
            position=row.position,
            directions=row.directions,
            distance=row.distance,
        )
    return message
