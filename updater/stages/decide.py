"""One step: from the durable record and the facts to the one thing to do next. Pure.

The daemon repeats: draw the facts, `decide`, perform, `apply_result`, write the record. The record is
written before the next effect, so that entering a stage is durable before anything of that stage
happens; what is found half done is done again. After an outcome `Failed` the daemon pauses for
`rules.look_seconds`.
"""

from updater.core.effects import Action, Adopt, ApplyCommand, Begin, CollectGarbage, Enter, Wait
from updater.core.ports import Facts
from updater.core.record import ModelRecord, Stage
from updater.core.rules import Rules
from updater.stages import activate, commands, failback, finalize, gate, observe, reconcile, stage, verify, watch

_STEPS_TO_GO_BACK = 20  # a way back may take so many steps more than an update before it is given up
_UNTOUCHED = {Stage.STAGING: stage.decide, Stage.VERIFYING: verify.decide}  # the server knows nothing of it
_TRIED = {
    Stage.ACTIVATING: activate.decide,
    Stage.OBSERVING: observe.decide,
    Stage.COMMITTING: finalize.decide_commit,  # of a revision; of a return: `failback.decide_commit`
    Stage.ROLLING_BACK: finalize.decide_rollback,
}


def decide(record: ModelRecord, facts: Facts, rules: Rules) -> Action:  # noqa: PLR0911  one line a case
    """Choose the next step.

    Args:
        record: as it was written last.
        facts: drawn just now.
        rules: thresholds, limits and policies of this model.
    """
    if facts.is_first:
        return Begin()
    if facts.command is not None and commands.may_apply_now(record, facts.command):
        return ApplyCommand(facts.command)
    over = _over_limit(record, facts, rules) or failback.interrupted(record, facts)
    if over is not None:
        return over
    if record.stage in (Stage.IDLE, Stage.HELD):
        return _rest(record, facts, rules)
    if record.stage is Stage.GATING:
        return _service_first(record, facts, rules, keep=record.under_way.bundle_digest) or gate.decide(
            record, facts, rules
        )
    if record.stage in _UNTOUCHED:
        return _service_first(record, facts, rules) or _UNTOUCHED[record.stage](record, facts, rules)
    if record.stage is Stage.COMMITTING and failback.is_under_way(record):
        return failback.decide_commit(record, facts, rules)
    return _TRIED[record.stage](record, facts, rules)


def _over_limit(record: ModelRecord, facts: Facts, rules: Rules) -> Enter | None:
    """Whether an update has taken too many steps, or a stage too long."""
    update, server = record.update, facts.server
    if update is None or record.stage in (Stage.IDLE, Stage.HELD) or finalize.is_committed(record, facts):
        return None
    is_going_back = record.stage is Stage.ROLLING_BACK
    if update.steps > rules.max_steps + (_STEPS_TO_GO_BACK if is_going_back else 0):
        return Enter(Stage.HELD, "STUCK", f"it took more than {rules.max_steps} steps, starts of the updater included")
    limit = rules.stage_seconds.get(record.stage)
    if limit is None or update.stage_seconds <= limit:
        return None
    if is_going_back and (server is None or server.is_draining):
        return None  # a server that comes back serves what is committed
    return Enter(Stage.HELD, "DEADLINE", f"{record.stage} took more than {limit:.0f} s")


def _rest(record: ModelRecord, facts: Facts, rules: Rules) -> Action:
    """IDLE or HELD: what is committed serves; then the house is kept; then the hub is asked."""
    if record.committed is None and facts.pointer is not None:
        return Adopt(facts.pointer)
    if reconcile.is_broken(record, facts, rules) and (
        record.stage is Stage.IDLE or reconcile.can_go_back(record, facts)
    ):
        return Enter(Stage.ROLLING_BACK, reconcile.BROKEN, "what is committed no longer loads")
    step = reconcile.restore(record, facts, rules)
    if step is not None and not isinstance(step, Wait):
        return step
    own = _own_update(record, facts) if record.stage is Stage.IDLE else None
    if own is not None:
        return own
    if record.has_garbage:
        return _garbage(record, facts, rules)
    return watch.look(record, rules) or step or Wait(rules.look_seconds)


def _own_update(record: ModelRecord, facts: Facts) -> Enter | None:
    """An update that neither the hub nor a person has asked for."""
    if failback.is_due(record, facts):
        return Enter(Stage.GATING, "RETURN", "the device that ran out of memory is tried again")
    if _is_converted_otherwise(record, facts):
        return Enter(Stage.VERIFYING, "RECONVERT", "this build converts what is committed otherwise")
    return None


def _service_first(record: ModelRecord, facts: Facts, rules: Rules, *, keep: str = "") -> Action | None:
    """Before an update goes on: does what is committed serve? A server that is away is no reason to wait."""
    if reconcile.is_broken(record, facts, rules):
        return Enter(Stage.ROLLING_BACK, reconcile.BROKEN, "what is committed no longer loads")
    if record.committed is None and facts.server is not None and facts.server.trial is None:
        return None
    step = reconcile.restore(record, facts, rules, keep=keep)
    return None if isinstance(step, Wait) else step


def _is_converted_otherwise(record: ModelRecord, facts: Facts) -> bool:
    wanted = facts.committed_converts_to
    if record.committed is None or record.paused or not wanted or not record.activation.may_begin:
        return False
    return wanted not in (record.committed.bundle_digest, *record.blocked)


def _garbage(record: ModelRecord, facts: Facts, rules: Rules) -> CollectGarbage:
    kept = [row for row in (record.committed, record.previous) if row is not None]
    update = record.update
    bundles = {row.bundle_digest for row in kept} | ({update.bundle_digest} if update is not None else set())
    if facts.pointer is not None:
        bundles.add(facts.pointer.bundle_digest)
    if facts.server is not None:
        bundles |= {slot.bundle_digest for slot in facts.server.occupied}
    sources = {row.source_digest for row in kept} | ({update.source_digest} if update is not None else set())
    return CollectGarbage(
        keep_bundles=frozenset(bundles - {""}),
        keep_sources=frozenset(sources - {""}),
        keep_update_id="" if update is None else update.update_id,
        cap_bytes=rules.cap_bytes,
    )
