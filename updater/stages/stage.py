"""STAGING: the revision's files are fetched. Pure."""

from dataclasses import replace

from updater.core.breaker import BreakerName, Result, begin, report
from updater.core.effects import Action, Failed, FaultKind, Staged, StageRevision, Wait
from updater.core.ports import Facts
from updater.core.record import ModelRecord, Outcome, Stage
from updater.core.rules import Rules
from updater.stages import transitions
from updater.stages.transitions import Applied
from updater.stages.watch import version_of

# What is wrong on this machine says nothing about the hub.
LOCAL_REASONS = frozenset({"DISK_FULL", "QUOTA_EXCEEDED", "READ_ONLY", "IO_FAILED", "TOO_LARGE"})


def decide(record: ModelRecord, _facts: Facts, rules: Rules) -> Action:
    """Fetch, or wait before the next try."""
    update = record.under_way
    if update.retry_in_seconds > 0:
        return Wait(min(rules.look_seconds, update.retry_in_seconds), "before it is fetched again")
    return StageRevision(
        update_id=update.update_id,
        revision=update.revision,
        source_digest=update.source_digest,
        is_fresh=update.fresh_staging and update.attempts == 0,
        max_bytes=rules.max_staged_bytes,
    )


def staged(record: ModelRecord, result: Staged, facts: Facts, rules: Rules) -> Applied:
    """Its files are here: from now on this is what the version is."""
    update = record.under_way
    if update.source_digest and result.source_digest != update.source_digest:
        return not_ready(record, facts, rules, f"{update.revision} changed while it was fetched")
    if record.is_quarantined(result.source_digest):
        return stop_quarantined(record, facts, rules)
    version = version_of(update.revision, rules.policy)
    if version is not None:
        known = record.known_digests.get(version.text)
        if known not in (None, result.source_digest) and not update.forced:
            return _republished(record, facts, rules)
        record = transitions.learn(record, version.text, result.source_digest)
    approved = update.approved or result.source_digest in record.approved
    record = transitions.enter(record, Stage.VERIFYING, source_digest=result.source_digest, approved=approved)
    return record, (transitions.event(record, facts, "revision_staged", f"{update.revision} is fetched"),)


def failed(record: ModelRecord, fault: Failed, facts: Facts, rules: Rules) -> Applied:
    """It could not be fetched: later, or not at all."""
    why = f"{fault.reason}: {fault.message}"
    if fault.kind is FaultKind.NOT_READY:
        return not_ready(record, facts, rules, why)
    if fault.kind is FaultKind.PERMANENT:  # the listing itself is unusable: unsafe names, caps, no such revision
        if record.under_way.source_digest:
            return transitions.refuse(record, facts, rules, fault.reason, fault.message)
        return abandon(record, facts, rules, why)
    is_line = fault.kind is FaultKind.TRANSIENT and fault.reason not in LOCAL_REASONS
    if is_line and record.hub.may_begin:
        limits = rules.breakers[BreakerName.HUB]
        hub = report(
            begin(record.hub, limits),
            Result.FAILURE,
            limits,
            facts.jitter,
            reason=why,
            at_least=fault.retry_after_seconds,
        )
        record = replace(record, hub=hub)
    limit = rules.max_fetch_attempts if is_line else rules.max_attempts
    if fault.kind is FaultKind.DENIED or record.under_way.attempts + 1 >= limit:
        return abandon(record, facts, rules, why)
    record = transitions.try_again(record, rules)
    pause = max(record.under_way.retry_in_seconds, min(fault.retry_after_seconds, rules.abandoned_seconds))
    return record.with_update(retry_in_seconds=pause), (transitions.event(record, facts, "staging_failed", why),)


def not_ready(record: ModelRecord, facts: Facts, rules: Rules, why: str) -> Applied:
    """The revision is not all there: neither an update nor a failure; it is looked at again at the next poll."""
    record, events = transitions.end(record, facts, Outcome.ABANDONED, "NOT_READY", why)
    pause = max(record.watch.seconds_to_poll, rules.look_seconds)
    return replace(record, watch=replace(record.watch, seconds_to_poll=pause, message=why)), events


def abandon(record: ModelRecord, facts: Facts, rules: Rules, why: str) -> Applied:
    """Stop without blame; the revision is taken up again after a while."""
    record, events = transitions.end(record, facts, Outcome.ABANDONED, why.partition(":")[0], why)
    return replace(record, watch=replace(record.watch, seconds_to_poll=rules.abandoned_seconds, message=why)), events


def stop_quarantined(record: ModelRecord, facts: Facts, _rules: Rules) -> Applied:
    """Its content is in quarantine under another name: nothing new is learnt by refusing it again."""
    message = f"the content of {record.under_way.revision} is in quarantine"
    return transitions.end(record, facts, Outcome.REFUSED, "QUARANTINED", message)


def _republished(record: ModelRecord, facts: Facts, rules: Rules) -> Applied:
    name = record.under_way.revision
    told = transitions.event(record, facts, "revision_republished", f"{name} was published again with other content")
    record, events = abandon(record, facts, rules, f"REPUBLISHED: {name} has other content than before")
    return record, (told, *events)
