"""What operators ask for: whether it can be done now, and what it does to the record. Pure."""

from dataclasses import dataclass, replace

from updater.core.breaker import Breaker, BreakerName
from updater.core.effects import CommandKind, OperatorCommand
from updater.core.ports import Facts
from updater.core.record import APPROVABLE, Ending, EndsIn, HeldFor, ModelRecord, Outcome, Stage, UpdateKind
from updater.core.rules import Rules
from updater.stages import failback, reconcile, transitions
from updater.stages.transitions import Applied
from updater.stages.watch import is_after, is_same, version_of

_ON_TRIAL = frozenset({Stage.ACTIVATING, Stage.OBSERVING})
_LOADED = _ON_TRIAL | {Stage.GATING}
# Stages that end by themselves within seconds: most commands wait for that.
_ENDING = frozenset({Stage.COMMITTING, Stage.ROLLING_BACK})
_ANY_TIME = frozenset({CommandKind.CHECK_NOW, CommandKind.UNQUARANTINE, CommandKind.RESET_BREAKER, CommandKind.APPROVE})


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a command cannot be met, in the words of updates.v1."""

    reason: str  # for machines
    message: str  # for people
    is_not_found: bool = False  # NOT_FOUND, not FAILED_PRECONDITION


def refusal(record: ModelRecord, command: OperatorCommand, facts: Facts, rules: Rules) -> Refusal | None:
    """Why a command cannot be met as things are; None if it can."""
    match command.kind:
        case CommandKind.UPDATE:
            return _refuse_update(record, command.argument, rules)
        case CommandKind.ROLLBACK:
            return _refuse_rollback(record, facts)
        case CommandKind.APPROVE:
            return _refuse_approve(record, command.argument)
        case CommandKind.UNQUARANTINE if not record.is_quarantined(command.argument):
            return Refusal("NOT_QUARANTINED", "this source digest is not in quarantine", is_not_found=True)
        case CommandKind.RESET_BREAKER if command.argument not in tuple(BreakerName):
            names = ", ".join(BreakerName)
            return Refusal("BREAKER_UNKNOWN", f"there is no such breaker; there are {names}", is_not_found=True)
        case _:
            return None


def may_apply_now(record: ModelRecord, command: OperatorCommand) -> bool:
    """Whether the stage lets a command in; otherwise it waits for the stage to end."""
    return record.stage not in _ENDING or command.kind in _ANY_TIME


def apply(record: ModelRecord, command: OperatorCommand, facts: Facts, rules: Rules) -> Applied:  # noqa: PLR0911  one line a case
    """Do what was asked for; what cannot be done any more changes nothing."""
    refused = refusal(record, command, facts, rules)
    if refused is not None:
        told = f"{command.kind.lower()}: {refused.message}"
        return record, (transitions.event(record, facts, "command_refused", told),)
    watch_now = replace(record, watch=replace(record.watch, seconds_to_poll=0.0))
    match command.kind:
        case CommandKind.CHECK_NOW:
            return watch_now, ()
        case CommandKind.UPDATE:
            return _ask(watch_now, command.argument, facts)
        case CommandKind.ROLLBACK:
            return _roll_back(record, facts)
        case CommandKind.PAUSE:
            return _pause(record, command.argument, facts)
        case CommandKind.RESUME:
            return _resume(watch_now, facts)
        case CommandKind.APPROVE:
            return _approve(record, command.argument, facts)
        case CommandKind.UNQUARANTINE:
            return _unquarantine(watch_now, command.argument, facts)
        case CommandKind.RESET_BREAKER:
            return _reset(record, BreakerName(command.argument), facts)


def _ask(record: ModelRecord, revision: str, facts: Facts) -> Applied:
    """Remember it for the next look; a return to a device gives way, since a person waits."""
    record = replace(record, requested_revision=revision)
    told = transitions.event(record, facts, "update_asked", f"an operator asked for {revision}")
    if not (failback.is_under_way(record) and record.stage in _LOADED):
        return record, (told,)
    record, events = failback.broken_off(record, facts, "SUPERSEDED", f"an operator asked for {revision}")
    return record, (told, *events)


def _refuse_update(record: ModelRecord, revision: str, rules: Rules) -> Refusal | None:
    if record.stage not in (Stage.IDLE, Stage.HELD) and not failback.is_under_way(record):
        return Refusal("UPDATE_IN_PROGRESS", f"{record.under_way.revision} is under way")
    committed = record.committed
    is_bad = any(row.revision == revision for row in record.quarantine)
    if is_bad:
        return Refusal("QUARANTINED", f"{revision} is in quarantine; release its digest first")
    is_known = (
        version_of(revision, rules.policy) is not None and version_of(record.min_version, rules.policy) is not None
    )
    is_below = is_known and not is_after(revision, record.min_version, rules.policy)
    if is_below and not is_same(revision, record.min_version, rules.policy):
        return Refusal("BELOW_MIN_VERSION", f"{revision} is older than {record.min_version}, which was committed")
    if committed is not None and committed.revision == revision:
        return Refusal("BELOW_MIN_VERSION", f"{revision} is what is committed")
    return None


def _refuse_rollback(record: ModelRecord, facts: Facts) -> Refusal | None:
    if _is_revision_on_trial(record) and record.committed is not None:
        return None
    if record.stage is not Stage.ROLLING_BACK and reconcile.can_go_back(record, facts):
        return None
    return Refusal("NOTHING_TO_ROLL_BACK_TO", "no earlier committed revision is kept")


def _refuse_approve(record: ModelRecord, digest: str) -> Refusal | None:
    update = record.update
    if record.stage is not Stage.HELD or update is None or update.source_digest != digest:
        return Refusal("NOT_HELD", "no update with this source digest is held")
    if update.ending is None or update.ending.held_for not in APPROVABLE:
        return Refusal("NOT_APPROVABLE", f"it is held for {update.reason}, which no approval mends")
    return None


def _is_revision_on_trial(record: ModelRecord) -> bool:
    """Whether what an operator takes back is a candidate; a return tries a device, not a revision."""
    return record.stage in _ON_TRIAL and not failback.is_under_way(record)


def _roll_back(record: ModelRecord, facts: Facts) -> Applied:
    record = replace(record, paused=True, pause_reason="rolled back by hand", requested_revision="")
    if not _is_revision_on_trial(record):
        return reconcile.by_hand(record, facts)
    update = record.under_way
    reason, message = "ROLLED_BACK_BY_HAND", f"an operator took {update.revision} back"
    record = transitions.quarantine(record, facts, update.source_digest, update.revision, reason)
    return transitions.roll_back(record, facts, Ending(EndsIn.IDLE, Outcome.ROLLED_BACK), reason, message)


def _pause(record: ModelRecord, why: str, facts: Facts) -> Applied:
    record = replace(record, paused=True, pause_reason=why, requested_revision="")
    told = transitions.event(record, facts, "updates_paused", why or "an operator holds updates")
    if record.stage in _LOADED:
        ending = Ending(EndsIn.IDLE, Outcome.ABANDONED)
        record, events = transitions.roll_back(record, facts, ending, "PAUSED", "an operator holds updates")
        return record, (told, *events)
    if record.stage in (Stage.STAGING, Stage.VERIFYING):
        record, events = transitions.end(record, facts, Outcome.ABANDONED, "PAUSED", "an operator holds updates")
        return record, (told, *events)
    return record, (told,)


def _resume(record: ModelRecord, facts: Facts) -> Applied:
    record = replace(record, paused=False, pause_reason="", trouble=None)
    told = transitions.event(record, facts, "updates_resumed", "an operator takes updates again")
    if record.stage is not Stage.HELD:
        return record, (told,)
    update = record.under_way
    if update.kind is UpdateKind.RECONVERT and update.bundle_digest:
        # It would begin again at once: this build's conversion is declined.
        record = replace(record, blocked=(*record.blocked, update.bundle_digest))
    record, events = transitions.end(record, facts, Outcome.ABANDONED)
    return record, (told, *events)


def _approve(record: ModelRecord, digest: str, facts: Facts) -> Applied:
    record = replace(record, approved=(*(row for row in record.approved if row != digest), digest))
    stage = Stage.GATING if record.under_way.bundle_digest else Stage.STAGING
    ending = record.under_way.ending
    may_be_slower = record.under_way.may_be_slower or (ending is not None and ending.held_for is HeldFor.SLOWER)
    record = transitions.enter(
        record, stage, approved=True, may_be_slower=may_be_slower, ending=None, reason="", message=""
    )
    return record, (
        transitions.event(record, facts, "update_approved", f"an operator approved {record.under_way.revision}"),
    )


def _unquarantine(record: ModelRecord, digest: str, facts: Facts) -> Applied:
    rows = tuple(row for row in record.quarantine if row.source_digest != digest)
    record = replace(record, quarantine=rows, unquarantined=(*record.unquarantined, digest))
    return record, (transitions.event(record, facts, "quarantine_lifted", f"{digest} may be tried again"),)


def _reset(record: ModelRecord, name: BreakerName, facts: Facts) -> Applied:
    told = transitions.event(record, facts, "breaker_reset", f"an operator closed the breaker {name}")
    fresh = Breaker(name)
    if name is BreakerName.HUB:
        return replace(record, hub=fresh), (told,)
    if name is BreakerName.DEVICE and failback.is_under_way(record):
        return replace(record, device=replace(record.device, failures=0, openings=0)), (told,)  # its probe goes on
    if name is BreakerName.DEVICE:
        return replace(record, device=fresh), (told,)
    return replace(record, activation=fresh, failure_ages=()), (told,)
