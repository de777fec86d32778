"""COMMITTING and ROLLING_BACK: how an update ends. Pure.

Committing is ordered: the stage is written, then the pointer, then the trial is ended for good, then
the record says committed. Before the pointer is written a lost trial is taken back; after it the commit
stands, whatever happens.
"""

from dataclasses import replace

from updater.core.breaker import BreakerName, Result, report
from updater.core.effects import Action, CommitLoad, Enter, Wait, WritePointer
from updater.core.ports import Facts
from updater.core.record import Ending, EndsIn, HeldFor, ModelRecord, Outcome, Stage
from updater.core.rules import Rules
from updater.stages import failback, observe, reconcile, transitions
from updater.stages.transitions import Applied
from updater.stages.watch import higher


def decide_commit(record: ModelRecord, facts: Facts, rules: Rules) -> Action:
    """Pointer, then the server, then the record."""
    update, server = record.under_way, facts.server
    if not facts.pointer_is_readable or facts.pointer != update.installed:
        gone = observe.is_gone(record, facts)
        if gone and not is_committed(record, facts):
            return Enter(Stage.ROLLING_BACK, gone, "the trial ended before it was committed")
        if server is None:
            return Wait(rules.look_seconds, "the server cannot be reached")
        return WritePointer(update.installed)
    if server is None:
        return Wait(rules.look_seconds, "the server cannot be reached")
    if server.trial is not None and transitions.is_on_trial(update, server):
        return CommitLoad(server.trial.load_id, update.update_id, server.generation)
    return Enter(Stage.IDLE, "COMMITTED", "the pointer says so already")


def is_committed(record: ModelRecord, facts: Facts) -> bool:
    """Whether a commit has passed the point from which it stands.

    The pointer says so; or did, since the server was told, or began again with it, and it was lost since.
    """
    if record.stage is not Stage.COMMITTING or failback.is_under_way(record):
        return False
    if facts.pointer_is_readable and facts.pointer == record.under_way.installed:
        return True
    return observe.is_gone(record, facts) == "COMMITTED" or _has_begun_with(record, facts)


def _has_begun_with(record: ModelRecord, facts: Facts) -> bool:
    """Whether a server in another life serves the update, and the pointer, which it began with, cannot be read now."""
    update, server = record.under_way, facts.server
    if (
        facts.pointer_is_readable
        or server is None
        or server.incarnation == update.server_incarnation
        or server.trial is not None
    ):
        return False
    return server.active is not None and server.active.bundle_digest == update.bundle_digest


def committed(record: ModelRecord, facts: Facts, rules: Rules) -> Applied:
    """It serves for good: the floor rises, the breaker closes, the one before is kept."""
    if failback.is_under_way(record):
        return failback.committed(record, facts, rules)
    update = record.under_way
    floor = higher(update.revision, record.min_version, rules.policy)
    limits = rules.breakers[BreakerName.ACTIVATION]
    record = replace(
        record,
        committed=update.installed,
        previous=record.committed if record.committed != update.installed else record.previous,
        min_version=floor or record.min_version,
        activation=report(record.activation, Result.SUCCESS, limits, facts.jitter),
        unquarantined=tuple(digest for digest in record.unquarantined if digest != update.source_digest),
        approved=tuple(digest for digest in record.approved if digest != update.source_digest),
        warm_seconds_left=rules.observe.keep_warm_seconds,
        trouble=None,
    )
    how = "on probes" if update.on_probes else "on traffic"
    return transitions.end(record, facts, Outcome.COMMITTED, update.reason, f"{update.revision} is committed, {how}")


def decide_rollback(record: ModelRecord, facts: Facts, rules: Rules) -> Action:
    """Put back what is committed; when it serves, the update ends as was decided."""
    if reconcile.is_broken(record, facts, rules) and reconcile.can_go_back(record, facts):
        return Enter(Stage.ROLLING_BACK, reconcile.BROKEN, "what is committed no longer loads")
    step = reconcile.restore(record, facts, rules)
    if step is not None:
        return step
    ending = record.under_way.ending
    if ending is None or ending.ends_in is EndsIn.IDLE:
        return Enter(Stage.IDLE, "ROLLED_BACK", "what is committed serves")
    if ending.ends_in is EndsIn.RETRY:
        return Enter(Stage.GATING, "AGAIN", "it starts again, without blame")
    return Enter(Stage.HELD, record.under_way.reason, record.under_way.message)


def rolled_back(record: ModelRecord, facts: Facts) -> Applied:
    """What is committed serves again."""
    ending = record.under_way.ending
    return transitions.end(record, facts, Outcome.ABANDONED if ending is None else ending.outcome)


def again(record: ModelRecord, facts: Facts) -> Applied:
    """The same sealed bundle is proven and tried once more, unless something has come between."""
    update = record.under_way
    if record.paused and not update.forced:
        return transitions.end(record, facts, Outcome.ABANDONED)
    if record.is_quarantined(update.source_digest):
        return transitions.end(record, facts, Outcome.REFUSED, "QUARANTINED")
    if not update.bundle_digest:
        return transitions.end(record, facts, Outcome.ABANDONED)
    record = transitions.enter(
        record, Stage.GATING, load_id="", server_incarnation="", orderly=False, ending=None, reason="", message=""
    )
    return record, (transitions.event(record, facts, "update_started_again", f"{update.revision} is tried again"),)


def start_again(record: ModelRecord, facts: Facts, reason: str, message: str) -> Applied:
    """Take it back without blame; it is tried again, as long as its steps last."""
    return transitions.roll_back(record, facts, Ending(EndsIn.RETRY), reason, message)


def held(record: ModelRecord, facts: Facts) -> Applied:
    """A person must decide; nothing of it is loaded any more."""
    record = transitions.enter(record, Stage.HELD, load_id="")
    record = replace(record, has_garbage=True)
    return record, (transitions.event(record, facts, "update_held", record.under_way.message),)


def stuck(record: ModelRecord, facts: Facts, why: str) -> Applied:
    """Too many steps or too much time: the way back, then a person."""
    if record.stage is Stage.ROLLING_BACK and failback.is_under_way(record):
        return transitions.end(
            record, facts, Outcome.ABANDONED, HeldFor.STUCK.value, why
        )  # at rest the way back goes on
    if record.stage is Stage.ROLLING_BACK:
        ending = record.under_way.ending or Ending(EndsIn.HELD)
        ending = replace(ending, ends_in=EndsIn.HELD, held_for=ending.held_for or HeldFor.STUCK)
        return held(record.with_update(ending=ending, reason=HeldFor.STUCK.value, message=why), facts)
    return transitions.hold(record, facts, HeldFor.STUCK, why)
