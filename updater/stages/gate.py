"""GATING: the candidate is loaded and judged by its golden answers. Pure."""

from updater.core.comparison import GateKey
from updater.core.effects import (
    MEMORY_REASONS,
    Effect,
    EffectFailure,
    FailureKind,
    Gated,
    LoadBundle,
    Loaded,
    Result,
    RetireLoad,
    RunGate,
    Wait,
)
from updater.core.facts import Facts, ServerState, SlotSnapshot
from updater.core.golden import GateAnswers
from updater.core.record import APPROVABLE, HeldFor, ModelRecord, Stage
from updater.core.rules import Mode, Rules
from updater.stages import bridge, failback, reconcile, rollout, transitions
from updater.stages.gate_verdict import (
    LATE_ANSWERS,
    GateJudgement,
    GateVerdict,
    are_missing,
    expect_trial,
    is_one_sided,
    judge,
)
from updater.stages.transitions import Transition

# The server's state has changed since the facts were drawn, or the slot was needed.
MOVED = frozenset(
    {"GENERATION_CONFLICT", "SERVER_UNREACHABLE", "DRAINING", "NO_FREE_SLOT", "LOAD_YIELDED", "SLOT_IN_USE"}
)
_TOO_FEW_ANSWERS = "the active model has no answer to most of the questions, so that too little was compared"
_LOST_BUNDLE = frozenset({"BUNDLE_UNKNOWN", "BUNDLE_BROKEN"})


def decide(record: ModelRecord, facts: Facts, rules: Rules) -> Effect | Wait | Transition:  # noqa: C901, PLR0911  one line a case
    """Load the candidate beside the active slot, then send the golden questions to both."""
    update, server = record.under_way, facts.server
    if update.retry_in_seconds > 0:
        return Wait(min(rules.look_seconds, update.retry_in_seconds), "before it is tried again")
    if not facts.golden.is_read:
        return Wait(0.0, "the golden set is being read")
    problem = find_golden_problem(record, facts)
    if problem is not None and not update.approved and not failback.is_under_way(record):
        return transitions.hold(record, facts, problem, _advise_on_golden(problem, facts))
    if server is None or server.is_draining:
        return Wait(rules.look_seconds, "the server cannot be reached or is about to end")
    is_gap = record.bridge is not None and record.bridge.is_gap
    opening = bridge.open_gap(record, facts, server, rules) if is_gap else None
    if opening is not None:
        return opening
    has_committed = record.committed is not None and not is_gap
    if has_committed and (server.active is None or server.loaded(server.active_load_id) is None):
        return Wait(rules.look_seconds, "the committed revision is being loaded")
    if record.bridge is not None and record.bridge.device != update.device:
        return Transition(record.with_update(device=record.bridge.device, load_id=""))
    move = None if record.bridge is None else bridge.find_step(record, server, rules)
    if move is not None:
        return move
    slot = transitions.find_slot(update, server)
    if slot is None or server.loaded(slot.load_id) is None or slot.load_id != update.load_id:
        return _load(record, server, slot)
    key = build_gate_key(record, facts, slot)
    if update.gate_passed == key:
        return _pass(record, facts, server, rules)
    golden = facts.golden if key.golden_digest else None
    return RunGate(slot.load_id, server.active_load_id if has_committed else "", golden)


def apply_result(record: ModelRecord, effect: Effect, result: Result, facts: Facts, rules: Rules) -> Transition:
    """Apply the result of the candidate's load or of the gate."""
    match effect:
        case LoadBundle() if _is_candidate(record, effect) and isinstance(result, Loaded):
            return _apply_loaded(record, result, facts)
        case LoadBundle() if _is_candidate(record, effect) and isinstance(result, EffectFailure):
            return _apply_load_failed(record, result, facts, rules)
        case RunGate() if isinstance(result, Gated):
            return _apply_gated(record, effect, result, facts, rules)
        case RunGate() if isinstance(result, EffectFailure):
            return _apply_gate_failed(record, result, facts, rules)
        case _:
            return reconcile.apply_result(record, effect, result, facts, rules)


