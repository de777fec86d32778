"""Restores the committed revision, from any state of the server. Pure.

Used in IDLE and HELD, in the stages before a candidate is loaded, and for rollbacks.
"""

from dataclasses import replace

from updater.core.bridge import Bridge
from updater.core.effects import (
    MEMORY_REASONS,
    ActivateLoad,
    ActivatePrevious,
    CommitLoad,
    Effect,
    EffectFailure,
    FailureKind,
    LoadBundle,
    Result,
    RetireLoad,
    Wait,
    WritePointer,
)
from updater.core.facts import CPU_DEVICE, Facts, PointerState, ServerState, TrialSnapshot
from updater.core.record import (
    Ending,
    EndsIn,
    HeldFor,
    Installed,
    ModelRecord,
    Outcome,
    Stage,
    Trouble,
    Update,
    UpdateKind,
)
from updater.core.rules import Rules
from updater.stages import bridge, transitions
from updater.stages.transitions import Transition, list_spare_slots

BROKEN, BY_HAND = "COMMITTED_BROKEN", "ROLLED_BACK_BY_HAND"  # reasons
POINTER_UNKNOWN = "the committed pointer cannot be read"
_MAX_PAUSE_SECONDS = 60.0
# Beyond the lease of a gap, which each load renews: the server takes back what was unloaded then.
_GAP_PAUSE_SECONDS = 600.0


def restore(record: ModelRecord, facts: Facts, rules: Rules, *, keep: str = "") -> Effect | Wait | None:
    """One step towards this state: the committed revision serves, the pointer names it, and no other load exists.

    Serving is restored before the pointer, and the pointer before a trial is ended.

    Args:
        record: names the committed revision.
        facts: the current state.
        rules: limits.
        keep: bundle digest of a candidate that is not retired.

    Returns:
        None if nothing is left to do.
    """
    server, pointer = facts.server, _repair_pointer(record, facts, rules)
    if server is None or server.is_draining:
        return pointer or Wait(rules.look_seconds, "the server cannot be reached or is about to end")
    step = _serve(record, server, rules)
    if isinstance(step, CommitLoad):  # what the journal has committed: a pointer that is unknown does not stop it
        return pointer if isinstance(pointer, WritePointer) else step
    if isinstance(step, Wait):  # for a load that is not done: the pointer need not wait for it
        return pointer or step
    move = None if record.bridge is None else bridge.find_step(record, server, rules)
    return step or pointer or move or _clear(record, server, keep)


def is_broken(record: ModelRecord, facts: Facts, rules: Rules) -> bool:
    """Whether the committed bundle has failed to load so often that it is given up."""
    trouble = record.trouble
    if trouble is None or record.committed is None:
        return False
    if trouble.failed_loads >= rules.max_failed_loads:
        return True
    server = facts.server
    if server is None or server.incarnation != trouble.server_incarnation or _is_answering(record, server):
        return False
    return sum(slot.restarts for slot in server.slots) - trouble.restarts >= rules.max_restarts


def can_go_back(record: ModelRecord, facts: Facts) -> bool:
    """Whether the previous committed bundle still exists, so that it can be restored."""
    previous = record.previous
    return previous is not None and previous.bundle_digest in facts.sealed


def note_draining(record: ModelRecord, facts: Facts) -> ModelRecord:
    """Record whether the server drains during the trial; an orderly stop of the updater alone is cleared."""
    if record.stage not in (Stage.ACTIVATING, Stage.OBSERVING, Stage.COMMITTING) or facts.server is None:
        return record
    if facts.server.incarnation != record.under_way.server_incarnation:
        return record
    return record.with_update(orderly=facts.server.is_draining)


def note_trouble(record: ModelRecord, facts: Facts) -> ModelRecord:
    """Record since when the committed revision does not answer, or that it answers."""
    server = facts.server
    if record.committed is None or server is None:
        return record
    active = server.active
    if _is_answering(record, server):
        return record if record.trouble is None else replace(record, trouble=None)
    if active is None or server.trial is not None or active.bundle_digest != record.committed.bundle_digest:
        return record
    if record.trouble is None or record.trouble.server_incarnation != server.incarnation:
        failed_loads = 0 if record.trouble is None else record.trouble.failed_loads
        restarts = sum(slot.restarts for slot in server.slots)
        return replace(record, trouble=Trouble(server.incarnation, restarts, failed_loads))
    return record


