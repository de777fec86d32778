"""The way back to a device that ran out of memory. Pure.

The server leaves such a device by itself; coming back is a command, so it is the updater's. The `device`
breaker opens once for each fallback. When its open time is over, and nothing else is under way, an
update of the kind RETURN loads the committed bundle on that device in the free slot, proves it against
the answers of the slot that serves, tries it on callers with that slot still warm, and commits it. Its
failure blames nobody but the device: the breaker opens again, for longer.

A release that appears meanwhile waits: a return ends by itself within the breaker's probe time, and then
the release is proven on the device that it will serve from. A person who names a revision need not wait.
"""

from dataclasses import replace

from updater.core.breaker import BreakerName, BreakerState, Result, begin_probe, cut_off, report
from updater.core.effects import Action, CommitLoad, Enter, Wait
from updater.core.golden import GateAnswers
from updater.core.ports import Facts
from updater.core.record import Ending, EndsIn, Event, ModelRecord, Outcome, Stage, Update, UpdateKind
from updater.core.rules import Rules
from updater.stages import observe, transitions
from updater.stages.transitions import Applied

INTERRUPTIONS = frozenset({"PROBE_CUT_OFF", "NO_FALLBACK"})
_TRIED = frozenset({Stage.GATING, Stage.ACTIVATING, Stage.OBSERVING})


def is_under_way(record: ModelRecord) -> bool:
    """Whether the update under way is a return."""
    return record.update is not None and record.update.kind is UpdateKind.FAILBACK


def is_due(record: ModelRecord, facts: Facts) -> bool:
    """Whether the way back may be tried now: from IDLE, where everything else is in order."""
    server, fallback, committed = facts.server, record.cpu_fallback, record.committed
    if server is None or fallback is None or committed is None or record.paused:
        return False
    if server.cpu_fallback != fallback or not record.device.may_begin or server.is_draining or server.trial is not None:
        return False
    active = server.loaded(server.active_load_id)
    is_kept_off = active is not None and active.device != fallback.device
    return is_kept_off and active is not None and active.bundle_digest == committed.bundle_digest


def started(record: ModelRecord, facts: Facts, rules: Rules) -> Applied:
    """The breaker's one probe goes out."""
    committed, fallback = record.committed, record.cpu_fallback
    if committed is None or fallback is None:
        raise RuntimeError("there is nothing to go back to")
    record = replace(record, device=begin_probe(record.device, rules.breakers[BreakerName.DEVICE]))
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


def interrupted(record: ModelRecord, facts: Facts) -> Enter | None:
    """Whether a return has lost its reason; from COMMITTING on it is brought to its end."""
    if not is_under_way(record) or record.stage not in _TRIED:
        return None
    if record.device.state is not BreakerState.HALF_OPEN:
        return Enter(Stage.ROLLING_BACK, "PROBE_CUT_OFF", record.device.reason or "its time was over")
    if facts.server is not None and facts.server.cpu_fallback is None:
        return Enter(Stage.ROLLING_BACK, "NO_FALLBACK", "the model is not kept off a device any more")
    return None


def broken_off(record: ModelRecord, facts: Facts, reason: str, message: str) -> Applied:
    """It is given up without a verdict: the slot that answers now goes on doing so."""
    return transitions.roll_back(record, facts, Ending(EndsIn.IDLE, Outcome.ABANDONED), reason, message)


def self_test(answers: GateAnswers) -> GateAnswers:
    """What the gate holds against a return: it answers, and as the slot that serves does.

    What is expected, and what it costs, was judged when the bundle was committed; device seconds of two
    devices cannot be compared.
    """
    asked = tuple(replace(row, expected="") for row in answers.asked)
    return replace(answers, asked=asked, min_accuracy=0.0, candidate_seconds=0.0, active_seconds=0.0)


def decide_commit(record: ModelRecord, facts: Facts, rules: Rules) -> Action:
    """Tell the server; the pointer says the same as before."""
    update, server = record.under_way, facts.server
    if server is None:
        return Wait(rules.look_seconds, "the server cannot be reached")
    if server.trial is not None and transitions.is_on_trial(update, server):
        return CommitLoad(server.trial.load_id, update.update_id, server.generation)
    gone = observe.is_gone(record, facts)
    if gone == "COMMITTED" or server.cpu_fallback is None:
        return Enter(Stage.IDLE, "COMMITTED", "the server has left its fallback")
    return Enter(Stage.ROLLING_BACK, gone or "TRIAL_UNKNOWN", "the trial ended before it was committed")


def committed(record: ModelRecord, facts: Facts, rules: Rules) -> Applied:
    """It answers from the device again: the breaker closes, and nothing else changes."""
    update, server = record.under_way, facts.server
    is_told = server is not None and transitions.is_on_trial(update, server)
    if is_told or (server is not None and server.cpu_fallback is None):  # not if it has fallen back again since
        limits = rules.breakers[BreakerName.DEVICE]
        record = replace(record, device=report(record.device, Result.SUCCESS, limits, facts.jitter))
    record = replace(record, warm_seconds_left=rules.observe.keep_warm_seconds, trouble=None)
    message = f"{update.revision} answers from {update.device} again"
    return transitions.end(record, facts, Outcome.COMMITTED, update.reason, message)


def noted(record: ModelRecord, facts: Facts, rules: Rules) -> Applied:
    """Follow the server's fallback: each opens the breaker once, whenever it is first seen."""
    server, limits = facts.server, rules.breakers[BreakerName.DEVICE]
    if server is None:
        return record, ()
    fallback = server.cpu_fallback
    if fallback is None:
        before = record.cpu_fallback
        record = replace(record, cpu_fallback=None)
        if record.device.state is not BreakerState.OPEN or is_under_way(record):
            return record, ()
        record = replace(record, device=report(record.device, Result.SUCCESS, limits, facts.jitter))
        off = "a device" if before is None else before.device
        return record, (transitions.event(record, facts, "breaker_closed", f"device: the model is not kept off {off}"),)
    if fallback == record.cpu_fallback:
        return record, ()
    reason = f"{fallback.device} ran out of memory ({fallback.reason}): {fallback.fallback_device} answers"
    device = report(record.device, Result.FAILURE, limits, facts.jitter, reason=reason)
    record = replace(record, cpu_fallback=fallback, device=device)
    return record, (_opened(record, facts),)


def settled(record: ModelRecord, events: tuple[Event, ...], facts: Facts, rules: Rules) -> Applied:
    """Tell the breaker how its probe ended, in the step in which that is decided.

    A return that was taken back for what the device did has failed; one that was broken off says nothing,
    and the next waits as long as this one did.
    """
    if record.device.state is not BreakerState.HALF_OPEN:
        return record, events
    update, limits = record.update, rules.breakers[BreakerName.DEVICE]
    if is_under_way(record) and record.stage is not Stage.ROLLING_BACK:
        return record, events
    ending = None if update is None or not is_under_way(record) else update.ending
    if update is not None and ending is not None and ending.blamed:
        reason = f"the way back to {update.device} failed: {update.message}"
        device = report(record.device, Result.FAILURE, limits, facts.jitter, reason=reason)
    else:
        device = cut_off(record.device, limits, facts.jitter, reason="the way back was broken off")
    record = replace(record, device=device)
    return record, (*events, _opened(record, facts))


def _opened(record: ModelRecord, facts: Facts) -> Event:
    device = record.device
    return transitions.event(
        record, facts, "breaker_opened", f"device: {device.reason}; tried again in {device.left_seconds:.0f} s"
    )
