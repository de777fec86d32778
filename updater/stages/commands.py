"""Operators' commands: what each does in each stage, when it is refused, and how it changes the record. Pure."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from types import MappingProxyType

from updater.core.breaker import Breaker, BreakerName
from updater.core.facts import CommandKind, Facts, OperatorCommand
from updater.core.record import (
    APPROVABLE,
    Ending,
    EndsIn,
    HeldFor,
    ModelRecord,
    Outcome,
    Quarantined,
    Stage,
    UpdateKind,
)
from updater.core.rules import Rules
from updater.core.versions import is_after, is_meant, is_same, parse_version
from updater.stages import failback, reconcile, rollout, stage, transitions
from updater.stages.reconcile import BY_HAND
from updater.stages.transitions import Transition


class CommandEffect(StrEnum):
    """What a command does; see `TABLE`."""

    POLL = "POLL"  # the hub is polled now
    REQUEST = "REQUEST"  # the hub is polled for the named revision, which bypasses the policy
    SUPERSEDE = "SUPERSEDE"  # the failback under way is abandoned, then as REQUEST
    ROLL_BACK_COMMITTED = (
        "ROLL_BACK_COMMITTED"  # the previous committed revision is restored; the current one goes into quarantine
    )
    TAKE_BACK = "TAKE_BACK"  # the trial ends; its revision goes into quarantine; the committed one stays
    ABANDON = "ABANDON"  # the update under way is abandoned, and updates are paused; the committed revision stays
    PAUSE = "PAUSE"  # no update starts automatically
    RESUME = "RESUME"  # updates start again
    RETRY = "RETRY"  # the held update is abandoned, then as RESUME: a poll starts a new one
    APPROVE = "APPROVE"  # the held update goes on
    UNQUARANTINE = "UNQUARANTINE"  # a source digest may be tried again
    RESET = "RESET"  # a breaker is closed
    WAIT = "WAIT"  # until the stage has ended, which takes seconds
    IN_PROGRESS = "IN_PROGRESS"  # refused: an update is under way
    NOT_HELD = "NOT_HELD"  # refused: no update is held
    ADVANCE = "ADVANCE"  # the rollout takes its next step
    PROMOTE = "PROMOTE"  # the rollout takes its last step
    NOT_ROLLING_OUT = "NOT_ROLLING_OUT"  # refused: there is neither a shadow nor a trial


_Row = Mapping[Stage, CommandEffect]
_RESTING = (Stage.IDLE, Stage.HELD)
_TRIED = (Stage.ACTIVATING, Stage.OBSERVING)
_ROLLED_OUT = (Stage.SHADOWING, Stage.OBSERVING)
_ENDING = (Stage.COMMITTING, Stage.ROLLING_BACK)


def _row(default: CommandEffect, *changes: tuple[tuple[Stage, ...], CommandEffect]) -> _Row:
    named = {stage: effect for stages, effect in changes for stage in stages}
    return MappingProxyType({stage: named.get(stage, default) for stage in Stage})


# What each command does in each stage. A rollback applies to the update under way or, without one, to the committed
# revision.
TABLE: Mapping[CommandKind, _Row] = MappingProxyType(
    {
        CommandKind.CHECK_NOW: _row(CommandEffect.POLL),
        CommandKind.UPDATE: _row(
            CommandEffect.IN_PROGRESS, (_RESTING, CommandEffect.REQUEST), (_ENDING, CommandEffect.WAIT)
        ),
        CommandKind.ROLLBACK: _row(
            CommandEffect.ABANDON,
            (_RESTING, CommandEffect.ROLL_BACK_COMMITTED),
            (_TRIED, CommandEffect.TAKE_BACK),
            (_ENDING, CommandEffect.WAIT),
        ),
        CommandKind.PAUSE: _row(CommandEffect.ABANDON, (_RESTING, CommandEffect.PAUSE), (_ENDING, CommandEffect.WAIT)),
        CommandKind.RESUME: _row(
            CommandEffect.RESUME, ((Stage.HELD,), CommandEffect.RETRY), (_ENDING, CommandEffect.WAIT)
        ),
        CommandKind.STEP: _row(
            CommandEffect.NOT_ROLLING_OUT,
            (_ROLLED_OUT, CommandEffect.ADVANCE),
            ((Stage.ACTIVATING,), CommandEffect.WAIT),
        ),
        CommandKind.PROMOTE: _row(
            CommandEffect.NOT_ROLLING_OUT,
            (_ROLLED_OUT, CommandEffect.PROMOTE),
            ((Stage.ACTIVATING,), CommandEffect.WAIT),
        ),
        CommandKind.APPROVE: _row(CommandEffect.NOT_HELD, ((Stage.HELD,), CommandEffect.APPROVE)),
        CommandKind.UNQUARANTINE: _row(CommandEffect.UNQUARANTINE),
        CommandKind.RESET_BREAKER: _row(CommandEffect.RESET),
    }
)
# While a failback is under way: it changes the device, not the revision, so these commands do not apply to it.
FAILBACK_TABLE: Mapping[CommandKind, _Row] = MappingProxyType(
    {
        CommandKind.UPDATE: _row(CommandEffect.SUPERSEDE, (_ENDING, CommandEffect.WAIT)),
        CommandKind.ROLLBACK: _row(CommandEffect.ROLL_BACK_COMMITTED, (_ENDING, CommandEffect.WAIT)),
    }
)


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a command is refused; the reasons are those of updates.v1."""

    reason: str  # for machines
    message: str  # for people
    is_not_found: bool = False  # NOT_FOUND, not FAILED_PRECONDITION


