"""Room for a candidate on a card that holds one model: the CPU bridge, and the gap.

Pure. With `rollout = "cpu_bridge"`, a candidate that does not fit beside the committed revision moves that one to the
CPU: it is loaded there in the other slot, activated and committed, and its slot on the card is retired. The candidate
is then gated and tried on the card, beside the CPU's slot as the previous one. A commit ends the bridge. When the
candidate has failed, the committed revision returns to the card in the same way. `ModelRecord.bridge` is written before
the first step, so that each step follows from it and from what the server holds.

With `rollout = "unload_first"` the committed revision is unloaded instead: nothing answers until the candidate is on
trial, which has no previous slot, as at a first install. If the candidate has failed, the committed one is loaded
again. The server does that by itself when the lease of the gap has run out: the updater did not run.
"""

from dataclasses import replace

from updater.core.bridge import Bridge, KeptAnswers
from updater.core.effects import (
    MEMORY_REASONS,
    ActivateLoad,
    Effect,
    EffectFailure,
    LoadBundle,
    RetireLoad,
    RunGate,
    Wait,
)
from updater.core.facts import CPU_DEVICE, Facts, ServerState
from updater.core.golden import GateAnswers
from updater.core.record import EndsIn, HeldFor, ModelRecord, Stage, UpdateKind
from updater.core.rules import Rollout, Rules
from updater.stages import transitions
from updater.stages.transitions import Transition

_MAX_PAUSE_SECONDS = 600.0  # between two attempts to return to the card
_MAKES_ROOM = frozenset({Rollout.CPU_BRIDGE, Rollout.UNLOAD_FIRST})
_RESTING = frozenset({Stage.IDLE, Stage.HELD})
_AWAY = frozenset({Stage.GATING, Stage.SHADOWING, Stage.ACTIVATING, Stage.OBSERVING, Stage.COMMITTING})


def may_begin(record: ModelRecord, server: ServerState | None, rules: Rules) -> bool:
    """Whether the committed revision may make room for a candidate that does not fit beside it."""
    if rules.rollout.rollout not in _MAKES_ROOM or record.bridge is not None or record.committed is None:
        return False
    if server is None or server.trial is not None or server.cpu_fallback is not None or server.active is None:
        return False
    has_cpu = server.active.device != CPU_DEVICE or rules.rollout.rollout is Rollout.UNLOAD_FIRST
    return record.under_way.kind is not UpdateKind.FAILBACK and has_cpu


def begin(record: ModelRecord, facts: Facts, server: ServerState, rules: Rules, why: str) -> Transition:
    """Begin the bridge; `may_begin` must hold."""
    if server.active is None or record.committed is None:
        raise RuntimeError("nothing serves that could make room")
    device = server.active.device
    is_gap = rules.rollout.rollout is Rollout.UNLOAD_FIRST
    what = "is unloaded first: nothing answers meanwhile" if is_gap else "answers from the CPU meanwhile"
    message = f"{why}; {record.committed.revision} {what}"
    record = replace(record, bridge=Bridge(device, is_gap=is_gap)).with_update(device=device, load_id="")
    return transitions.with_event(record, facts, "bridge_began", message)


def return_later(record: ModelRecord, facts: Facts) -> ModelRecord:
    """With a bridge if the revision that is restored is loaded on the CPU, and the one that it replaces on a card.

    After an update over the bridge the revision before stays loaded on the CPU for a while. If it is restored, it
    answers from there at once, and returns to the card.
    """
    committed, server = record.committed, facts.server
    if committed is None or server is None or server.active is None or record.bridge is not None:
        return record
    warm = server.holding(committed.bundle_digest)
    if warm is None or warm.device != CPU_DEVICE or server.active.device == CPU_DEVICE:
        return record
    return replace(record, bridge=Bridge(server.active.device))


def make_room(record: ModelRecord, facts: Facts, rules: Rules) -> ModelRecord:
    """With a bridge or a gap if the revision that is restored does not fit beside the one that was taken back.

    That one would answer until the server is started again.
    """
    committed, server = record.committed, facts.server
    active = None if server is None else server.active
    if rules.rollout.rollout not in _MAKES_ROOM or record.bridge is not None or committed is None or active is None:
        return record
    is_gap = rules.rollout.rollout is Rollout.UNLOAD_FIRST
    found = Bridge(active.device, is_gap=is_gap)
    if server is None or server.cpu_fallback is not None or not is_taken(found, server, committed.bundle_digest):
        return record
    return replace(record, bridge=found)


def is_taken(bridge: Bridge, server: ServerState, target: str) -> bool:
    """Whether another bundle than the committed one is active on its device, and not on trial."""
    active = server.active
    if active is None or server.trial is not None or not active.is_loaded or active.bundle_digest == target:
        return False
    return active.device == bridge.device and (bridge.is_gap or active.device != CPU_DEVICE)