def find_golden_problem(record: ModelRecord, facts: Facts) -> HeldFor | None:
    """Why the golden set cannot be used to judge a candidate; a first install may use built-in probes instead."""
    if facts.golden.problem:
        return HeldFor.GOLDEN_UNUSABLE
    if not facts.golden.digest and record.committed is not None:
        return HeldFor.NO_GOLDEN
    return None


def build_gate_key(record: ModelRecord, facts: Facts, slot: SlotSnapshot) -> GateKey:
    """The inputs of the verdict. At a first install a set without expected answers cannot be used."""
    golden = facts.golden
    is_usable = bool(golden.digest) and not golden.problem and (golden.expected > 0 or record.committed is not None)
    digest = golden.digest if is_usable else ""
    return GateKey(record.under_way.bundle_digest, digest, slot.device, slot.precision)


def _is_candidate(record: ModelRecord, load: LoadBundle) -> bool:
    """Whether a load is the candidate's and not a reload of the committed revision."""
    update = record.under_way
    return (load.bundle_digest, load.device) == (update.bundle_digest, update.device)


def _apply_loaded(record: ModelRecord, result: Loaded, facts: Facts) -> Transition:
    record = record.with_update(load_id=result.load_id)
    return transitions.with_event(record, facts, "candidate_loaded", f"{record.under_way.revision} is loaded")


def _apply_load_failed(record: ModelRecord, failed: EffectFailure, facts: Facts, rules: Rules) -> Transition:  # noqa: PLR0911  one line a case
    """Apply a failed load: the candidate does not fit, is broken, is missing on disk, or its slot was needed."""
    update, why = record.under_way, f"{failed.reason}: {failed.message}"
    if failed.reason in MOVED:
        return Transition(record.with_update(retry_in_seconds=rules.look_seconds))
    if failed.reason in MEMORY_REASONS:
        message = transitions.describe_shortage(update.revision, failed, is_alone=record.bridge is not None)
        if facts.server is not None and bridge.may_begin(record, facts.server, rules):
            return bridge.begin(record, facts, facts.server, rules, message)
        return transitions.hold(record, facts, HeldFor.DOES_NOT_FIT, message)
    if failback.is_under_way(record) and failed.kind is FailureKind.PERMANENT:
        return transitions.fail_failback(record, facts, failed.reason, failed.message)
    if failed.reason in _LOST_BUNDLE:
        record = transitions.enter(record, Stage.STAGING, bundle_digest="", load_id="")
        return transitions.with_event(record, facts, "bundle_lost", f"{why}; it is fetched again")
    if update.attempts + 1 < rules.max_attempts:
        record = transitions.retry_later(record.with_update(load_id=""), rules)
        return transitions.with_event(record, facts, "candidate_load_failed", why)
    if failed.kind is FailureKind.PERMANENT:
        return transitions.refuse(record, facts, rules, failed.reason, failed.message)
    return transitions.hold(record, facts, HeldFor.INCONCLUSIVE, why)


def _apply_gated(record: ModelRecord, effect: RunGate, result: Gated, facts: Facts, rules: Rules) -> Transition:
    """Judge a completed gate, then activate, refuse, or hold."""
    update, answers, server = record.under_way, result.answers, facts.server
    if server is None:
        raise RuntimeError("the gate was run without a server")
    if record.bridge is not None and bridge.must_ask(record):  # a candidate is never compared with itself
        is_its = bridge.is_serving(record, server) and effect.load_id == server.active_load_id
        return _keep_answers(record, answers, facts, rules) if is_its else Transition(record)
    compared = answers if record.bridge is None else bridge.compare_with_kept(record, answers)
    if compared is None:
        return transitions.hold(record, facts, HeldFor.INCONCLUSIVE, "the golden set has changed during its gate")
    answers = compared
    judgement = judge(failback.self_test(answers) if failback.is_under_way(record) else answers, rules.gate)
    message, evidence, held_for = judgement.message, judgement.evidence, judgement.held_for
    if judgement.verdict is GateVerdict.REFUSE:
        return transitions.refuse(record, facts, rules, judgement.reason, message, evidence=evidence)
    is_alone = is_one_sided(answers) and not failback.is_under_way(record)
    if judgement.reason == LATE_ANSWERS or is_alone:  # not for approval: a worse model may hide behind missing answers
        message = _TOO_FEW_ANSWERS if is_alone else message
        failed = EffectFailure(FailureKind.INCONCLUSIVE, LATE_ANSWERS, message)
        return _apply_gate_failed(record, failed, facts, rules)
    if held_for is not None and not (update.approved and held_for in APPROVABLE):
        return transitions.hold(record, facts, held_for, message, evidence=evidence)
    slot = server.loaded(update.load_id)
    if slot is not None:
        key = GateKey(update.bundle_digest, answers.golden_digest, slot.device, slot.precision)
        record = record.with_update(gate_passed=key)
    record = record.with_update(on_probes=not answers.golden_digest, expected_changes=expect_trial(answers))
    return _pass(record, facts, server, rules, judgement)


