"""What operators ask for: whether it can be done now, and what it does to the record. Pure."""

from dataclasses import dataclass, replace

from updater.core.breaker import Breaker, BreakerName
from updater.core.effects import Wish, WishKind
from updater.core.ports import Facts
from updater.core.record import APPROVABLE, Ending, EndsIn, HeldFor, ModelRecord, Outcome, Stage, UpdateKind
from updater.core.rules import Rules
from updater.stages import failback, reconcile, transitions
from updater.stages.transitions import Concluded
from updater.stages.watch import is_after, is_same, version_of

_ON_TRIAL = frozenset({Stage.ACTIVATING, Stage.OBSERVING})
_LOADED = _ON_TRIAL | {Stage.GATING}
# Stages that end by themselves within seconds: most wishes wait for that.
_ENDING = frozenset({Stage.COMMITTING, Stage.ROLLING_BACK})
_ANY_TIME = frozenset({WishKind.CHECK_NOW, WishKind.RELEASE_QUARANTINE, WishKind.RESET_BREAKER, WishKind.APPROVE})


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a wish cannot be met, in the words of updates.v1."""

    reason: str  # for machines
    message: str  # for people
    is_not_found: bool = False  # NOT_FOUND, not FAILED_PRECONDITION


def refusal(record: ModelRecord, wish: Wish, facts: Facts, rules: Rules) -> Refusal | None:
    """Why a wish cannot be met as things are; None if it can."""
    match wish.kind:
        case WishKind.UPDATE:
            return _refuse_update(record, wish.argument, rules)
        case WishKind.ROLLBACK:
            return _refuse_rollback(record, facts)
        case WishKind.APPROVE:
            return _refuse_approve(record, wish.argument)
        case WishKind.RELEASE_QUARANTINE if not record.is_quarantined(wish.argument):
            return Refusal("NOT_QUARANTINED", "this source digest is not in quarantine", is_not_found=True)
        case WishKind.RESET_BREAKER if wish.argument not in tuple(BreakerName):
            names = ", ".join(BreakerName)
            return Refusal("BREAKER_UNKNOWN", f"there is no such breaker; there are {names}", is_not_found=True)
        case _:
            return None


def may_obey_now(record: ModelRecord, wish: Wish) -> bool:
    """Whether the stage lets a wish in; otherwise it waits for the stage to end."""
    return record.stage not in _ENDING or wish.kind in _ANY_TIME


def obey(record: ModelRecord, wish: Wish, facts: Facts, rules: Rules) -> Concluded:  # noqa: PLR0911  one line a case
    """Do what was asked for; what cannot be done any more changes nothing."""
    refused = refusal(record, wish, facts, rules)
    if refused is not None:
        told = f"{wish.kind.lower()}: {refused.message}"
        return record, (transitions.event(record, facts, "wish_refused", told),)
    watch_now = replace(record, watch=replace(record.watch, seconds_to_look=0.0))
    match wish.kind:
        case WishKind.CHECK_NOW:
            return watch_now, ()
        case WishKind.UPDATE:
            return _ask(watch_now, wish.argument, facts)
        case WishKind.ROLLBACK:
            return _roll_back(record, facts)
        case WishKind.HOLD:
            return _hold(record, wish.argument, facts)
        case WishKind.RESUME:
            return _resume(watch_now, facts)
        case WishKind.APPROVE:
            return _approve(record, wish.argument, facts)
        case WishKind.RELEASE_QUARANTINE:
            return _release(watch_now, wish.argument, facts)
        case WishKind.RESET_BREAKER:
            return _reset(record, BreakerName(wish.argument), facts)


def _ask(record: ModelRecord, revision: str, facts: Facts) -> Concluded:
    """Remember it for the next look; a return to a device gives way, since a person waits."""
    record = replace(record, asked=revision)
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
    is_known = version_of(revision, rules.policy) is not None and version_of(record.floor, rules.policy) is not None
    is_below = is_known and not is_after(revision, record.floor, rules.policy)
    if is_below and not is_same(revision, record.floor, rules.policy):
        return Refusal("BELOW_FLOOR", f"{revision} is older than {record.floor}, which was committed")
    if committed is not None and committed.revision == revision:
        return Refusal("BELOW_FLOOR", f"{revision} is what is committed")
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


def _roll_back(record: ModelRecord, facts: Facts) -> Concluded:
    record = replace(record, on_hold=True, hold_reason="rolled back by hand", asked="")
    if not _is_revision_on_trial(record):
        return reconcile.by_hand(record, facts)
    update = record.under_way
    reason, message = "ROLLED_BACK_BY_HAND", f"an operator took {update.revision} back"
    record = transitions.quarantine(record, facts, update.source_digest, update.revision, reason)
    return transitions.roll_back(record, facts, Ending(EndsIn.IDLE, Outcome.ROLLED_BACK), reason, message)


def _hold(record: ModelRecord, why: str, facts: Facts) -> Concluded:
    record = replace(record, on_hold=True, hold_reason=why, asked="")
    told = transitions.event(record, facts, "updates_held", why or "an operator holds updates")
    if record.stage in _LOADED:
        ending = Ending(EndsIn.IDLE, Outcome.ABANDONED)
        record, events = transitions.roll_back(record, facts, ending, "ON_HOLD", "an operator holds updates")
        return record, (told, *events)
    if record.stage in (Stage.STAGING, Stage.VERIFYING):
        record, events = transitions.end(record, facts, Outcome.ABANDONED, "ON_HOLD", "an operator holds updates")
        return record, (told, *events)
    return record, (told,)


def _resume(record: ModelRecord, facts: Facts) -> Concluded:
    record = replace(record, on_hold=False, hold_reason="", trouble=None)
    told = transitions.event(record, facts, "updates_resumed", "an operator takes updates again")
    if record.stage is not Stage.HELD:
        return record, (told,)
    update = record.under_way
    if update.kind is UpdateKind.RECONVERT and update.bundle_digest:
        # It would begin again at once: this build's conversion is declined.
        record = replace(record, blocked=(*record.blocked, update.bundle_digest))
    record, events = transitions.end(record, facts, Outcome.ABANDONED)
    return record, (told, *events)


def _approve(record: ModelRecord, digest: str, facts: Facts) -> Concluded:
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


def _release(record: ModelRecord, digest: str, facts: Facts) -> Concluded:
    rows = tuple(row for row in record.quarantine if row.source_digest != digest)
    record = replace(record, quarantine=rows, released=(*record.released, digest))
    return record, (transitions.event(record, facts, "quarantine_released", f"{digest} may be tried again"),)


def _reset(record: ModelRecord, name: BreakerName, facts: Facts) -> Concluded:
    told = transitions.event(record, facts, "breaker_reset", f"an operator closed the breaker {name}")
    fresh = Breaker(name)
    if name is BreakerName.HUB:
        return replace(record, hub=fresh), (told,)
    if name is BreakerName.DEVICE and failback.is_under_way(record):
        return replace(record, device=replace(record.device, failures=0, openings=0)), (told,)  # its probe goes on
    if name is BreakerName.DEVICE:
        return replace(record, device=fresh), (told,)
    return replace(record, activation=fresh, failure_ages=()), (told,)