def apply_result(record: ModelRecord, effect: Effect, result: Result, facts: Facts, rules: Rules) -> Transition:
    """Apply the result of a step of `restore`; the next facts show which steps remain."""
    if isinstance(result, EffectFailure):
        if bridge.is_move(record, effect):
            is_serving = facts.server is None or bridge.is_serving(record, facts.server)
            if is_serving or result.kind is FailureKind.TRANSIENT:
                return bridge.apply_move_failed(record, result, facts, rules)
            record = replace(record, bridge=None)  # it answers nowhere: its device is tried again too
        if isinstance(effect, LoadBundle):
            if not effect.device and result.kind is not FailureKind.TRANSIENT and result.reason in MEMORY_REASONS:
                record = bridge.make_room(record, facts, rules)
            return _apply_load_failed(record, result, facts, rules)
        message = f"{type(effect).__name__}: {result.reason}: {result.message}"
        return transitions.with_event(record, facts, "step_failed", message)
    way = record.bridge
    if isinstance(effect, RetireLoad) and effect.gap_lease_seconds and way is not None and way.answers is None:
        return Transition(replace(record, bridge=replace(way, gaps=way.gaps + 1)))
    if isinstance(effect, WritePointer):
        what = "nothing" if effect.installed is None else effect.installed.revision
        return transitions.with_event(record, facts, "pointer_repaired", f"the committed pointer says {what} again")
    return Transition(record)


def revert(record: ModelRecord, facts: Facts) -> Transition:
    """Restore the revision committed before the current one, which no longer loads, then hold.

    `min_version` stays.
    """
    broken = record.committed
    if broken is None:
        raise RuntimeError("nothing is committed")
    record, events = _abandon_current(record, facts, BROKEN)
    message = f"{broken.revision} no longer loads here"
    update = _build_rollback(broken, facts, UpdateKind.REVERT, Ending(EndsIn.HELD, held_for=HeldFor.COMMITTED_BROKEN))
    previous = record.previous
    if previous is not None and can_go_back(record, facts):
        message += f"; {previous.revision} is restored"
        record = transitions.block(record, broken.bundle_digest)
        record = transitions.remember_replaced(record, facts, broken, previous)
        record = bridge.return_later(replace(record, committed=previous, previous=None, trouble=None), facts)
    update = replace(update, reason=BROKEN, message=message)
    record, started = transitions.start(record, update, Stage.ROLLING_BACK, facts)
    return Transition(record, (*events, *started))


def roll_back_committed(record: ModelRecord, facts: Facts) -> Transition:
    """Roll back the committed revision at an operator's command; `can_go_back` must hold."""
    bad, good = record.committed, record.previous
    if bad is None or good is None:
        raise RuntimeError("there is nothing to roll back to")
    record, events = _abandon_current(record, facts, BY_HAND)
    if good.source_digest == bad.source_digest:  # an older conversion of the same source
        record = transitions.block(record, bad.bundle_digest)
    else:
        record = transitions.quarantine(record, facts, bad.source_digest, bad.revision, BY_HAND)
    update = _build_rollback(bad, facts, UpdateKind.ROLLBACK, Ending(EndsIn.IDLE, Outcome.ROLLED_BACK))
    message = f"an operator took {bad.revision} back; {good.revision} serves"
    update = replace(update, reason=BY_HAND, message=message)
    record = transitions.remember_replaced(record, facts, bad, good)
    record = replace(record, committed=good, previous=None, trouble=None, warm_seconds_left=0.0)
    record = bridge.return_later(record, facts)
    record, started = transitions.start(record, update, Stage.ROLLING_BACK, facts)
    return Transition(record, (*events, *started))


def _abandon_current(record: ModelRecord, facts: Facts, reason: str) -> Transition:
    if record.update is None:
        return Transition(record)
    return transitions.end(record, facts, Outcome.ABANDONED, reason)


def _apply_load_failed(record: ModelRecord, failed: EffectFailure, facts: Facts, rules: Rules) -> Transition:
    if failed.kind is FailureKind.TRANSIENT:
        return Transition(record)
    incarnation = "" if facts.server is None else facts.server.incarnation
    trouble = record.trouble or Trouble(incarnation, 0)
    failed_loads = trouble.failed_loads + 1
    pause = min(_MAX_PAUSE_SECONDS, rules.retry_seconds * 2.0 ** min(failed_loads - 1, 8))
    way, is_empty = record.bridge, facts.server is not None and facts.server.active is None
    if way is not None and way.is_gap and way.answers is None and is_empty:  # what was taken back was unloaded for it
        pause = rules.observe.trial_lease_seconds + _GAP_PAUSE_SECONDS
    record = replace(record, trouble=replace(trouble, failed_loads=failed_loads, retry_in_seconds=pause))
    return transitions.with_event(record, facts, "committed_load_failed", f"{failed.reason}: {failed.message}")