def _keep_answers(record: ModelRecord, answers: GateAnswers, facts: Facts, rules: Rules) -> Transition:
    """Keep the active model's answers before it is unloaded; ask again if most are missing: later that is too late."""
    if are_missing([row.candidate for row in answers.questions]):
        failed = EffectFailure(FailureKind.INCONCLUSIVE, LATE_ANSWERS, _TOO_FEW_ANSWERS)
        return _apply_gate_failed(record, failed, facts, rules)
    return Transition(bridge.keep_answers(record, answers))


def _pass(
    record: ModelRecord, facts: Facts, server: ServerState, rules: Rules, judgement: GateJudgement | None = None
) -> Transition:
    """Activate the candidate, or hold it if the policy requires approval."""
    update, evidence = record.under_way, None if judgement is None else judgement.evidence
    is_wanted = update.approved or update.forced or failback.is_under_way(record)
    if rules.mode is Mode.APPROVE and not is_wanted and record.committed is not None:
        message = f"{update.revision} passed its gate and waits for approval"
        return transitions.hold(record, facts, HeldFor.APPROVAL, message, evidence=evidence)
    record = rollout.leave_gate(record, facts, server, rules)
    message = f"{update.revision} passed its gate" + ("" if judgement is None else f": {judgement.message}")
    return transitions.with_event(record, facts, "gate_passed", message, evidence=evidence)


def _apply_gate_failed(record: ModelRecord, failed: EffectFailure, facts: Facts, rules: Rules) -> Transition:
    """Retry an interrupted gate, which counts as not run; hold after too many attempts."""
    why = f"{failed.reason}: {failed.message}"
    if failed.reason in MEMORY_REASONS:
        is_alone = record.bridge is not None
        message = transitions.describe_shortage(record.under_way.revision, failed, is_alone=is_alone)
        if facts.server is not None and bridge.may_begin(record, facts.server, rules):
            return bridge.begin(record, facts, facts.server, rules, message)
        return transitions.hold(record, facts, HeldFor.DOES_NOT_FIT, message)
    if record.under_way.attempts + 1 >= rules.max_attempts:
        return transitions.hold(record, facts, HeldFor.INCONCLUSIVE, f"the gate reached no verdict: {why}")
    record = transitions.retry_later(record.with_update(load_id=""), rules)
    return transitions.with_event(record, facts, "gate_interrupted", why)


def _load(record: ModelRecord, server: ServerState, slot: SlotSnapshot | None) -> Effect:
    update = record.under_way
    spare = transitions.list_spare_slots(server)
    if slot is None and spare and len(server.occupied) >= len(server.slots):
        return RetireLoad(spare[0].load_id, update.update_id, server.generation)
    return LoadBundle(update.bundle_digest, update.device, update.update_id, server.generation)


def _advise_on_golden(problem: HeldFor, facts: Facts) -> str:
    if problem is HeldFor.GOLDEN_UNUSABLE:
        return f"the golden set cannot be used ({facts.golden.problem}); `hotslot golden show` shows why"
    return (
        "there is no golden set to prove it on: keep the active model's answers with `hotslot golden record FOLDER`, "
        "name the folder in hotslot.toml, and resume; or approve this digest"
    )
