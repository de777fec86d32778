"""VERIFYING: the files are checked, converted and sealed. Pure."""

from updater.core.checks import MISMATCH_REASONS
from updater.core.effects import (
    CONVERTER_REASONS,
    DISK_REASONS,
    MEMORY_REASONS,
    Effect,
    EffectFailure,
    FailureKind,
    Result,
    Sealed,
    VerifyAndSeal,
    Wait,
)
from updater.core.facts import Facts
from updater.core.record import Evidence, HeldFor, ModelRecord, Stage, UpdateKind
from updater.core.rules import Rules
from updater.stages import reconcile, stage, transitions
from updater.stages.transitions import Transition

DEFAULT_PRECISION = "float32"
_PRECISION_SECONDS = 30.0  # longest wait for a server that has not reported its devices


def decide(record: ModelRecord, facts: Facts, rules: Rules) -> Effect | Wait:
    """Verify and seal, in the computing precision of the server's device."""
    update = record.under_way
    if update.retry_in_seconds > 0:
        return Wait(min(rules.look_seconds, update.retry_in_seconds), "before it is verified again")
    precision = _precision_of(facts, rules)
    if not precision and update.stage_seconds < _PRECISION_SECONDS:
        return Wait(rules.look_seconds, "the server has not reported its devices yet")
    return VerifyAndSeal(
        update_id=update.update_id,
        revision=update.revision,
        source_digest=update.source_digest,
        precision=precision or DEFAULT_PRECISION,
        compatible_with="" if record.committed is None else record.committed.bundle_digest,
        is_kept_source=update.kind is UpdateKind.RECONVERT,
        may_change_labels=update.approved,
    )


def apply_result(record: ModelRecord, effect: Effect, result: Result, facts: Facts, rules: Rules) -> Transition:
    """Apply the result of verification and sealing."""
    match result:
        case Sealed():
            return _apply_sealed(record, result, facts, rules)
        case EffectFailure(reason="LABELS_CHANGED", message=message) if not record.under_way.approved:
            return transitions.hold(record, facts, HeldFor.LABELS, message)
        case EffectFailure() if isinstance(effect, VerifyAndSeal):
            return _apply_failed(record, result, facts, rules)
        case _:
            return reconcile.apply_result(record, effect, result, facts, rules)


def _apply_sealed(record: ModelRecord, result: Sealed, facts: Facts, rules: Rules) -> Transition:
    update = record.under_way
    if record.is_quarantined(result.source_digest):
        return stage.refuse_quarantined(record, facts)
    if result.source_digest != update.source_digest:
        return stage.apply_mismatch(record, facts, rules, "SOURCE_MISMATCH: the sealed source is not the listed one")
    if result.bundle_digest in record.blocked:
        return transitions.hold(record, facts, HeldFor.CONVERSION, "this build's conversion of it has failed before")
    message, evidence = f"{update.revision} is verified and sealed", None
    if result.notes:
        count = "1 note" if len(result.notes) == 1 else f"{len(result.notes)} notes"
        message, evidence = f"{message}, with {count}", Evidence(notes=result.notes)
    event = transitions.make_event(record, facts, "bundle_sealed", message, evidence=evidence)
    return Transition(transitions.enter(record, Stage.GATING, bundle_digest=result.bundle_digest), (event,))


def _apply_failed(record: ModelRecord, failed: EffectFailure, facts: Facts, rules: Rules) -> Transition:
    """Fetch files again if their bytes differ from the listing; refuse the revision for any other fault."""
    update = record.under_way
    why = f"{failed.reason}: {failed.message}"
    is_ours = update.kind is UpdateKind.RECONVERT
    if failed.reason in MISMATCH_REASONS and not is_ours:
        return stage.apply_mismatch(record, facts, rules, why)
    if failed.kind is FailureKind.PERMANENT:
        return transitions.refuse(record, facts, rules, failed.reason, failed.message)
    if failed.kind is not FailureKind.NOT_READY and update.attempts + 1 < rules.max_attempts:
        return _retry_later(record, failed, facts, rules)
    return _give_up(record, failed, facts, rules)


def _give_up(record: ModelRecord, failed: EffectFailure, facts: Facts, rules: Rules) -> Transition:
    """Hold the update for what a person can mend, or try the revision again later."""
    update, why = record.under_way, f"{failed.reason}: {failed.message}"
    if failed.reason in DISK_REASONS:
        return stage.hold_for_space(record, failed, facts)
    if failed.reason in MEMORY_REASONS:
        return transitions.hold(record, facts, HeldFor.DOES_NOT_FIT, f"{update.revision}: {failed.message}")
    if update.kind is UpdateKind.RECONVERT and failed.kind is not FailureKind.NOT_READY:
        return transitions.hold(record, facts, HeldFor.CONVERSION, why)
    if failed.reason in CONVERTER_REASONS:  # tried later, all of it would be downloaded again, each time
        return transitions.hold(record, facts, HeldFor.INCONCLUSIVE, why)
    return stage.give_up(record, facts, rules, why)


def _retry_later(record: ModelRecord, failed: EffectFailure, facts: Facts, rules: Rules) -> Transition:
    record = transitions.retry_later(record, rules)
    if failed.reason in MEMORY_REASONS:  # a previous model that is kept warm is retired soon
        pause = max(record.under_way.retry_in_seconds, record.warm_seconds_left)
        record = record.with_update(retry_in_seconds=pause)
    return transitions.with_event(record, facts, "verification_failed", f"{failed.reason}: {failed.message}")


def _precision_of(facts: Facts, rules: Rules) -> str:
    """Precision of the device that a candidate will be loaded on; empty if it is not known."""
    server = facts.server
    if server is None:
        return ""
    wanted = server.active.device if server.active is not None else rules.device
    fitting = [row for row in server.devices if _is_device(row.device, wanted)]
    fitting.sort(key=lambda row: row.device == "cpu")  # "auto" takes a card where there is one
    return fitting[0].precision if fitting else ""


def _is_device(device: str, wanted: str) -> bool:
    return wanted in {"auto", device} or device.startswith(f"{wanted}:")
