"""The way from the gate to all callers: SHADOWING, and the steps of a canary. Pure.

A candidate in SHADOWING answers copies of requests, and no caller: whether it fails them, or answers more of them
otherwise than the golden set predicts, is known before its trial. A canary is a trial whose share of the requests grows
by steps; each step has a window of its own.
"""

from updater.core.effects import CopyRequests, Effect, EffectFailure, Result, ShadowCopies, Wait
from updater.core.facts import Facts, ServerState, ShadowSnapshot
from updater.core.record import Evidence, HeldFor, ModelRecord, Stage, Update, UpdateKind
from updater.core.rules import Rollout, Rules
from updater.stages import compare, reconcile, transitions
from updater.stages.compare import ChangesJudgement
from updater.stages.transitions import Transition


def leave_gate(record: ModelRecord, facts: Facts, server: ServerState, rules: Rules) -> ModelRecord:
    """The record in the stage after the gate: SHADOWING if the rollout begins with it, else ACTIVATING."""
    if record.committed is not None and rules.rollout.rollout is Rollout.SHADOW and _has_stages(record.under_way):
        slot = transitions.find_slot(record.under_way, server)
        return transitions.enter(
            record,
            Stage.SHADOWING,
            is_shadow_over=False,
            server_incarnation=server.incarnation,
            shadow_slot=-1 if slot is None else server.slots.index(slot),
            slot_deaths=0 if slot is None else slot.restarts,
        )
    return begin_activation(record, facts, server, rules)


def begin_activation(record: ModelRecord, facts: Facts, server: ServerState, rules: Rules) -> ModelRecord:
    """The record in ACTIVATING, with the plan of the trial's steps."""
    update = record.under_way
    is_canary = record.committed is not None and rules.rollout.rollout is Rollout.CANARY and _has_stages(update)
    return transitions.enter(
        record,
        Stage.ACTIVATING,
        server_incarnation=server.incarnation,
        boot_id=facts.boot_id,
        orderly=False,
        at_activation=transitions.find_counts(update, server),
        percents=rules.rollout.steps if is_canary else (),
        percent_step=0,
    )


def decide_shadow(record: ModelRecord, facts: Facts, rules: Rules) -> Effect | Wait | Transition:  # noqa: PLR0911  one line a case
    """Have the candidate answer copies until enough of its answers were compared, or the time is over."""
    update, server, shadow = record.under_way, facts.server, rules.rollout
    if server is None or server.is_draining:
        return Wait(rules.look_seconds, "the server cannot be reached or is about to end")
    slot, is_late = transitions.find_slot(update, server), update.stage_seconds >= shadow.shadow_max_seconds
    if server.trial is not None:
        return transitions.retry(record, facts, "TRIAL_UNKNOWN", "another revision is on trial")
    if slot is None or (is_late and not slot.is_loaded):
        return _apply_gone(record, facts, server, rules)
    changes = compare.judge_changes(update, server, slot.load_id, rules.compare)
    evidence = Evidence(changes.measured, changes=changes.rows)
    ours = server.shadow if server.shadow is not None and server.shadow.load_id == slot.load_id else None
    if ours is not None and _has_failed(ours, rules):
        return _end_failed(record, facts, rules, ours, evidence)
    if changes.beyond:
        return transitions.hold(record, facts, HeldFor.CHANGED_ANSWERS, changes.beyond, evidence=evidence)
    if update.is_shadow_over or is_late or changes.compared >= shadow.shadow_min_answers:
        return _end_shadow(record, facts, server, rules, changes)
    if slot.is_loaded and ours is None:
        copies = ShadowCopies(shadow.shadow_share, rules.compare.busy_share)
        return CopyRequests(slot.load_id, copies, update.update_id, server.generation)
    return Wait(rules.observe.look_seconds, f"{changes.compared} answers were compared")


