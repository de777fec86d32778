"""Failback: moves the committed revision back to the device that ran out of memory. Pure.

The server falls back to the CPU by itself; the updater commands the return. The `device` breaker opens once for each
fallback. When its open time is over and no update is under way, an update of the kind FAILBACK loads the committed
bundle on that device in the free slot, compares its answers with the serving slot's, puts it on trial while that slot
stays warm, and commits it. A failure counts only against the device: the breaker opens again, for longer.

A release that appears meanwhile waits: a failback ends within the breaker's probe time, and the release is then tested
on the device that it will serve from. A revision that an operator requests does not wait.
"""

from dataclasses import replace

from updater.core import breaker
from updater.core.breaker import BreakerName, BreakerState
from updater.core.effects import CommitLoad, Effect, Wait
from updater.core.facts import TRIAL_COMMITTED, Facts
from updater.core.golden import GateAnswers
from updater.core.record import Event, ModelRecord, Outcome, Stage, Update, UpdateKind
from updater.core.rules import Rules
from updater.stages import observe, transitions
from updater.stages.transitions import Transition

_TRIED = frozenset({Stage.GATING, Stage.ACTIVATING, Stage.OBSERVING})
_ON_TRIAL = frozenset({Stage.ACTIVATING, Stage.OBSERVING, Stage.COMMITTING})


def is_under_way(record: ModelRecord) -> bool:
    """Whether the update under way is a failback."""
    return record.update is not None and record.update.kind is UpdateKind.FAILBACK


def start_if_due(record: ModelRecord, facts: Facts, rules: Rules) -> Transition | None:
    """Start a failback, as the device breaker's one probe, if it may be tried now; only from IDLE."""
    if not is_due(record, facts):
        return None
    committed, fallback = record.committed, record.cpu_fallback
    if committed is None or fallback is None:
        raise RuntimeError("there is no device to return to")
    record = replace(record, device=breaker.begin_probe(record.device, rules.breakers[BreakerName.DEVICE]))
    update = Update(
        update_id=facts.fresh_id,
        kind=UpdateKind.FAILBACK,
        revision=committed.revision,
        started_at=facts.now,
        source_digest=committed.source_digest,
        bundle_digest=committed.bundle_digest,
        device=fallback.device,
    )
    return transitions.start(record, update, Stage.GATING, facts)


def is_due(record: ModelRecord, facts: Facts) -> bool:
    """Whether the breaker allows a failback, and the model serves from the fallback device in the record."""
    server, fallback, committed = facts.server, record.cpu_fallback, record.committed
    if server is None or fallback is None or committed is None or record.paused:
        return False
    is_busy = server.is_draining or server.trial is not None
    if server.cpu_fallback != fallback or not record.device.may_begin or is_busy:
        return False
    active = server.loaded(server.active_load_id)
    is_on_fallback = active is not None and active.device != fallback.device
    return is_on_fallback and active is not None and active.bundle_digest == committed.bundle_digest


def interrupt(record: ModelRecord, facts: Facts) -> Transition | None:
    """Abandon a failback that is no longer needed or allowed; from COMMITTING on it is completed."""
    if not is_under_way(record) or record.stage not in _TRIED:
        return None
    if record.device.state is not BreakerState.HALF_OPEN:
        return transitions.abandon(record, facts, "PROBE_CUT_OFF", record.device.reason or "its time was over")
    if facts.server is not None and facts.server.cpu_fallback is None:
        return transitions.abandon(record, facts, "NO_FALLBACK", "the model is not kept off a device any more")
    return None


def self_test(answers: GateAnswers) -> GateAnswers:
    """For a failback the gate checks only that the candidate answers and that its answers match the serving slot's.

    Expected answers and cost were judged when the bundle was committed; costs on two devices cannot be compared.
    """
    questions = tuple(replace(row, expected="") for row in answers.questions)
    return replace(answers, questions=questions, min_accuracy=0.0, candidate_seconds=0.0, active_seconds=0.0)


def decide_commit(record: ModelRecord, facts: Facts, rules: Rules) -> Effect | Wait | Transition:
    """COMMITTING of a failback: the server commits; the pointer does not change."""
    update, server = record.under_way, facts.server
    if server is None:
        return Wait(rules.look_seconds, "the server cannot be reached")
    if server.trial is not None and transitions.is_on_trial(update, server):
        return CommitLoad(server.trial.load_id, update.update_id, server.generation)
    reason = observe.find_end_reason(record, facts)
    if reason == TRIAL_COMMITTED or server.cpu_fallback is None:
        return commit(record, facts, rules)
    return observe.end_trial(record, facts, rules, reason)