@dataclass(frozen=True, slots=True)
class CommandResult:
    """The result of a command: a transition, or a refusal with its event."""

    command: OperatorCommand
    transition: Transition
    refusal: Refusal | None = None

    @property
    def record(self) -> ModelRecord:
        """The record after the command."""
        return self.transition.record


def find_effect(record: ModelRecord, kind: CommandKind) -> CommandEffect:
    """The cell of the table for a record."""
    rows = FAILBACK_TABLE if failback.is_under_way(record) and kind in FAILBACK_TABLE else TABLE
    return rows[kind][record.stage]


def must_wait(record: ModelRecord, kind: CommandKind) -> bool:
    """Whether the command is applied only when the stage has ended."""
    return find_effect(record, kind) is CommandEffect.WAIT


def apply(record: ModelRecord, command: OperatorCommand, facts: Facts, rules: Rules) -> CommandResult:
    """Apply a command that need not wait, or refuse it; a refused command changes nothing.

    Raises:
        RuntimeError: it must wait.
    """
    effect = find_effect(record, command.kind)
    refusal = _refuse(record, effect, command, facts, rules)
    if refusal is None:
        result, events = _APPLY[effect](record, command, facts)
        if command.note:
            acted = transitions.make_event(record, facts, "operator_acted", f"{command.kind.lower()} {command.note}")
            events = (acted, *events)
        return CommandResult(command, Transition(result, events))
    event = f"{command.kind.lower()}: {refusal.message}"
    return CommandResult(command, transitions.with_event(record, facts, "command_refused", event), refusal)


