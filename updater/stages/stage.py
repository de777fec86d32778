"""STAGING: the revision's files are fetched. Pure."""

from dataclasses import replace

from updater.core import breaker
from updater.core.breaker import BreakerName
from updater.core.checks import MISMATCH_REASONS
from updater.core.effects import DISK_REASONS, Effect, EffectFailure, FailureKind, Result, Staged, StageRevision, Wait
from updater.core.facts import Facts
from updater.core.known import ComputedDigest
from updater.core.record import Evidence, HeldFor, ModelRecord, Outcome, Stage, UpdateKind
from updater.core.rules import Rules
from updater.core.versions import hub_name, name_content, parse_version
from updater.stages import reconcile, transitions, watch
from updater.stages.transitions import Transition

# Errors of this machine, which are not failures of the hub.
LOCAL_REASONS = frozenset({"DISK_FULL", "QUOTA_EXCEEDED", "READ_ONLY", "IO_FAILED", "TOO_LARGE"})


def decide(record: ModelRecord, _facts: Facts, rules: Rules) -> Effect | Wait:
    """Fetch the files, or wait before the next attempt; meanwhile a newer revision may be published."""
    update = record.under_way
    if update.retry_in_seconds > 0:
        poll = watch.poll_if_due(record, rules) if update.mismatches else None
        return poll or Wait(min(rules.look_seconds, update.retry_in_seconds), "before it is fetched again")
    return StageRevision(
        update_id=update.update_id,
        revision=update.revision,
        source_digest=update.source_digest,
        is_fresh=update.fresh_staging and update.attempts == 0,
        max_bytes=rules.max_staged_bytes,
    )


def apply_result(record: ModelRecord, effect: Effect, result: Result, facts: Facts, rules: Rules) -> Transition:
    """Apply the result of a download."""
    match result:
        case Staged():
            return _apply_staged(record, result, facts, rules)
        case EffectFailure() if isinstance(effect, StageRevision):
            return _apply_failed(record, result, facts, rules)
        case _:
            return reconcile.apply_result(record, effect, result, facts, rules)


def apply_deadline(record: ModelRecord, facts: Facts, rules: Rules, message: str) -> Transition:
    """Give up an update whose STAGING or VERIFYING took too long; hold it if its bytes were not the listed ones."""
    if record.under_way.mismatches:
        return transitions.hold(record, facts, HeldFor.MISMATCH, message)
    if record.stage is Stage.VERIFYING and record.under_way.kind is not UpdateKind.RECONVERT:
        return transitions.hold(record, facts, HeldFor.INCONCLUSIVE, message)  # or all is downloaded again, each time
    return give_up(record, facts, rules, f"DEADLINE: {message}")


def give_up(record: ModelRecord, facts: Facts, rules: Rules, why: str) -> Transition:
    """Abandon the update; the revision is tried again after `abandoned_seconds`."""
    record, events = transitions.abandon(record, facts, why.partition(":")[0], why)
    watch = replace(record.watch, seconds_to_poll=rules.abandoned_seconds, message=why)
    return Transition(replace(record, watch=watch), events)


def give_up_until_next_poll(record: ModelRecord, facts: Facts, rules: Rules, why: str) -> Transition:
    """Abandon the update until the next poll, since the revision is not complete on the hub; no failure is counted."""
    record, events = transitions.abandon(record, facts, "NOT_READY", why)
    pause = max(record.watch.seconds_to_poll, rules.look_seconds)
    return Transition(replace(record, watch=replace(record.watch, seconds_to_poll=pause, message=why)), events)


def apply_mismatch(record: ModelRecord, facts: Facts, rules: Rules, why: str) -> Transition:
    """Fetch the files again after a growing pause; hold the update when all pauses have passed."""
    update = record.under_way
    if update.mismatches >= len(rules.mismatch_pauses):
        message = f"the hub does not send what it lists, after {update.mismatches + 1} attempts: {why}"
        return transitions.hold(record, facts, HeldFor.MISMATCH, message)
    pause = rules.mismatch_pauses[update.mismatches]
    changes = {"mismatches": update.mismatches + 1, "retry_in_seconds": pause}
    if record.stage is Stage.STAGING:
        record = record.with_update(attempts=0, fresh_staging=False, **changes)
    else:
        record = transitions.enter(record, Stage.STAGING, fresh_staging=True, **changes)
    return transitions.with_event(record, facts, "content_mismatched", f"{why}; it is fetched again in {pause:.0f} s")


def hold_for_space(record: ModelRecord, failed: EffectFailure, facts: Facts) -> Transition:
    """Hold an update for the lack of disk space; what was fetched is kept."""
    needed = 0 if failed.shortage is None else failed.shortage.needed_bytes
    return transitions.hold(record.with_update(needed_bytes=needed), facts, HeldFor.DISK_FULL, failed.message)


def is_held_for_space(record: ModelRecord) -> bool:
    """Whether an update is held for the lack of disk space."""
    update = record.update if record.stage is Stage.HELD else None
    return update is not None and update.ending is not None and update.ending.held_for is HeldFor.DISK_FULL


def continue_if_space(record: ModelRecord, facts: Facts) -> Transition | None:
    """Continue an update that is held for the lack of disk space, if there is enough now."""
    if not is_held_for_space(record) or record.paused or record.under_way.retry_in_seconds > 0:
        return None
    needed = record.under_way.needed_bytes
    return continue_held(record, facts) if not needed or facts.free_bytes >= needed else None