def commit(record: ModelRecord, facts: Facts, rules: Rules) -> Transition:
    """End a failback: the model serves from its device again, and the breaker closes."""
    update, server = record.under_way, facts.server
    is_told = server is not None and transitions.is_on_trial(update, server)
    if is_told or (server is not None and server.cpu_fallback is None):  # not if it has fallen back again since
        limits = rules.breakers[BreakerName.DEVICE]
        device = breaker.report(record.device, breaker.WorkResult.SUCCESS, limits, facts.jitter)
        record = replace(record, device=device)
    record = replace(record, warm_seconds_left=rules.observe.keep_warm_seconds, trouble=None)
    message = f"{update.revision} answers from {update.device} again"
    return transitions.end(record, facts, Outcome.COMMITTED, update.reason, message)


def note_fallback(record: ModelRecord, facts: Facts, rules: Rules) -> Transition:
    """Record the server's CPU fallback; each one opens the device breaker once, when it is first reported."""
    server, limits = facts.server, rules.breakers[BreakerName.DEVICE]
    if server is None:
        return Transition(record)
    fallback, before = server.cpu_fallback, record.cpu_fallback
    if fallback is not None and fallback == before:
        return Transition(record)
    record = replace(record, cpu_fallback=fallback)
    if fallback is not None:
        reason = f"{fallback.device} ran out of memory ({fallback.reason}): {fallback.fallback_device} answers"
        device = breaker.report(record.device, breaker.WorkResult.FAILURE, limits, facts.jitter, reason=reason)
        record = replace(record, device=device)
        return Transition(record, (_opened(record, facts),))
    if record.device.state is not BreakerState.OPEN or is_under_way(record):
        return Transition(record)
    record = replace(record, device=breaker.report(record.device, breaker.WorkResult.SUCCESS, limits, facts.jitter))
    what = "a device" if before is None else before.device
    return transitions.with_event(record, facts, "breaker_closed", f"device: the model is not kept off {what}")


def note_reset(record: ModelRecord, facts: Facts, rules: Rules) -> ModelRecord:
    """At a start of the updater: a machine that was restarted during the failback's trial counts against the device.

    Any other start cuts the probe off, so that a device that resets its machine would be tried again as soon as before.
    """
    update = record.update
    if update is None or update.kind is not UpdateKind.FAILBACK or update.orderly or record.stage not in _ON_TRIAL:
        return record
    if record.device.state is not BreakerState.HALF_OPEN or not facts.has_machine_restarted(update.boot_id):
        return record
    limits = rules.breakers[BreakerName.DEVICE]
    reason = f"the machine was restarted during the failback to {update.device}"
    device = breaker.report(record.device, breaker.WorkResult.FAILURE, limits, facts.jitter, reason=reason)
    return replace(record, device=device)


def report_probe(transition: Transition, facts: Facts, rules: Rules) -> Transition:
    """Report the end of a failback to the device breaker, in the transition that decides it.

    A failback that was rolled back because of the device counts as a failure. An interrupted one is neutral; the next
    one waits as long as this one did.
    """
    record, events = transition
    if record.device.state is not BreakerState.HALF_OPEN:
        return transition
    if is_under_way(record) and record.stage is not Stage.ROLLING_BACK:
        return transition
    update, limits = record.update, rules.breakers[BreakerName.DEVICE]
    ending = None if update is None or not is_under_way(record) else update.ending
    if update is not None and ending is not None and ending.blamed:
        reason = f"the failback to {update.device} failed: {update.message}"
        device = breaker.report(record.device, breaker.WorkResult.FAILURE, limits, facts.jitter, reason=reason)
    else:
        device = breaker.cut_off(record.device, limits, facts.jitter, reason="the failback was interrupted")
    record = replace(record, device=device)
    return Transition(record, (*events, _opened(record, facts)))


def _opened(record: ModelRecord, facts: Facts) -> Event:
    device = record.device
    message = f"device: {device.reason}; tried again in {device.left_seconds:.0f} s"
    return transitions.make_event(record, facts, "breaker_opened", message)