def _refuse(  # noqa: C901, PLR0911  one line a case
    record: ModelRecord, effect: CommandEffect, command: OperatorCommand, facts: Facts, rules: Rules
) -> Refusal | None:
    match effect:
        case CommandEffect.WAIT:
            raise RuntimeError(f"{command.kind} waits for {record.stage} to end")
        case CommandEffect.ROLL_BACK_COMMITTED | CommandEffect.TAKE_BACK | CommandEffect.ABANDON if _is_other(
            record, command
        ):
            return _refuse_other(record, command, effect)
        case CommandEffect.IN_PROGRESS:
            return Refusal("UPDATE_IN_PROGRESS", f"{record.under_way.revision} is under way")
        case CommandEffect.REQUEST | CommandEffect.SUPERSEDE:
            return _refuse_request(record, command.argument, rules)
        case CommandEffect.ROLL_BACK_COMMITTED if not reconcile.can_go_back(record, facts):
            return Refusal("NOTHING_TO_ROLL_BACK_TO", "no earlier committed revision is kept")
        case CommandEffect.TAKE_BACK if record.committed is None:
            message = f"nothing is committed yet: without {record.under_way.revision} nothing would answer"
            return Refusal("NOTHING_TO_ROLL_BACK_TO", message)
        case CommandEffect.NOT_ROLLING_OUT:
            return Refusal("NOT_ROLLING_OUT", "no revision is rolled out: there is neither a shadow nor a trial")
        case CommandEffect.ADVANCE | CommandEffect.PROMOTE if _is_last_step(record):
            return Refusal("LAST_STEP", f"{record.under_way.revision} gets all requests already")
        case CommandEffect.NOT_HELD | CommandEffect.APPROVE:
            return _refuse_approval(record, command.argument)
        case CommandEffect.UNQUARANTINE:
            return _refuse_unquarantine(record, command.argument)
        case CommandEffect.RESET if command.argument not in tuple(BreakerName):
            names = ", ".join(BreakerName)
            return Refusal("BREAKER_UNKNOWN", f"there is no such breaker; there are {names}", is_not_found=True)
        case _:
            return None


def _refuse_request(record: ModelRecord, revision: str, rules: Rules) -> Refusal | None:
    """By its name alone: whether its content is in quarantine or committed is found when the hub lists it."""
    least = record.min_version
    is_known = parse_version(revision, rules.policy) is not None and parse_version(least, rules.policy) is not None
    is_below = is_known and not is_after(revision, least, rules.policy) and not is_same(revision, least, rules.policy)
    if is_below:
        return Refusal("BELOW_MIN_VERSION", f"{revision} is older than {least}, which was committed")
    return None


def _is_other(record: ModelRecord, command: OperatorCommand) -> bool:
    """Whether an operator names another revision than the one that a rollback acts on."""
    if command.kind is not CommandKind.ROLLBACK or not command.argument:
        return False
    taken = _taken_back(record)
    return taken is None or not is_meant(command.argument, *taken)


def _taken_back(record: ModelRecord) -> tuple[str, str, str] | None:
    """Name, source digest and commit id of what a rollback acts on: the update, or the committed revision."""
    effect, update, committed = find_effect(record, CommandKind.ROLLBACK), record.update, record.committed
    if effect is not CommandEffect.ROLL_BACK_COMMITTED and update is not None:
        return update.revision, update.source_digest, update.commit_id
    return None if committed is None else (committed.revision, committed.source_digest, committed.commit_id)


def _refuse_other(record: ModelRecord, command: OperatorCommand, effect: CommandEffect) -> Refusal:
    taken, act = _taken_back(record), "abandon the update to" if effect is CommandEffect.ABANDON else "take back"
    what = "nothing is committed" if taken is None else f"it would {act} {taken[0]}"
    return Refusal("OTHER_REVISION", f"{command.argument} is not what a rollback would act on now: {what}")


def _find_quarantined(record: ModelRecord, given: str) -> list[Quarantined]:
    """The rows of the quarantine that an operator means."""
    rows = record.quarantine
    return [row for row in rows if is_meant(given, row.revision, row.source_digest, row.commit_id)]


def _refuse_unquarantine(record: ModelRecord, given: str) -> Refusal | None:
    found = _find_quarantined(record, given)
    if len(found) > 1:
        shown = ", ".join(f"{row.revision} {row.source_digest}" for row in found)
        return Refusal("AMBIGUOUS", f"{given} may be: {shown}")
    if not found:
        return Refusal("NOT_QUARANTINED", f"nothing in quarantine is named {given}", is_not_found=True)
    return None