def apply_shadow_result(record: ModelRecord, effect: Effect, result: Result, facts: Facts, rules: Rules) -> Transition:
    """The next facts show whether requests are copied; a failed call is repeated, for as long as the stage lasts."""
    if isinstance(effect, CopyRequests) and isinstance(result, EffectFailure):
        why = f"{result.reason}: {result.message}"
        return transitions.with_event(transitions.retry_later(record, rules), facts, "shadow_failed", why)
    return reconcile.apply_result(record, effect, result, facts, rules)


def advance(record: ModelRecord, facts: Facts, why: str, evidence: Evidence | None = None) -> Transition:
    """The trial gets the next percentage of the requests, and another window.

    With `evidence`, that of a window without fault, it is judged by what comes from now on; else what it has failed
    since the last step still counts.
    """
    update, server = record.under_way, facts.server
    record = record.with_update(percent_step=update.percent_step + 1, stage_seconds=0.0)
    if evidence is not None and server is not None:
        counts = transitions.find_counts(update, server)
        record = record.with_update(at_activation=counts, probes_good=0, probes_bad=0, probes_not_finite=0)
    message = (
        f"{update.revision} gets {record.under_way.percent:g} % of the requests, after {update.percent:g} %: {why}"
    )
    return transitions.with_event(record, facts, "canary_advanced", message, evidence=evidence)


def promote(record: ModelRecord, facts: Facts) -> Transition:
    """The trial gets all requests, and another window."""
    update = record.under_way
    skipped = record.with_update(percent_step=max(update.percent_step, len(update.percents) - 2))
    return advance(skipped, facts, "an operator wants it")


def _has_stages(update: Update) -> bool:
    """Whether an update is rolled out by stages: not a failback, whose bundle has answered callers before."""
    return update.kind is not UpdateKind.FAILBACK


def _end_failed(
    record: ModelRecord, facts: Facts, rules: Rules, shadow: ShadowSnapshot, evidence: Evidence
) -> Transition:
    """Refuse a candidate that fails copies; hold it if most failures are the machine's, which has too little memory."""
    failed, total = shadow.failed, shadow.failed + shadow.comparison.requests
    if 2 * shadow.out_of_memory >= failed and not shadow.judged.not_finite:
        message = (
            f"{record.under_way.revision} ran out of memory for {shadow.out_of_memory} of {total} copies of requests"
        )
        return transitions.hold(record, facts, HeldFor.DOES_NOT_FIT, message, evidence=evidence)
    message = f"it failed {failed} of {total} copies of requests"
    return transitions.refuse(record, facts, rules, "COPIES_FAILED", message, evidence=evidence)


def _has_failed(shadow: ShadowSnapshot, rules: Rules) -> bool:
    observe, total = rules.observe, shadow.failed + shadow.comparison.requests
    return shadow.failed >= observe.burst_failures and shadow.failed > observe.error_margin * total


def _apply_gone(record: ModelRecord, facts: Facts, server: ServerState, rules: Rules) -> Transition:
    """Retry without blame, unless its runner has died too often; a slot counts all deaths in it, whatever it held."""
    update, number = record.under_way, record.under_way.shadow_slot
    is_same = server.incarnation == update.server_incarnation and 0 <= number < len(server.slots)
    if not is_same or server.slots[number].restarts <= update.slot_deaths:
        return transitions.retry(record, facts, "CANDIDATE_GONE", "the candidate's runner is gone")
    deaths = update.shadow_deaths + 1
    record = record.with_update(shadow_deaths=deaths)
    if deaths <= rules.observe.max_restarts:
        return transitions.retry(record, facts, "CANDIDATE_GONE", "the candidate's runner has died")
    message = f"its runner died {deaths} times while it answered copies of requests"
    return transitions.refuse(record, facts, rules, "RUNNER_DIED", message)


def _end_shadow(
    record: ModelRecord, facts: Facts, server: ServerState, rules: Rules, changes: ChangesJudgement
) -> Transition:
    revision = record.under_way.revision
    record = begin_activation(record, facts, server, rules)
    message = f"{revision} has answered copies: {changes.compared} answers were compared"
    evidence = Evidence(changes.measured, changes=changes.rows)
    return transitions.with_event(record, facts, "shadow_ended", message, evidence=evidence)
