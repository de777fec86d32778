"""Transitions of a record that several stages share: start, hold, refuse, roll back, end; and its timers. Pure."""

from dataclasses import replace
from typing import NamedTuple

from common import reasons
from updater.core.breaker import Breaker, BreakerName, WorkResult, advance, report, resume, trip
from updater.core.counts import Counts
from updater.core.effects import EffectFailure, Shortage
from updater.core.facts import Facts, ServerState, SlotSnapshot
from updater.core.known import ComputedDigest, KnownVersion, Replaced
from updater.core.record import (
    Ending,
    EndsIn,
    Event,
    Evidence,
    HeldFor,
    Installed,
    ModelRecord,
    Outcome,
    Quarantined,
    Stage,
    Update,
    UpdateKind,
)
from updater.core.rules import Rules

MAX_KNOWN = 500
MAX_QUARANTINE = 500
MAX_REPLACED = 2000
MAX_ALARMS = 100
MAX_COMPUTED = 100
HOUR_SECONDS = 3600.0
_STARTED = {
    UpdateKind.RELEASE: "update to",
    UpdateKind.REQUESTED: "requested update to",
    UpdateKind.RECONVERT: "new conversion of",
    UpdateKind.ROLLBACK: "rollback of",
    UpdateKind.REVERT: "revert of",
    UpdateKind.FAILBACK: "failback of",
}


class Transition(NamedTuple):
    """A record after a step, and the events of that step: written in one transaction."""

    record: ModelRecord
    events: tuple[Event, ...] = ()


def make_event(
    record: ModelRecord,
    facts: Facts,
    name: str,
    message: str = "",
    *,
    outcome: Outcome | None = None,
    evidence: Evidence | None = None,
) -> Event:
    """An event with this record's update."""
    return Event(facts.now, record.model, record.stage, name, message, record.update, outcome, evidence)


def with_event(
    record: ModelRecord, facts: Facts, name: str, message: str = "", *, evidence: Evidence | None = None
) -> Transition:
    """The unchanged record with one event."""
    return Transition(record, (make_event(record, facts, name, message, evidence=evidence),))


def start(record: ModelRecord, update: Update, stage: Stage, facts: Facts) -> Transition:
    """Start an update in its first stage; abandons an update that is HELD."""
    record, events = end(record, facts, Outcome.ABANDONED, "SUPERSEDED") if record.update else Transition(record)
    record = replace(record, stage=stage, update=replace(update, steps=1))
    what = f"{_STARTED[update.kind]} {update.revision}" + (f" to {update.device}" if update.device else "")
    return Transition(record, (*events, make_event(record, facts, "update_started", what)))


def enter(record: ModelRecord, stage: Stage, **changes: object) -> ModelRecord:
    """Move the update under way to another stage; counts as a step."""
    fresh = {"stage_seconds": 0.0, "attempts": 0, "retry_in_seconds": 0.0, "steps": record.under_way.steps + 1}
    return replace(record, stage=stage).with_update(**{**fresh, **changes})


def retry_later(record: ModelRecord, rules: Rules) -> ModelRecord:
    """Count an attempt of the stage's effect, and wait before the next; the wait doubles with every attempt."""
    attempts = record.under_way.attempts + 1
    return record.with_update(attempts=attempts, retry_in_seconds=rules.retry_seconds * 2.0 ** min(attempts - 1, 8))


def end(record: ModelRecord, facts: Facts, outcome: Outcome, reason: str = "", message: str = "") -> Transition:
    """End the update under way. The server must serve the committed revision already, or be restored from IDLE."""
    update = record.under_way
    record = record.with_update(reason=reason or update.reason, message=message or update.message, ending=None)
    ended = replace(record, stage=Stage.IDLE)
    event = make_event(ended, facts, f"update_{outcome.lower()}", record.under_way.message, outcome=outcome)
    return Transition(replace(ended, update=None, has_garbage=True), (event,))


def roll_back(
    record: ModelRecord,
    facts: Facts,
    ending: Ending,
    reason: str,
    message: str,
    *,
    evidence: Evidence | None = None,
    name: str = "rollback_began",
) -> Transition:
    """Begin to restore the committed revision; `ending` records how the update ends after that.

    A failback is not retried: the device breaker decides about the next attempt.
    """
    if record.under_way.kind is UpdateKind.FAILBACK and ending.ends_in is not EndsIn.IDLE:
        ending = Ending(EndsIn.IDLE, Outcome.ABANDONED)
    record = enter(record, Stage.ROLLING_BACK, ending=ending, reason=reason, message=message)
    return with_event(record, facts, name, message, evidence=evidence)