def find_lost(record: ModelRecord, facts: Facts) -> ModelRecord:
    """With a bridge if the committed revision rests on the CPU although the server has a card for it.

    The journal that knew the bridge was lost, or no runner named the card for a while. A CPU fallback is known to the
    server, and ends as a failback.
    """
    committed, server = record.committed, facts.server
    if record.bridge is not None or record.stage not in _RESTING or committed is None or server is None:
        return record
    active = server.active
    if active is None or server.trial is not None or server.cpu_fallback is not None:
        return record
    is_there = active.is_loaded and (active.bundle_digest, active.device) == (committed.bundle_digest, CPU_DEVICE)
    card = next((row.device for row in server.devices if row.device != CPU_DEVICE), "")
    return replace(record, bridge=Bridge(card)) if is_there and card else record


def is_away(record: ModelRecord) -> bool:
    """Whether the committed revision is to answer from the CPU now: a candidate needs its device."""
    update = record.update
    if record.bridge is None or update is None:
        return False
    is_tried_again = update.ending is not None and update.ending.ends_in is EndsIn.RETRY
    return record.stage in _AWAY or (record.stage is Stage.ROLLING_BACK and is_tried_again)


def is_gap_wanted(record: ModelRecord) -> bool:
    """Whether nothing is to answer now but the candidate."""
    bridge = record.bridge
    return bridge is not None and bridge.is_gap and bridge.answers is not None and is_away(record)


def must_ask(record: ModelRecord) -> bool:
    """Whether the committed revision is to answer the golden questions now, before it is unloaded."""
    bridge = record.bridge
    return bridge is not None and bridge.is_gap and bridge.answers is None and is_away(record)


def is_serving(record: ModelRecord, server: ServerState) -> bool:
    """Whether the committed revision is active and loaded, and nothing is on trial."""
    committed, active = record.committed, server.active
    if committed is None or active is None or server.trial is not None:
        return False
    return active.bundle_digest == committed.bundle_digest and active.is_loaded


def keep_answers(record: ModelRecord, found: GateAnswers) -> ModelRecord:
    """With the committed revision's golden answers; `must_ask` must hold."""
    if record.bridge is None:
        raise RuntimeError("there is no gap")
    kept = KeptAnswers(found.golden_digest, found.candidate_seconds, tuple(row.candidate for row in found.questions))
    return replace(record, bridge=replace(record.bridge, answers=kept))


def open_gap(record: ModelRecord, facts: Facts, server: ServerState, rules: Rules) -> Effect | Wait | Transition | None:
    """One step before the candidate is loaded alone; None if its device is free.

    The committed revision answers the golden questions and is unloaded. If it is active again, the server has loaded it
    again: it is unloaded `max_attempts` times at most. Each time is recorded before it is done, because its result may
    be lost.
    """
    bridge, committed, active = record.bridge, record.committed, server.active
    if bridge is None or committed is None:
        raise RuntimeError("there is no gap")
    is_back = active is not None and active.bundle_digest == committed.bundle_digest
    if is_back and bridge.gaps >= rules.max_attempts and bridge.counted_load_id != server.active_load_id:
        message = f"{bridge.gaps} times the server has loaded the committed revision again before a commit"
        return transitions.hold(record, facts, HeldFor.INCONCLUSIVE, message)
    if (is_back or must_ask(record)) and not is_serving(record, server):
        return Wait(rules.look_seconds, "the committed revision is being loaded")
    if must_ask(record):
        return RunGate(server.active_load_id, "", facts.golden if facts.golden.digest else None)
    if is_leaving(server):
        return Wait(rules.look_seconds, "a process is still being retired")
    return _unload(record, bridge, server, rules) if is_back else None


def is_leaving(server: ServerState) -> bool:
    """Whether a process is still being retired: until it has ended, it keeps its memory."""
    return any(slot.is_retiring for slot in server.slots)


def compare_with_kept(record: ModelRecord, found: GateAnswers) -> GateAnswers | None:
    """A candidate's golden answers beside the kept ones; None if the golden set has changed since.

    Over the CPU bridge, where both are asked, costs are left out: those of two devices cannot be compared.
    """
    bridge = record.bridge
    if bridge is None:
        return found
    if not bridge.is_gap:
        return replace(found, candidate_seconds=0.0, active_seconds=0.0)
    kept = bridge.answers
    if kept is None or (kept.golden_digest, len(kept.answers)) != (found.golden_digest, len(found.questions)):
        return None
    rows = zip(found.questions, kept.answers, strict=True)
    questions = tuple(replace(row, active=answer) for row, answer in rows)
    return replace(found, questions=questions, active_seconds=kept.seconds)