def _is_last_step(record: ModelRecord) -> bool:
    return record.stage is Stage.OBSERVING and not record.under_way.has_more_steps


def _refuse_approval(record: ModelRecord, given: str) -> Refusal | None:
    update = record.update
    named = ("", "", "") if update is None else (update.revision, update.source_digest, update.commit_id)
    if update is None or record.stage is not Stage.HELD or not is_meant(given, *named):
        return Refusal("NOT_HELD", "no update of this content is held")
    if update.ending is None or update.ending.held_for not in APPROVABLE:
        return Refusal("NOT_APPROVABLE", f"it is held for {update.reason}, which an approval does not change")
    return None


def _poll(record: ModelRecord, _command: OperatorCommand, _facts: Facts) -> Transition:
    return Transition(_poll_now(record))


def _request(record: ModelRecord, command: OperatorCommand, facts: Facts) -> Transition:
    """Record the revision for the next poll, which is due now."""
    record = replace(_poll_now(record), requested_revision=command.argument)
    return transitions.with_event(record, facts, "update_requested", f"an operator requested {command.argument}")


def _supersede(record: ModelRecord, command: OperatorCommand, facts: Facts) -> Transition:
    record, events = _request(record, command, facts)
    record, abandoned = transitions.abandon(record, facts, "SUPERSEDED", f"an operator requested {command.argument}")
    return Transition(record, (*events, *abandoned))


def _revert(record: ModelRecord, _command: OperatorCommand, facts: Facts) -> Transition:
    return reconcile.roll_back_committed(_pause_by_rollback(record), facts)


def _take_back(record: ModelRecord, _command: OperatorCommand, facts: Facts) -> Transition:
    record, update = _pause_by_rollback(record), record.under_way
    if update.kind is UpdateKind.RECONVERT:  # its source digest is the committed one
        record = transitions.block(record, update.bundle_digest)
    else:
        record = transitions.quarantine(record, facts, update.source_digest, update.revision, BY_HAND)
    ending, message = Ending(EndsIn.IDLE, Outcome.ROLLED_BACK), f"an operator took {update.revision} back"
    return transitions.roll_back(record, facts, ending, BY_HAND, message)


def _abandon(record: ModelRecord, command: OperatorCommand, facts: Facts) -> Transition:
    """Abandon the update for a pause, or for a rollback before the candidate has served."""
    if command.kind is CommandKind.ROLLBACK:
        message = f"an operator took {record.under_way.revision} back before it served; the committed revision stays"
        return transitions.abandon(_pause_by_rollback(record), facts, BY_HAND, message)
    record, events = _pause(record, command, facts)
    record, abandoned = transitions.abandon(record, facts, "PAUSED", "an operator paused updates")
    return Transition(record, (*events, *abandoned))


def _pause(record: ModelRecord, command: OperatorCommand, facts: Facts) -> Transition:
    record = replace(record, paused=True, pause_reason=command.argument, requested_revision="")
    return transitions.with_event(record, facts, "updates_paused", command.argument or "an operator paused updates")


def _resume(record: ModelRecord, _command: OperatorCommand, facts: Facts) -> Transition:
    record = replace(_poll_now(record), paused=False, pause_reason="", trouble=None)
    return transitions.with_event(record, facts, "updates_resumed", "an operator resumed updates")


def _retry(record: ModelRecord, command: OperatorCommand, facts: Facts) -> Transition:
    record, events = _resume(record, command, facts)
    update = record.under_way
    if stage.is_held_for_space(record):
        record, continued = stage.continue_held(record, facts)
        return Transition(record, (*events, *continued))
    if update.kind is UpdateKind.RECONVERT:  # or it would start again at once
        record = transitions.block(record, update.bundle_digest)
    record, ended = transitions.end(record, facts, Outcome.ABANDONED)
    return Transition(record, (*events, *ended))