def _serve(record: ModelRecord, server: ServerState, rules: Rules) -> Effect | Wait | None:
    """One step towards serving the committed revision; None if it is active."""
    target = "" if record.committed is None else record.committed.bundle_digest
    name = record.update.update_id if record.update is not None else "reconcile"
    trial, active = server.trial, server.active
    is_failback = record.bridge is None and trial is not None and _is_change_of_device(server, trial)
    if trial is not None and (trial.bundle_digest != target or is_failback):
        if trial.previous_load_id:
            return ActivatePrevious(trial.previous_load_id, name, server.generation)
        return RetireLoad(trial.load_id, name, server.generation)
    if trial is not None:
        if server.loaded(trial.load_id) is None:
            return Wait(rules.look_seconds, "the committed revision is being loaded again")
        return CommitLoad(trial.load_id, name, server.generation)
    is_gap = record.bridge is not None and bridge.is_gap_wanted(record)
    if is_gap or not target or (active is not None and active.bundle_digest == target):
        return None
    return _load(record, server, target, name, rules)


def _load(record: ModelRecord, server: ServerState, target: str, name: str, rules: Rules) -> Effect | Wait:
    if record.trouble is not None and record.trouble.retry_in_seconds > 0:
        return Wait(min(rules.look_seconds, record.trouble.retry_in_seconds), "before it is loaded again")
    holder = server.holding(target)
    if holder is not None and holder.is_loaded:
        return ActivateLoad(holder.load_id, rules.observe.trial_lease_seconds, name, server.generation)
    if holder is None:
        rows = list_spare_slots(server)
        has_no_room = record.bridge is not None and record.bridge.is_gap
        if has_no_room and bridge.is_leaving(server):
            return Wait(rules.look_seconds, "a process is still being retired")
        if rows and (has_no_room or len(server.occupied) >= len(server.slots)):
            return RetireLoad(rows[0].load_id, name, server.generation)
        if record.bridge is not None and bridge.is_taken(record.bridge, server, target):
            return _load_in_its_place(record.bridge, server, target, name, rules)
    return LoadBundle(target, "", name, server.generation)


def _load_in_its_place(way: Bridge, server: ServerState, target: str, name: str, rules: Rules) -> Effect:
    """One step to the load of the committed revision, while one that was taken back holds its device.

    It is loaded on the CPU, and returns to the device later; or the other one is unloaded before, by policy: once,
    after the load beside it has failed. If it cannot be loaded alone either, what answers badly is better than nothing.
    """
    if not way.is_gap:
        return LoadBundle(target, CPU_DEVICE, name, server.generation)
    if way.gaps:
        return LoadBundle(target, "", name, server.generation)
    lease = rules.observe.trial_lease_seconds
    return RetireLoad(server.active_load_id, name, server.generation, gap_lease_seconds=lease)


def _repair_pointer(record: ModelRecord, facts: Facts, rules: Rules) -> WritePointer | Wait | None:
    committed = record.committed
    if facts.pointer_state is PointerState.UNKNOWN:
        return Wait(rules.look_seconds, POINTER_UNKNOWN)
    if facts.pointer_state is PointerState.MALFORMED:  # without a row of ours, it is a person's to repair
        return None if committed is None else WritePointer(committed)
    if committed is None:  # another's is adopted from IDLE; our own, of an update that is rolled back, is removed
        ours = record.update is not None and facts.pointer == record.update.installed
        return WritePointer(None) if ours else None
    return WritePointer(committed) if facts.pointer != committed else None


def _clear(record: ModelRecord, server: ServerState, keep: str) -> RetireLoad | None:
    name = record.update.update_id if record.update is not None else "reconcile"
    for slot in list_spare_slots(server):
        if slot.bundle_digest == keep or (slot.is_previous and record.warm_seconds_left > 0):
            continue
        return RetireLoad(slot.load_id, name, server.generation)
    return None


def _is_change_of_device(server: ServerState, trial: TrialSnapshot) -> bool:
    """Whether the previous slot holds the same bundle, so that the trial is of a failback."""
    previous = next((slot for slot in server.occupied if slot.load_id == trial.previous_load_id), None)
    return previous is not None and previous.bundle_digest == trial.bundle_digest


def _is_answering(record: ModelRecord, server: ServerState) -> bool:
    active = server.active
    committed = record.committed
    is_it = active is not None and committed is not None and active.bundle_digest == committed.bundle_digest
    return is_it and active is not None and active.is_loaded


def _build_rollback(bad: Installed, facts: Facts, kind: UpdateKind, ending: Ending) -> Update:
    return Update(
        update_id=facts.fresh_id,
        kind=kind,
        revision=bad.revision,
        started_at=facts.now,
        source_digest=bad.source_digest,
        commit_id=bad.commit_id,
        bundle_digest=bad.bundle_digest,
        ending=ending,
    )
