"""The whole state of a model as the control socket tells it. Reads, changes nothing."""

from common.clock import Clock
from hotslot.control.v1 import control_pb2
from inference.server.model.manager import ModelManager
from inference.server.model.slot import Slot
from inference.server.model.stats import RevisionStats


def model_state(manager: ModelManager, clock: Clock) -> control_pb2.ModelState:
    """One model, both slots, the trial and the numbers."""
    roles = manager.roles
    state = control_pb2.ModelState(
        model=manager.options.model,
        task=manager.options.task.value,
        generation=roles.generation,
        slots=[_slot(manager, slot) for slot in roles.slots.values()],
        ready=roles.is_ready() and not manager.options.drain.is_leaving,
        stats=[stats_message(row) for row in manager.stats.rows()],
    )
    if roles.active is not None and roles.active.load is not None:
        state.active_load_id = roles.active.load.load_id
    if manager.committed is not None:
        state.committed_digest = manager.committed.bundle_digest
    if roles.trial is not None:
        _fill_trial(state.trial, manager, clock)
    if roles.last_trial is not None:
        state.last_trial.bundle_digest = roles.last_trial.bundle_digest
        state.last_trial.outcome = roles.last_trial.outcome.value
        state.last_trial.ended_at.FromDatetime(roles.last_trial.ended_at)
        state.last_trial.reason = roles.last_trial.reason
    row = manager.cpu_fallback.current
    if row is not None:
        state.fallback.device, state.fallback.fallback_device = row.device, row.fallback_device
        state.fallback.bundle_digest, state.fallback.reason = row.bundle_digest, row.reason
        state.fallback.since.FromDatetime(row.since)
    return state


def devices_of(managers: list[ModelManager]) -> list[control_pb2.DeviceState]:
    """What the runners have said they can compute on."""
    found: dict[str, str] = {}
    for manager in managers:
        for slot in manager.roles.slots.values():
            found.update(slot.devices)
    return [control_pb2.DeviceState(device=device, precision=precision) for device, precision in found.items()]


def stats_message(row: RevisionStats) -> control_pb2.RevisionStats:
    """One revision's numbers as the message of them."""
    message = control_pb2.RevisionStats(
        bundle_digest=row.key.bundle_digest,
        device=row.key.device,
        answered=row.answered,
        failed=row.failed,
        answered_by_previous=row.answered_by_previous,
        restarts=row.restarts,
        void_restarts=row.void_restarts,
        rows=row.rows,
    )
    message.computed.FromNanoseconds(int(row.computed_seconds * 1e9))
    for position, count in enumerate(row.latency):
        bucket = message.latency.add(count=count)
        if position < len(row.latency_bounds):
            bucket.at_most.FromNanoseconds(round(row.latency_bounds[position] * 1e9))
    for at_most, sums in sorted(row.costs.items()):
        message.costs.add(
            at_most_rows=at_most,
            batches=sums.batches,
            row_seconds=sums.row_seconds,
            row_seconds_squared=sums.row_seconds_squared,
        )
    return message


def _slot(manager: ModelManager, slot: Slot) -> control_pb2.SlotStatus:
    status = control_pb2.SlotStatus(
        slot=slot.name,
        state=slot.state.value,
        role=manager.roles.role_of(slot).value,
        restarts=slot.restarts,
        last_failure=slot.last_failure,
    )
    if slot.process is not None:
        status.pid, status.resident_bytes = slot.process.pid, slot.process.resident_bytes
    load = slot.load
    if load is not None:
        status.load_id = load.load_id
        status.bundle_digest, status.source_digest = load.bundle.bundle_digest, load.bundle.source_digest
        status.revision, status.device, status.precision = load.bundle.revision, load.device, load.precision
        status.load_duration.FromNanoseconds(int(load.load_seconds * 1e9))
    return status


def _fill_trial(message: control_pb2.TrialState, manager: ModelManager, clock: Clock) -> None:
    trial = manager.roles.trial
    if trial is None:
        return
    if trial.slot.load is not None:
        message.load_id = trial.slot.load.load_id
        message.bundle_digest = trial.slot.load.bundle.bundle_digest
    if trial.previous is not None and trial.previous.load is not None:
        message.previous_load_id = trial.previous.load.load_id
    message.lease_left.FromNanoseconds(int(max(0.0, trial.lease_ends - clock.monotonic()) * 1e9))
    message.started_at.FromDatetime(trial.started_at)
    if trial.baseline is not None:
        message.baseline.CopyFrom(stats_message(trial.baseline))