def _approve(record: ModelRecord, command: OperatorCommand, facts: Facts) -> Transition:
    del command
    update = record.under_way
    held_for, digest = None if update.ending is None else update.ending.held_for, update.source_digest
    is_slower, is_untried = held_for is HeldFor.SLOWER, held_for in (HeldFor.SEEN_BEFORE, HeldFor.FIRST_CONTACT)
    if is_untried:  # it may be fetched and tried; what the gate finds is another decision
        record = replace(record, unquarantined=(*(row for row in record.unquarantined if row != digest), digest))
    else:
        record = replace(record, approved=(*(row for row in record.approved if row != digest), digest))
    record = transitions.enter(
        record,
        Stage.GATING if update.bundle_digest else Stage.STAGING,
        approved=update.approved or not is_untried,
        may_be_slower=update.may_be_slower or is_slower,
        may_change_answers=update.may_change_answers or held_for is HeldFor.CHANGED_ANSWERS,
        ending=None,
        reason="",
        message="",
    )
    return transitions.with_event(record, facts, "update_approved", f"an operator approved {update.revision}")


def _advance(record: ModelRecord, _command: OperatorCommand, facts: Facts) -> Transition:
    if record.stage is Stage.SHADOWING:
        return _begin_trial(record, facts)
    return rollout.advance(record, facts, "an operator wants it")


def _promote(record: ModelRecord, _command: OperatorCommand, facts: Facts) -> Transition:
    return _begin_trial(record, facts) if record.stage is Stage.SHADOWING else rollout.promote(record, facts)


def _begin_trial(record: ModelRecord, facts: Facts) -> Transition:
    record = record.with_update(is_shadow_over=True)
    message = f"an operator wants the trial of {record.under_way.revision} to begin"
    return transitions.with_event(record, facts, "shadow_cut_short", message)


def _unquarantine(record: ModelRecord, command: OperatorCommand, facts: Facts) -> Transition:
    digest = _find_quarantined(record, command.argument)[0].source_digest
    rows = tuple(row for row in record.quarantine if row.source_digest != digest)
    record = replace(_poll_now(record), quarantine=rows, unquarantined=(*record.unquarantined, digest))
    return transitions.with_event(record, facts, "quarantine_lifted", f"{digest} may be tried again")


def _reset(record: ModelRecord, command: OperatorCommand, facts: Facts) -> Transition:
    name = BreakerName(command.argument)
    if name is BreakerName.HUB:
        record = replace(record, hub=Breaker(name))
    elif name is BreakerName.ACTIVATION:
        record = replace(record, activation=Breaker(name), failure_ages=())
    elif failback.is_under_way(record):  # its probe goes on
        record = replace(record, device=replace(record.device, failures=0, openings=0))
    else:
        record = replace(record, device=Breaker(name))
    return transitions.with_event(record, facts, "breaker_reset", f"an operator closed the breaker {name}")


def _poll_now(record: ModelRecord) -> ModelRecord:
    return replace(record, watch=replace(record.watch, seconds_to_poll=0.0))


def _pause_by_rollback(record: ModelRecord) -> ModelRecord:
    return replace(record, paused=True, pause_reason="rolled back by hand", requested_revision="")


_APPLY: Mapping[CommandEffect, Callable[[ModelRecord, OperatorCommand, Facts], Transition]] = MappingProxyType(
    {
        CommandEffect.POLL: _poll,
        CommandEffect.REQUEST: _request,
        CommandEffect.SUPERSEDE: _supersede,
        CommandEffect.ROLL_BACK_COMMITTED: _revert,
        CommandEffect.TAKE_BACK: _take_back,
        CommandEffect.ABANDON: _abandon,
        CommandEffect.PAUSE: _pause,
        CommandEffect.RESUME: _resume,
        CommandEffect.RETRY: _retry,
        CommandEffect.APPROVE: _approve,
        CommandEffect.ADVANCE: _advance,
        CommandEffect.PROMOTE: _promote,
        CommandEffect.UNQUARANTINE: _unquarantine,
        CommandEffect.RESET: _reset,
    }
)