def find_step(record: ModelRecord, server: ServerState, rules: Rules) -> Effect | Wait | None:
    """One step that brings the committed revision to the device where the stage wants it; None if it is there.

    The trial that a step begins is committed by `reconcile.restore`. For a gap see `open_gap`.
    """
    bridge, committed, active = record.bridge, record.committed, server.active
    if bridge is None or bridge.is_gap or committed is None or active is None:
        return None
    target = CPU_DEVICE if is_away(record) else bridge.device
    if not is_serving(record, server) or active.device == target:
        return None
    if bridge.retry_in_seconds > 0:  # an update need not wait for the return to end
        pause = min(rules.look_seconds, bridge.retry_in_seconds)
        return Wait(pause, f"before it is moved to {target} again") if is_away(record) else None
    return _move(committed.bundle_digest, target, record, server, rules)


def _unload(record: ModelRecord, bridge: Bridge, server: ServerState, rules: Rules) -> Effect | Transition:
    """Unload the committed revision, which is active, and before it what else is loaded."""
    load_id, name = server.active_load_id, record.under_way.update_id
    if bridge.counted_load_id != load_id:
        return Transition(replace(record, bridge=replace(bridge, gaps=bridge.gaps + 1, counted_load_id=load_id)))
    spare = transitions.list_spare_slots(server)
    if spare:
        return RetireLoad(spare[0].load_id, name, server.generation)
    lease = rules.observe.trial_lease_seconds
    return RetireLoad(load_id, name, server.generation, gap_lease_seconds=lease)


def _move(digest: str, target: str, record: ModelRecord, server: ServerState, rules: Rules) -> Effect | Wait:
    """Load a bundle on a device in the other slot, which is emptied first, and activate it."""
    name = "reconcile" if record.update is None else record.update.update_id
    there = server.holding(digest, target)
    if there is not None and there.is_loaded:
        return ActivateLoad(there.load_id, rules.observe.trial_lease_seconds, name, server.generation)
    if there is not None:
        return Wait(rules.look_seconds, f"the committed revision is being loaded on {target}")
    spare = transitions.list_spare_slots(server)
    if spare and len(server.occupied) >= len(server.slots):
        return RetireLoad(spare[0].load_id, name, server.generation)
    return LoadBundle(digest, target, name, server.generation)


def is_move(record: ModelRecord, effect: Effect) -> bool:
    """Whether an effect loads the committed revision on another device, for the bridge."""
    committed = record.committed
    if record.bridge is None or committed is None or not isinstance(effect, LoadBundle):
        return False
    return bool(effect.device) and effect.bundle_digest == committed.bundle_digest


def apply_move_failed(record: ModelRecord, failed: EffectFailure, facts: Facts, rules: Rules) -> Transition:
    """Hold the update if the committed revision cannot make room; try the return to the card again later.

    The committed revision answers, wherever it is: a failed move says nothing about it.
    """
    bridge, why = record.bridge, f"{failed.reason}: {failed.message}"
    if bridge is None:
        raise RuntimeError("there is no bridge")
    if is_away(record) and record.stage is Stage.GATING:
        is_over = failed.reason in MEMORY_REASONS or bridge.failed + 1 >= rules.max_attempts
        if is_over or failed.reason == "DEVICE_UNKNOWN":
            message = f"{record.under_way.revision} does not fit beside the serving model on {bridge.device}, and that "
            message += f"cannot be moved to the CPU: {why}"
            return transitions.hold(replace(record, bridge=None), facts, HeldFor.DOES_NOT_FIT, message)
    failures = bridge.failed + 1
    pause = min(_MAX_PAUSE_SECONDS, rules.retry_seconds * 2.0 ** min(failures - 1, 16))
    record = replace(record, bridge=replace(bridge, failed=failures, retry_in_seconds=pause))
    return transitions.with_event(record, facts, "bridge_failed", f"it is tried again in {pause:.0f} s: {why}")


def note(record: ModelRecord, facts: Facts) -> Transition:
    """End the bridge when the committed revision answers from its device again, or is kept off it for other reasons."""
    bridge, committed, server = record.bridge, record.committed, facts.server
    if bridge is None or server is None:
        return Transition(record)
    over = replace(record, bridge=None)
    if committed is None or server.cpu_fallback is not None:
        return Transition(over)
    if server.devices and bridge.device not in {row.device for row in server.devices}:
        return transitions.with_event(over, facts, "bridge_ended", f"{bridge.device} is not used any more")
    active = server.active
    if is_away(record) or active is None or server.trial is not None or not active.is_loaded:
        return Transition(record)
    if (active.bundle_digest, active.device) != (committed.bundle_digest, bridge.device):
        return Transition(record)
    message = f"{committed.revision} answers from {bridge.device}"
    return transitions.with_event(over, facts, "bridge_ended", message)