def retry(record: ModelRecord, facts: Facts, reason: str, message: str) -> Transition:
    """Roll back without counting a failure; the sealed bundle is then gated again, within the limit of steps."""
    return roll_back(record, facts, Ending(EndsIn.RETRY), reason, message)


def abandon(record: ModelRecord, facts: Facts, reason: str, message: str) -> Transition:
    """Stop the update under way without counting a failure; its load is retired first."""
    if record.stage in (Stage.STAGING, Stage.VERIFYING):
        return end(record, facts, Outcome.ABANDONED, reason, message)
    return roll_back(record, facts, Ending(EndsIn.IDLE, Outcome.ABANDONED), reason, message)


def hold(
    record: ModelRecord, facts: Facts, held_for: HeldFor, message: str, *, evidence: Evidence | None = None
) -> Transition:
    """Hold the update for a person's decision; the candidate is retired first. A failback fails instead."""
    if record.under_way.kind is UpdateKind.FAILBACK:
        return fail_failback(record, facts, held_for.value, message, evidence=evidence)
    ending = Ending(EndsIn.HELD, held_for=held_for)
    return roll_back(record, facts, ending, held_for.value, message, evidence=evidence, name="hold_decided")


def refuse(
    record: ModelRecord,
    facts: Facts,
    rules: Rules,
    reason: str,
    message: str,
    *,
    evidence: Evidence | None = None,
    outcome: Outcome = Outcome.REFUSED,
) -> Transition:
    """Refuse the candidate for good: quarantine its source digest, or block this build's conversion of it."""
    update = record.under_way
    if update.kind is UpdateKind.FAILBACK:
        return fail_failback(record, facts, reason, message, evidence=evidence)
    if update.kind is UpdateKind.RECONVERT:
        record = block(record, update.bundle_digest)
        ending = Ending(EndsIn.HELD, outcome, HeldFor.CONVERSION)
    else:
        record = quarantine(record, facts, update.source_digest, update.revision, reason)
        record = count_failure(record, facts, rules, reason)
        ending = Ending(EndsIn.IDLE, outcome, blamed=True)
    return roll_back(record, facts, ending, reason, message, evidence=evidence, name="candidate_refused")


def fail_failback(
    record: ModelRecord, facts: Facts, reason: str, message: str, *, evidence: Evidence | None = None
) -> Transition:
    """End a failed failback: the model stays on its fallback device; the failure counts only against the device."""
    was_on_trial = record.stage in (Stage.OBSERVING, Stage.COMMITTING)
    outcome = Outcome.ROLLED_BACK if was_on_trial else Outcome.ABANDONED
    ending = Ending(EndsIn.IDLE, outcome, blamed=True)
    return roll_back(record, facts, ending, reason, message, evidence=evidence, name="failback_failed")


def remember_replaced(record: ModelRecord, facts: Facts, old: Installed | None, new: Installed) -> ModelRecord:
    """Record that another content is committed, in the place of the old one."""
    rows = tuple(row for row in record.replaced if row.source_digest != new.source_digest)
    if old is not None and old.source_digest not in ("", new.source_digest):
        rows = tuple(row for row in rows if row.source_digest != old.source_digest)
        rows = (*rows, Replaced(old.source_digest, old.revision, facts.now))[-MAX_REPLACED:]
    return replace(record, replaced=rows)


def quarantine(record: ModelRecord, facts: Facts, digest: str, revision: str, reason: str) -> ModelRecord:
    """Record a source digest that is never activated again."""
    if not digest or record.is_quarantined(digest):
        return record
    row = Quarantined(digest, revision, reason, facts.now, _find_commit_id(record, digest))
    return replace(
        record,
        quarantine=(*record.quarantine, row)[-MAX_QUARANTINE:],
        unquarantined=tuple(entry for entry in record.unquarantined if entry != digest),
        approved=tuple(entry for entry in record.approved if entry != digest),
    )


def _find_commit_id(record: ModelRecord, digest: str) -> str:
    rows = [row for row in (record.update, record.committed, record.previous) if row is not None]
    return next((row.commit_id for row in rows if row.source_digest == digest), "")


