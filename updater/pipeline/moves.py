"""The few ways in which a record moves on, used by every stage. Pure."""

from dataclasses import replace

from updater.breaker import BreakerName, Result, report, trip
from updater.evidence import Evidence
from updater.ports import Facts
from updater.record import (
    Ending,
    EndsIn,
    Event,
    HeldFor,
    Known,
    ModelRecord,
    Outcome,
    Quarantined,
    Stage,
    Update,
    UpdateKind,
)
from updater.rules import Rules

MAX_KNOWN = 500
MAX_QUARANTINE = 500
MAX_ALARMS = 100
HOUR_SECONDS = 3600.0

Concluded = tuple[ModelRecord, tuple[Event, ...]]


def event(
    record: ModelRecord,
    facts: Facts,
    name: str,
    message: str = "",
    *,
    outcome: Outcome | None = None,
    evidence: Evidence | None = None,
) -> Event:
    """Tell that something happened, with the update as it stands now."""
    return Event(facts.now, record.model, record.stage, name, message, record.update, outcome, evidence)


def start(record: ModelRecord, update: Update, stage: Stage, facts: Facts) -> Concluded:
    """Begin an update in its first stage; one that is HELD gives way to it."""
    record, events = end(record, facts, Outcome.ABANDONED, "SUPERSEDED") if record.update else (record, ())
    record = replace(record, stage=stage, update=replace(update, steps=1))
    what = f"{update.kind.lower()} of {update.revision}" + (f" to {update.device}" if update.device else "")
    return record, (*events, event(record, facts, "update_started", what))


def enter(record: ModelRecord, stage: Stage, **changes: object) -> ModelRecord:
    """Go to another stage of the update under way; counts as a step."""
    fresh = {"stage_seconds": 0.0, "attempts": 0, "pause_seconds": 0.0, "steps": record.under_way.steps + 1}
    return replace(record, stage=stage).with_update(**{**fresh, **changes})


def try_again(record: ModelRecord, rules: Rules) -> ModelRecord:
    """Try the stage's effect again after a pause that grows."""
    attempts = record.under_way.attempts + 1
    return record.with_update(attempts=attempts, pause_seconds=rules.retry_seconds * 2.0 ** min(attempts - 1, 8))


def end(record: ModelRecord, facts: Facts, outcome: Outcome, reason: str = "", message: str = "") -> Concluded:
    """End the update under way; what serves is what is committed."""
    update = record.under_way
    record = record.with_update(reason=reason or update.reason, message=message or update.message, ending=None)
    name = f"update_{outcome.lower()}"
    told = event(replace(record, stage=Stage.IDLE), facts, name, record.under_way.message, outcome=outcome)
    return replace(record, stage=Stage.IDLE, update=None, has_garbage=True), (told,)


def roll_back(
    record: ModelRecord,
    facts: Facts,
    ending: Ending,
    reason: str,
    message: str,
    *,
    evidence: Evidence | None = None,
    name: str = "rollback_began",
) -> Concluded:
    """Begin to put back what is committed; how it ends is written down now.

    A return to a device does not start again by itself: the next one is the breaker's to allow.
    """
    if record.under_way.kind is UpdateKind.RETURN and ending.ends_in is not EndsIn.IDLE:
        ending = Ending(EndsIn.IDLE, Outcome.ABANDONED)
    record = enter(record, Stage.ROLLING_BACK, ending=ending, reason=reason, message=message)
    return record, (event(record, facts, name, message, evidence=evidence),)


def hold(
    record: ModelRecord, facts: Facts, held_for: HeldFor, message: str, *, evidence: Evidence | None = None
) -> Concluded:
    """Let a person decide; the candidate leaves its slot first."""
    if record.under_way.kind is UpdateKind.RETURN:
        return stay(record, facts, held_for.value, message, evidence=evidence)
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
) -> Concluded:
    """Condemn the candidate: its source digest, or this build's conversion of it, is never tried again."""
    update = record.under_way
    if update.kind is UpdateKind.RETURN:
        return stay(record, facts, reason, message, evidence=evidence)
    if update.kind is UpdateKind.RECONVERT:
        record = replace(record, blocked=_added(record.blocked, update.bundle_digest))
        ending = Ending(EndsIn.HELD, outcome, HeldFor.CONVERSION)
    else:
        record = blame(quarantine(record, facts, update.source_digest, update.revision, reason), facts, rules, reason)
        ending = Ending(EndsIn.IDLE, outcome, blamed=True)
    return roll_back(record, facts, ending, reason, message, evidence=evidence, name="candidate_refused")


def stay(
    record: ModelRecord, facts: Facts, reason: str, message: str, *, evidence: Evidence | None = None
) -> Concluded:
    """A return has failed: the model stays where it is, and nobody is to blame but the device."""
    was_on_trial = record.stage in (Stage.OBSERVING, Stage.COMMITTING)
    outcome = Outcome.ROLLED_BACK if was_on_trial else Outcome.ABANDONED
    ending = Ending(EndsIn.IDLE, outcome, blamed=True)
    return roll_back(record, facts, ending, reason, message, evidence=evidence, name="return_failed")


def quarantine(record: ModelRecord, facts: Facts, digest: str, revision: str, reason: str) -> ModelRecord:
    """Write down a source digest that is never activated again."""
    if not digest or record.is_quarantined(digest):
        return record
    row = Quarantined(digest, revision, reason, facts.now)
    return replace(
        record,
        quarantine=(*record.quarantine, row)[-MAX_QUARANTINE:],
        released=tuple(entry for entry in record.released if entry != digest),
        approved=tuple(entry for entry in record.approved if entry != digest),
    )


def blame(record: ModelRecord, facts: Facts, rules: Rules, reason: str) -> ModelRecord:
    """Count a failed update; too many in a row, or in an hour, open the breaker."""
    ages = (*(age for age in record.failure_ages if age < HOUR_SECONDS), 0.0)
    limits = rules.breakers[BreakerName.ACTIVATION]
    breaker = report(
        record.activation, Result.FAILURE, limits, facts.jitter, reason=f"the last update failed: {reason}"
    )
    if len(ages) > rules.max_failures_an_hour and breaker.may_begin:
        breaker = trip(breaker, limits, facts.jitter, reason=f"{len(ages)} updates failed within an hour")
    return replace(record, failure_ages=ages[-32:], activation=breaker)


def learn(record: ModelRecord, version: str, source_digest: str) -> ModelRecord:
    """Remember what a version is; what it was first called stays, unless a person said otherwise."""
    if not version or not source_digest or record.known_digests.get(version) == source_digest:
        return record
    rows = [row for row in record.known if row.version != version]
    return replace(record, known=(*rows, Known(version, source_digest))[-MAX_KNOWN:])


def _added(rows: tuple[str, ...], row: str) -> tuple[str, ...]:
    return rows if not row or row in rows else (*rows, row)
