"""GATING: the candidate is loaded and proven on golden answers. Pure; the verdict itself: `gate_verdict`."""

from updater.actions import Action, Enter, Failed, FaultKind, Gated, LoadBundle, Loaded, RetireLoad, RunGate, Wait
from updater.pipeline import candidate, memory, moves, returning
from updater.pipeline.gate_verdict import GateVerdict, Judgement, judge
from updater.pipeline.moves import Concluded
from updater.ports import Facts, ServerState, SlotSeen
from updater.record import APPROVABLE, GateKey, HeldFor, ModelRecord, Stage
from updater.rules import Mode, Rules

# The server was not asked in a world that it is in any more, or the slot was needed: nobody's fault.
MOVED = frozenset(
    {"GENERATION_CONFLICT", "SERVER_UNREACHABLE", "DRAINING", "NO_FREE_SLOT", "LOAD_YIELDED", "SLOT_IN_USE"}
)
_LOST_BUNDLE = frozenset({"BUNDLE_UNKNOWN", "BUNDLE_BROKEN"})


def decide(record: ModelRecord, facts: Facts, rules: Rules) -> Action:  # noqa: PLR0911  one line a case
    """Load the candidate beside what serves, then ask both."""
    update, server = record.under_way, facts.server
    if update.pause_seconds > 0:
        return Wait(min(rules.look_seconds, update.pause_seconds), "before it is tried again")
    problem = golden_problem(record, facts)
    if problem is not None and not update.approved and not returning.is_under_way(record):
        return Enter(Stage.HELD, problem.value, _golden_advice(problem, facts))
    if server is None or server.is_draining:
        return Wait(rules.look_seconds, "the server cannot be reached or is about to end")
    if record.committed is not None and (server.active is None or server.loaded(server.active_load_id) is None):
        return Wait(rules.look_seconds, "what is committed is being loaded")
    slot = candidate.slot_of(update, server)
    if slot is None or server.loaded(slot.load_id) is None or slot.load_id != update.load_id:
        return _load(record, server, slot)
    key = gate_key(record, facts, slot)
    if update.gate_passed == key:
        return Enter(Stage.ACTIVATING, "GATE_PASSED", "the gate has passed it before")
    golden = facts.golden if key.golden_digest else None
    return RunGate(slot.load_id, server.active_load_id if record.committed is not None else "", golden)


def golden_problem(record: ModelRecord, facts: Facts) -> HeldFor | None:
    """Why there is nothing to prove a candidate on; a first install may go on built-in probes."""
    if facts.golden.problem:
        return HeldFor.GOLDEN_UNUSABLE
    if not facts.golden.digest and record.committed is not None:
        return HeldFor.NO_GOLDEN
    return None


def gate_key(record: ModelRecord, facts: Facts, slot: SlotSeen) -> GateKey:
    """What the verdict will depend on. A set without expectations has nothing to say at a first install."""
    golden = facts.golden
    is_usable = bool(golden.digest) and not golden.problem and (golden.expected > 0 or record.committed is not None)
    digest = golden.digest if is_usable else ""
    return GateKey(record.under_way.bundle_digest, digest, slot.device, slot.precision)


def loaded(record: ModelRecord, result: Loaded, facts: Facts, _rules: Rules) -> Concluded:
    """It is in its slot."""
    record = record.with_update(load_id=result.load_id)
    return record, (moves.event(record, facts, "candidate_loaded", f"{record.under_way.revision} is loaded"),)


def load_failed(record: ModelRecord, fault: Failed, facts: Facts, rules: Rules) -> Concluded:  # noqa: PLR0911  one line a case
    """It could not be loaded: does it not fit, is it broken, or was it in the way?"""
    why = f"{fault.reason}: {fault.message}"
    if fault.reason in MOVED:
        return record.with_update(pause_seconds=rules.look_seconds), ()
    if fault.reason in memory.REASONS:
        return moves.hold(record, facts, HeldFor.DOES_NOT_FIT, memory.sentence(record.under_way.revision, fault))
    if returning.is_under_way(record) and fault.kind is FaultKind.PERMANENT:
        return moves.stay(record, facts, fault.reason, fault.message)
    if fault.reason in _LOST_BUNDLE:
        record = moves.enter(record, Stage.STAGING, bundle_digest="", load_id="")
        return record, (moves.event(record, facts, "bundle_lost", f"{why}; it is fetched again"),)
    if record.under_way.attempts + 1 < rules.max_attempts:
        record = moves.try_again(record.with_update(load_id=""), rules)
        return record, (moves.event(record, facts, "candidate_load_failed", why),)
    if fault.kind is FaultKind.PERMANENT:
        return moves.refuse(record, facts, rules, fault.reason, fault.message)
    return moves.hold(record, facts, HeldFor.INCONCLUSIVE, why)