def count_failure(record: ModelRecord, facts: Facts, rules: Rules, reason: str) -> ModelRecord:
    """Count a failed update; too many in a row, or in an hour, open the activation breaker."""
    ages = (*(age for age in record.failure_ages if age < HOUR_SECONDS), 0.0)
    limits = rules.breakers[BreakerName.ACTIVATION]
    breaker = report(
        record.activation, WorkResult.FAILURE, limits, facts.jitter, reason=f"the last update failed: {reason}"
    )
    if len(ages) > rules.max_failures_an_hour and breaker.may_begin:
        breaker = trip(breaker, limits, facts.jitter, reason=f"{len(ages)} updates failed within an hour")
    return replace(record, failure_ages=ages[-32:], activation=breaker)


def remember_version(record: ModelRecord, version: str, source_digest: str) -> ModelRecord:
    """Record the source digest of a version; it stays until a person requests the version with other content."""
    if not version or not source_digest or record.known_digests.get(version) == source_digest:
        return record
    rows = [row for row in record.known if row.version != version]
    return replace(record, known=(*rows, KnownVersion(version, source_digest))[-MAX_KNOWN:])


def remember_computed(record: ModelRecord, computed: ComputedDigest) -> ModelRecord:
    """Record the source digest of a listing that lacks hashes, so that it is not fetched again to be known."""
    rows = [row for row in record.computed if row.revision != computed.revision]
    return replace(record, computed=(*rows, computed)[-MAX_COMPUTED:])


def block(record: ModelRecord, bundle_digest: str) -> ModelRecord:
    """Block a bundle digest from being loaded again; its source digest is not quarantined."""
    if not bundle_digest or bundle_digest in record.blocked:
        return record
    return replace(record, blocked=(*record.blocked, bundle_digest)[-MAX_QUARANTINE:])


def find_slot(update: Update, server: ServerState) -> SlotSnapshot | None:
    """The slot that holds the update's bundle, on the update's device if it names one."""
    return server.holding(update.bundle_digest, update.device)


def is_on_trial(update: Update, server: ServerState) -> bool:
    """Whether the server's trial is of this update."""
    trial, slot = server.trial, find_slot(update, server)
    if trial is None or trial.bundle_digest != update.bundle_digest:
        return False
    return not update.device or (slot is not None and slot.load_id == trial.load_id)


def find_counts(update: Update, server: ServerState) -> Counts:
    """The server's counters of the update's bundle since the server started.

    On trial, with the copies for it: it may get few requests itself, if callers' deadlines leave no time for both
    slots. Each copy is of a request that the previous slot has answered.
    """
    counts, shadow, trial = server.counts_of(update.bundle_digest, update.device), server.shadow, server.trial
    is_ours = trial is not None and trial.bundle_digest == update.bundle_digest
    if trial is None or shadow is None or shadow.load_id != trial.load_id or not is_ours:
        return counts
    return replace(
        counts,
        answered=counts.answered + shadow.judged.answered,
        failed=counts.failed + shadow.judged.failed,
        not_finite=counts.not_finite + shadow.judged.not_finite,
        out_of_memory=counts.out_of_memory + shadow.judged.out_of_memory,
    )


def list_spare_slots(server: ServerState) -> list[SlotSnapshot]:
    """Loads that may be retired: all but the active one and the server's own load of a CPU fallback."""
    return [slot for slot in server.occupied if slot.load_id != server.active_load_id and slot.role != "FALLBACK"]


_GIB = 1 << 30


def describe_shortage(revision: str, fault: EffectFailure, *, is_alone: bool = False) -> str:
    """Why a load did not fit, for people.

    Args:
        revision: whose load failed.
        fault: its reason is one of `MEMORY_REASONS`.
        is_alone: the serving model is on another device.
    """
    shortage = fault.shortage or Shortage("")
    where = f" on {shortage.device}" if shortage.device else " in memory"
    beside = "" if is_alone else " beside the serving model"
    if fault.reason == reasons.DOES_NOT_FIT:
        return f"{revision} does not fit{beside}{where}" + _numbers(shortage)
    return f"{revision} ran out of memory{where}{beside}" + _numbers(shortage)


def _numbers(shortage: Shortage) -> str:
    if not shortage.needed_bytes:
        return ""
    free = f", {shortage.free_bytes / _GIB:.2f} GiB are free" if shortage.free_bytes >= 0 else ""
    return f": it needs {shortage.needed_bytes / _GIB:.2f} GiB{free}"


_LAZY_SECONDS = 10.0  # by which the timers of the written record may lag behind
_UNDER_WAY = frozenset(Stage) - {Stage.IDLE, Stage.HELD}