def continue_held(record: ModelRecord, facts: Facts) -> Transition:
    """Continue an update that is held for the lack of disk space: complete files are only verified again."""
    stage = Stage.VERIFYING if record.under_way.kind is UpdateKind.RECONVERT else Stage.STAGING
    record = transitions.enter(record, stage, ending=None, reason="", message="", steps=1)
    message = f"{record.under_way.revision} goes on; what was fetched is kept"
    return transitions.with_event(record, facts, "update_started_again", message)


def refuse_quarantined(record: ModelRecord, facts: Facts) -> Transition:
    """Abandon an update whose content is already in quarantine under another name; no failure is counted."""
    message = f"the content of {record.under_way.revision} is in quarantine"
    return transitions.end(record, facts, Outcome.REFUSED, "QUARANTINED", message)


def _apply_staged(record: ModelRecord, result: Staged, facts: Facts, rules: Rules) -> Transition:
    """Record the staged digest as the content of the version, then verify it."""
    update = record.under_way
    if update.source_digest and result.source_digest != update.source_digest:
        return give_up_until_next_poll(record, facts, rules, f"{update.revision} changed while it was fetched")
    if update.listing:
        record = _note_computed(record, result)
        update = record.under_way
    if record.is_quarantined(result.source_digest):
        return refuse_quarantined(record, facts)
    if update.listing and record.committed is not None and record.committed.source_digest == result.source_digest:
        message = f"{update.revision} has the committed content"
        return transitions.end(record, facts, Outcome.ABANDONED, "COMMITTED", message)
    if update.listing and rules.policy.branch and not update.forced and record.is_replaced(result.source_digest):
        message = f"the content of {update.revision} was committed and replaced"
        return transitions.hold(record, facts, HeldFor.SEEN_BEFORE, message)
    version = parse_version(update.revision, rules.policy)
    if version is not None:
        known = record.known_digests.get(version.text)
        if known not in (None, result.source_digest) and not update.forced:
            return _apply_republished(record, facts, rules)
        record = transitions.remember_version(record, version.text, result.source_digest)
    approved = update.approved or result.source_digest in record.approved
    record = transitions.enter(record, Stage.VERIFYING, source_digest=result.source_digest, approved=approved)
    how = "; the hub lists not all of its hashes, so they were computed" if update.listing else ""
    evidence = Evidence(notes=result.notes) if result.notes else None
    message = f"{update.revision} is fetched{how}"
    return transitions.with_event(record, facts, "revision_staged", message, evidence=evidence)


def _note_computed(record: ModelRecord, result: Staged) -> ModelRecord:
    """Record the digest of a content whose listing has none; a branch is named by it."""
    update = record.under_way
    name = hub_name(update.revision)
    record = transitions.remember_computed(record, ComputedDigest(name, update.listing, result.source_digest))
    revision = update.revision if name == update.revision else name_content(name, result.source_digest)
    return record.with_update(revision=revision, source_digest=result.source_digest)


def _apply_failed(record: ModelRecord, failed: EffectFailure, facts: Facts, rules: Rules) -> Transition:
    why = f"{failed.reason}: {failed.message}"
    if failed.kind is FailureKind.NOT_READY:
        return give_up_until_next_poll(record, facts, rules, why)
    if failed.reason in MISMATCH_REASONS and record.under_way.kind is not UpdateKind.RECONVERT:
        return apply_mismatch(record, facts, rules, why)
    if failed.kind is FailureKind.PERMANENT:  # the listing itself is unusable: unsafe names, limits, no such revision
        if record.under_way.source_digest:
            return transitions.refuse(record, facts, rules, failed.reason, failed.message)
        return give_up(record, facts, rules, why)
    is_hub = failed.kind is FailureKind.TRANSIENT and failed.reason not in LOCAL_REASONS
    if is_hub and record.hub.may_begin:
        limits = rules.breakers[BreakerName.HUB]
        hub = breaker.report(
            breaker.begin(record.hub, limits),
            breaker.WorkResult.FAILURE,
            limits,
            facts.jitter,
            reason=why,
            at_least=failed.retry_after_seconds,
        )
        record = replace(record, hub=hub)
    most = rules.max_fetch_attempts if is_hub else rules.max_attempts
    if failed.kind is FailureKind.DENIED or record.under_way.attempts + 1 >= most:
        is_for_space = failed.reason in DISK_REASONS
        return hold_for_space(record, failed, facts) if is_for_space else give_up(record, facts, rules, why)
    record = transitions.retry_later(record, rules)
    pause = max(record.under_way.retry_in_seconds, min(failed.retry_after_seconds, rules.abandoned_seconds))
    return transitions.with_event(record.with_update(retry_in_seconds=pause), facts, "staging_failed", why)


def _apply_republished(record: ModelRecord, facts: Facts, rules: Rules) -> Transition:
    name = record.under_way.revision
    event = transitions.make_event(
        record, facts, "revision_republished", f"{name} was published again with other content"
    )
    record, events = give_up(record, facts, rules, f"REPUBLISHED: {name} has other content than before")
    return Transition(record, (event, *events))