def gated(record: ModelRecord, result: Gated, facts: Facts, rules: Rules) -> Concluded:
    """The gate ran to its end: pass, refuse, or let a person decide."""
    update, answers = record.under_way, result.answers
    is_return = returning.is_under_way(record)
    judgement = judge(returning.self_test(answers) if is_return else answers, rules.gate)
    if judgement.verdict is GateVerdict.REFUSE:
        return moves.refuse(record, facts, rules, judgement.reason, judgement.message, evidence=judgement.evidence)
    held_for = judgement.held_for
    if held_for is not None and not (update.approved and held_for in APPROVABLE):
        return moves.hold(record, facts, held_for, judgement.message, evidence=judgement.evidence)
    slot = None if facts.server is None else facts.server.loaded(update.load_id)
    if slot is not None:
        key = GateKey(update.bundle_digest, answers.golden_digest, slot.device, slot.precision)
        record = record.with_update(gate_passed=key)
    record = record.with_update(on_probes=not answers.golden_digest)
    return passed(record, facts, rules, judgement)


def passed(record: ModelRecord, facts: Facts, rules: Rules, judgement: Judgement | None = None) -> Concluded:
    """Good enough to answer callers on trial, unless policy asks a person first."""
    update, evidence = record.under_way, None if judgement is None else judgement.evidence
    is_wanted = update.approved or update.forced or returning.is_under_way(record)
    if rules.mode is Mode.APPROVE and not is_wanted and record.committed is not None:
        message = f"{update.revision} passed its gate and waits for approval"
        return moves.hold(record, facts, HeldFor.APPROVAL, message, evidence=evidence)
    server = facts.server
    if server is None:
        return record, ()
    record = moves.enter(
        record,
        Stage.ACTIVATING,
        server_life=server.life,
        orderly=False,
        at_activation=candidate.counts_of(update, server),
    )
    message = f"{update.revision} passed its gate" + ("" if judgement is None else f": {judgement.message}")
    return record, (moves.event(record, facts, "gate_passed", message, evidence=evidence),)


def gate_failed(record: ModelRecord, fault: Failed, facts: Facts, rules: Rules) -> Concluded:
    """The gate was cut off: it counts as not run, and a gate that never comes to an end is no pass."""
    why = f"{fault.reason}: {fault.message}"
    if fault.reason in memory.REASONS:
        return moves.hold(record, facts, HeldFor.DOES_NOT_FIT, memory.sentence(record.under_way.revision, fault))
    if record.under_way.attempts + 1 >= rules.max_attempts:
        return moves.hold(record, facts, HeldFor.INCONCLUSIVE, f"the gate came to no verdict: {why}")
    record = moves.try_again(record.with_update(load_id=""), rules)
    return record, (moves.event(record, facts, "gate_interrupted", why),)


def _load(record: ModelRecord, server: ServerState, slot: SlotSeen | None) -> Action:
    update = record.under_way
    others = candidate.others(server)
    if slot is None and others and len(server.occupied) >= len(server.slots):
        return RetireLoad(others[0].load_id, update.update_id, server.generation)
    return LoadBundle(update.bundle_digest, update.device, update.update_id, server.generation)


def _golden_advice(problem: HeldFor, facts: Facts) -> str:
    if problem is HeldFor.GOLDEN_UNUSABLE:
        return f"the golden set cannot be used ({facts.golden.problem}); `hotslot golden show` says why"
    return (
        "there is no golden set to prove it on: keep the active model's answers with `hotslot golden record FOLDER`, "
        "name the folder in hotslot.toml, and resume; or approve this digest"
    )