def let_time_pass(record: ModelRecord, facts: Facts, rules: Rules) -> ModelRecord:
    """Advance all timers by the monotonic seconds since the step before."""
    seconds = max(0.0, facts.elapsed_seconds)
    watch, update, trouble, bridge = record.watch, record.update, record.trouble, record.bridge
    if bridge is not None:
        bridge = replace(bridge, retry_in_seconds=max(0.0, bridge.retry_in_seconds - seconds))
    if update is not None:
        pause = max(0.0, update.retry_in_seconds - seconds)
        update = replace(update, stage_seconds=update.stage_seconds + seconds, retry_in_seconds=pause)
    if trouble is not None:
        trouble = replace(trouble, retry_in_seconds=max(0.0, trouble.retry_in_seconds - seconds))
    return replace(
        record,
        watch=replace(watch, seconds_to_poll=max(0.0, watch.seconds_to_poll - seconds)),
        update=update,
        trouble=trouble,
        bridge=bridge,
        warm_seconds_left=max(0.0, record.warm_seconds_left - seconds),
        failure_ages=tuple(age + seconds for age in record.failure_ages if age + seconds < HOUR_SECONDS),
        hub=_passed(record.hub, seconds, facts, rules),
        activation=_passed(record.activation, seconds, facts, rules),
        device=_passed(record.device, seconds, facts, rules),
        written_at=facts.now,
    )


def begin_life(record: ModelRecord, facts: Facts, rules: Rules) -> ModelRecord:
    """Record the start of the updater, which counts as a step of the update under way.

    Open breakers are advanced by the time since the last write, by the wall clock. A wrong clock can only shorten that
    wait.
    """
    away = 0.0 if record.written_at is None else (facts.now - record.written_at).total_seconds()
    record = replace(
        record,
        hub=_resumed(record.hub, away, facts, rules),
        activation=_resumed(record.activation, away, facts, rules),
        device=_resumed(record.device, away, facts, rules),
        has_garbage=True,
        written_at=facts.now,
    )
    if record.update is None or record.stage not in _UNDER_WAY:
        return record
    return record.with_update(steps=record.update.steps + 1)


def note_orderly_stop(record: ModelRecord) -> ModelRecord:
    """Record an orderly stop of the updater, so that a trial that ends with the whole stack counts as no failure."""
    if record.stage not in (Stage.ACTIVATING, Stage.OBSERVING, Stage.COMMITTING):
        return record
    return record.with_update(orderly=True)


def is_worth_writing(written: ModelRecord, record: ModelRecord) -> bool:
    """Whether a record differs from the written one by more than a short advance of the timers."""
    if written.stage is not record.stage or _timeless(written) != _timeless(record):
        return True
    pairs = zip(_timers(written), _timers(record), strict=True)
    return any(abs(before - after) >= _LAZY_SECONDS for before, after in pairs)


def _timeless(record: ModelRecord) -> ModelRecord:
    update, trouble, bridge = record.update, record.trouble, record.bridge
    return replace(
        record,
        watch=replace(record.watch, seconds_to_poll=float(record.watch.seconds_to_poll > 0)),
        update=None if update is None else replace(update, stage_seconds=0.0, retry_in_seconds=0.0),
        trouble=None if trouble is None else replace(trouble, retry_in_seconds=0.0),
        bridge=None if bridge is None else replace(bridge, retry_in_seconds=0.0),
        warm_seconds_left=float(record.warm_seconds_left > 0),
        failure_ages=(0.0,) * len(record.failure_ages),
        hub=replace(record.hub, left_seconds=0.0, calm_seconds=0.0),
        activation=replace(record.activation, left_seconds=0.0, calm_seconds=0.0),
        device=replace(record.device, left_seconds=0.0, calm_seconds=0.0),
        written_at=None,
    )


def _timers(record: ModelRecord) -> tuple[float, ...]:
    return (
        0.0 if record.update is None else record.update.stage_seconds,
        record.warm_seconds_left,
        record.hub.left_seconds,
        record.activation.left_seconds,
        record.device.left_seconds,
    )


def _passed(breaker: Breaker, seconds: float, facts: Facts, rules: Rules) -> Breaker:
    return advance(breaker, seconds, rules.breakers[BreakerName(breaker.name)], facts.jitter)


def _resumed(breaker: Breaker, away: float, facts: Facts, rules: Rules) -> Breaker:
    return resume(breaker, away, rules.breakers[BreakerName(breaker.name)], facts.jitter)
