"""The moves that transitions are made of: on a slot's process, on the trial, on the CPU fallback. Pure."""

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from common import reasons
from common.errors import Interrupted, NotFound
from inference.server.events import CpuFallbackChanged, SwapDone, TrafficChanged
from inference.server.model import messages as m
from inference.server.model.pair import (
    CPU_DEVICE,
    UNRESOLVED_DEVICES,
    CpuFallbackRow,
    Load,
    Pair,
    Role,
    SlotEvent,
    SlotRecord,
    SlotState,
    Trial,
    TrialEnd,
    TrialOutcome,
    next_state,
)
from inference.server.model.policy import ShortageAction, SlotFacts, SlotRules, decide_after_load, pause_seconds

PAUSE_SECONDS = 30.0  # after a failed CPU fallback, before another is begun


@dataclass(frozen=True, slots=True)
class Now:
    """The time of an event."""

    seconds: float  # clock.monotonic()
    wall: datetime


def facts_of(pair: Pair, name: str) -> SlotFacts:
    """The facts about a slot that the decision on a shortage needs."""
    load = pair[name].load
    return SlotFacts(pair.role_of(name), "" if load is None else load.device)


class Step:
    """One transition in the making: the pair so far, and the effects so far."""

    def __init__(self, pair: Pair, now: Now, rules: SlotRules) -> None:
        self.pair = pair
        self.effects: list[m.Effect] = []
        self.now = now
        self.rules = rules

    def change(self, **changes: Any) -> None:  # noqa: ANN401  fields of Pair
        """Change fields of the pair."""
        self.pair = replace(self.pair, **changes)

    def change_slot(self, name: str, **changes: Any) -> None:  # noqa: ANN401  fields of SlotRecord
        """Change fields of a slot."""
        self.change(**{name: replace(self.pair[name], **changes)})

    def add(self, *effects: m.Effect) -> None:
        """Add effects, to be performed after those before."""
        self.effects += effects

    # A slot's process.

    def advance(self, name: str, event: SlotEvent) -> None:
        """Step the slot's state; an event that cannot happen raises."""
        self.change_slot(name, state=next_state(self.pair[name].state, event))

    def spawn(self, name: str) -> None:
        """Start a process; it loads what the slot holds, if anything."""
        self.advance(name, SlotEvent.SPAWNED)
        self.change_slot(name, respawn_at=None)
        self.add(m.Spawn(name, self.pair.role_of(name)))

    def assign(self, name: str, load: Load) -> None:
        """Load a bundle: at once if the process is idle, else as soon as one is."""
        slot = self.pair[name]
        if slot.load is not None:
            raise RuntimeError(f"slot {name} holds a load already")
        self.change_slot(name, load=load)
        if slot.state is SlotState.READY:
            self.begin_load(name)
        elif not slot.has_process:
            self.spawn(name)

    def begin_load(self, name: str) -> None:
        """Load in the idle process what the slot holds."""
        load, devices = self.pair[name].load, self.pair[name].devices
        if load is None:
            raise RuntimeError(f"slot {name} holds no load")
        if load.device in UNRESOLVED_DEVICES and devices:
            load = replace(load, device=devices[0][0])  # the runner lists the allowed devices, best first
        self.advance(name, SlotEvent.LOAD_BEGUN)
        self.change_slot(name, load=load)
        self.add(m.StartLoad(name, load))
        self.emit_slot(name, "load_begun")

    def empty_slot(self, name: str, detail: str, *, is_urgent: bool = False) -> None:
        """Empty the slot: the process ends when its last lease has ended, or at once if it has not loaded.

        With `is_urgent` callers wait for the next load, and it needs other memory.
        """
        was = self.pair[name]
        if was.load is not None and not was.load.is_loaded:
            error = Interrupted(f"the load was retired: {detail}", reason="LOAD_RETIRED")
            self.add(m.FailLoad(was.load.load_id, error))
        self.advance(name, SlotEvent.RETIRE_REQUESTED)
        self.emit_slot(name, "retire_begun", detail)
        if not was.has_process:
            self.change_slot(name, load=None)  # a scheduled start still happens if a standby process is configured
            self.add(m.MoveRequests(name, self.successor()))
        elif was.state is SlotState.LOADED:
            self.add(m.AwaitLeases(name) if was.is_leased else m.EndProcess(name))
        elif was.state is not SlotState.RETIRING:
            self.add(m.Kill(name, detail, is_retiring=not is_urgent))

    def schedule_restart(self, name: str) -> None:
        """Start a process again: at once after an orderly end or the first death, else after a growing pause."""
        slot = self.pair[name]
        if self.pair.is_stopping or (slot.load is None and not self.rules.standby):
            return
        is_failed = slot.state is SlotState.FAILED
        pause = pause_seconds(slot.deaths_in_row, self.rules.respawn) if is_failed else 0.0
        self.change_slot(name, respawn_at=self.now.seconds + pause)
        if pause == 0.0:
            self.spawn(name)

    # The end of a process.

    def choose_successor(self, name: str, role: Role) -> str | None:
        """Choose the slot that continues after the end of a process; None if there is none. Changes nothing."""
        trial, standby = self.pair.trial, self.pair.other(name)
        if not self._is_load_needed(name, role):
            return self.successor()
        if role is Role.TRIAL and trial is not None:
            return trial.previous or name
        is_free = self.pair.role_of(standby.name) is Role.FREE
        if role is Role.ACTIVE and is_free and standby.state in (SlotState.READY, SlotState.STARTING):
            return standby.name
        return name

    def reload_or_drop(self, event: m.ProcessEnded, role: Role, successor: str | None) -> None:
        """Reload what an ended process held: in its slot, or in the standby process; drop what no caller depends on."""
        name, slot = event.slot, self.pair[event.slot]
        if role is Role.FALLBACK:
            self.abandon_fallback(f"the process ended: {slot.last_failure}")
        if slot.load is None or not self._is_load_needed(name, role):
            if role is Role.PREVIOUS:
                self.change(previous=None)
            self._drop_load(name, event)
            return
        load = slot.load.reset(self.now.seconds)
        self.change_slot(name, load=load)
        self.add(m.NotifyLoad(load.load_id, "starting"))
        if role is Role.ACTIVE and successor is not None and successor != name:
            self._reload_in_standby(name, successor, load)

    def _is_load_needed(self, name: str, role: Role) -> bool:
        """Whether callers depend on what a slot holds: it is active, or answers what the trial fails."""
        if role is Role.PREVIOUS:
            return self.pair.trial is not None and self.pair.trial.previous == name
        return role in (Role.ACTIVE, Role.TRIAL) and self.pair[name].load is not None

    def successor(self) -> str | None:
        """The slot that can answer now, else the active one."""
        answering = self.pair.answering_slot()
        return self.pair.active if answering is None else answering.name

    def use_emptied_slot(self, name: str) -> None:
        """Give an emptied slot the pending load on the CPU, if there is one; its next process loads it."""
        pending = self.pair.move.pending_load
        if pending is not None and self.pair[name].load is None and name != self.pair.active:
            self.change_slot(name, load=pending, deaths_in_row=0, brief_deaths=())
            self.change(fallback=name, move=replace(self.pair.move, pending_load=None))
            self.add(m.SubmitAwaitingCpu(name))

    def _reload_in_standby(self, name: str, standby: str, load: Load) -> None:
        """Load in the standby process what the ended one held; its slot becomes active."""
        ended = self.pair[name]
        self.change_slot(standby, deaths_in_row=ended.deaths_in_row, brief_deaths=ended.brief_deaths)
        self.change_slot(name, load=None)
        self.set_active(standby)
        self.add(m.Prioritise(standby))
        self.assign(standby, load)
        self.emit_swap("slot_took_over", standby, load.bundle.bundle_digest, "")

    def _drop_load(self, name: str, event: m.ProcessEnded) -> None:
        """Remove a load that no caller depends on."""
        load = self.pair[name].load
        self.change_slot(name, load=None)
        if load is not None:
            reason = "LOAD_STALLED" if event.has_stalled else "LOAD_FAILED"
            message = f"the process ended: {self.pair[name].last_failure}"
            self.add(m.FailLoad(load.load_id, Interrupted(message, reason=reason)))

    # The trial.

    def set_active(self, name: str | None) -> None:
        """Make a slot active; increments the generation."""
        self.change(active=name, generation=self.pair.generation + 1)

    def begin_trial(self, name: str, lease_ends: float, transaction_id: str) -> None:
        """Make a candidate active, on trial; the slot that was active answers what it fails, and what it does not get.

        What was compared before belongs to the candidate, and is over.
        """
        previous = self.pair.active_slot
        load = None if previous is None else previous.load
        self.add(m.FreezeBaseline(None if load is None else load.key))
        trial = Trial(name, self.pair.active, transaction_id, self.now.wall, lease_ends)
        self.change(previous=self.pair.active, trial=trial, shadow=None)
        self.set_active(name)
        self.add(m.Prioritise(name))
        if previous is not None and previous.respawn_at is not None:
            self.change_slot(previous.name, respawn_at=self.now.seconds)  # what the trial fails has nowhere else to go
        digest = "" if previous is None else previous.digest
        self.emit_swap("slot_activated", name, digest, transaction_id, with_roles=True)

    def close_trial(self, outcome: TrialOutcome, reason: str = "") -> None:
        """End the trial; the active slot stays."""
        trial = self.pair.trial
        if trial is not None:
            end = TrialEnd(self.pair[trial.slot].digest, outcome, self.now.wall, reason)
            self.change(trial=None, shadow=None, last_trial=end, generation=self.pair.generation + 1)

    def roll_back(self, transaction_id: str, outcome: TrialOutcome, reason: str = "") -> None:
        """Make the previous slot active again; the trial still answers the requests that it holds."""
        trial = self.pair.trial
        if trial is None or trial.previous is None:
            return
        failed = self.pair[trial.slot].digest
        self.close_trial(outcome, reason)
        self.change(previous=None)
        self.set_active(trial.previous)
        self.emit_swap(f"trial_{outcome.lower()}", trial.previous, failed, transaction_id, with_roles=True)

    def end_shadow_without_load(self) -> None:
        """Forget a shadow whose load is neither a candidate nor on trial any more."""
        shadow = self.pair.shadow
        slot = None if shadow is None else self.pair.slot_holding(shadow.load_id)
        role = Role.FREE if slot is None else self.pair.role_of(slot.name)
        if shadow is not None and role not in (Role.CANDIDATE, Role.TRIAL):
            self.change(shadow=None)

    def get_slot_holding(self, load_id: str) -> SlotRecord:
        """The slot that holds a load.

        Raises:
            NotFound: no slot holds it.
        """
        slot = self.pair.slot_holding(load_id)
        if slot is None:
            raise NotFound(
                "no slot holds this load", reason="LOAD_UNKNOWN", field="load_id", resource=("load", load_id[:64])
            )
        return slot

    # The CPU fallback.

    def begin_fallback(self, active: str, load: Load, load_id: str) -> None:
        """Begin to move the active bundle to the CPU, unless that has begun."""
        if self.pair.move.pending_load is not None or self.pair.fallback is not None:
            return
        now, other = self.now.seconds, self.pair.other(active)
        if self._is_loaded_on_cpu(other, load):
            self.activate_fallback(other.name, reasons.OUT_OF_MEMORY)
            return
        # The time that this load took is an estimate: the load time on the CPU is not known yet.
        self.change(move=replace(self.pair.move, begun_at=now, expected_seconds=load.load_seconds))
        cpu_load = Load(load_id, load.bundle, load.folder, CPU_DEVICE, "", now)
        self.emit_fallback("cpu_fallback_begun", load.device, load.bundle.bundle_digest, reasons.OUT_OF_MEMORY)
        if other.load is not None:
            self._vacate(other)
        other = self.pair[other.name]
        if other.load is None and other.state is not SlotState.RETIRING:
            self.change(fallback=other.name)
            if other.has_process:
                self.add(m.Prioritise(other.name))
            self.assign(other.name, cpu_load)
        else:
            self.change(move=replace(self.pair.move, pending_load=cpu_load))

    def activate_fallback(self, name: str, reason: str) -> None:
        """Make the slot on the CPU active; the slot that it replaces retires after its last lease."""
        old = self.pair.active_slot
        self.change(fallback=None)
        if self.pair.previous == name:
            self.change(previous=None)
        self.set_active(name)
        if self.pair[name].has_process:
            self.add(m.Prioritise(name))
        if old is None or old.load is None:
            return
        self._save_fallback(old.load, reason)
        self.emit_swap("slot_fell_back", name, old.digest, "", with_roles=True)
        self.empty_slot(old.name, f"{old.load.device} ran out of memory")

    def abandon_fallback(self, why: str) -> None:
        """Give up the CPU fallback: the active slot stays, and no other fallback begins for PAUSE_SECONDS."""
        digest = "" if self.pair.fallback is None else self.pair[self.pair.fallback].digest
        active = self.pair.active_slot
        device = "" if active is None or active.load is None else active.load.device
        self.change(fallback=None, move=replace(self.pair.move, not_before=self.now.seconds + PAUSE_SECONDS))
        self.emit_fallback("cpu_fallback_failed", device, digest, why)

    def after_load_shortage(self, name: str, reason: str) -> None:
        """Change the device or the trial after a load that did not fit; the process is ended by the caller."""
        other = self.pair.other(name).name
        action = decide_after_load(facts_of(self.pair, name), facts_of(self.pair, other), self.rules.device)
        if name == self.pair.fallback:
            self.abandon_fallback(f"it did not fit on the CPU: {reason}")
        elif action is ShortageAction.ROLL_BACK_TRIAL:
            self.roll_back("", TrialOutcome.ROLLED_BACK, reasons.OUT_OF_MEMORY)
        elif action is ShortageAction.FALL_BACK_TO_CPU:
            self._reload_on_cpu(name, reason)

    def clear_fallback(self, row: CpuFallbackRow, why: str) -> None:
        """End the fallback."""
        self.change(cpu_fallback=None)
        self.add(m.SaveFallback(None))
        self.emit_fallback("cpu_fallback_ended", row.device, row.bundle_digest, why)

    def _vacate(self, slot: SlotRecord) -> None:
        """Empty the other slot for the fallback; its load is not counted as failed."""
        if slot.load is not None and not slot.load.is_loaded:
            message = "the slot was needed for the CPU fallback; load it again later"
            self.add(m.FailLoad(slot.load.load_id, Interrupted(message, reason="LOAD_YIELDED")))
        if slot.name == self.pair.previous:
            self.change(previous=None)
        if slot.state is not SlotState.RETIRING:
            self.empty_slot(slot.name, "yielded: the CPU fallback needs the slot", is_urgent=True)

    def _reload_on_cpu(self, name: str, reason: str) -> None:
        """Load on the CPU in the same slot, with its next process; or use a CPU slot that is there already."""
        load, other, move = self.pair[name].load, self.pair.other(name), self.pair.move
        if load is None:
            return
        is_active = name == self.pair.active
        if is_active and (other.name == self.pair.fallback or self._is_loaded_on_cpu(other, load)):
            self.activate_fallback(other.name, reason)  # no other slot can answer
            return
        self.change_slot(name, load=replace(load, next_device=CPU_DEVICE), deaths_in_row=0, brief_deaths=())
        self._save_fallback(load, reason)
        if is_active and move.pending_load is not None:
            self.change(move=replace(move, pending_load=None))
            self.add(m.SubmitAwaitingCpu(name))

    def _is_loaded_on_cpu(self, other: SlotRecord, load: Load) -> bool:
        its = other.load
        return (
            its is not None
            and other.is_loaded
            and (its.bundle.bundle_digest, its.device) == (load.bundle.bundle_digest, CPU_DEVICE)
        )

    def _save_fallback(self, load: Load, reason: str) -> None:
        digest = load.bundle.bundle_digest
        row = CpuFallbackRow(self.rules.model, load.device, CPU_DEVICE, digest, self.now.wall, reason)
        self.change(cpu_fallback=row)
        self.add(m.SaveFallback(row))
        self.emit_fallback("cpu_fallback_taken", row.device, digest, reason)

    # Logs and metrics.

    def emit_slot(self, name: str, change: str, detail: str = "", reason: str = "") -> None:
        """Emit a change of a slot, with its present state."""
        self.add(m.EmitSlot(self.pair[name], self.pair.role_of(name), change, detail, reason))

    def emit_swap(
        self, change: str, name: str, previous_digest: str, transaction_id: str, *, with_roles: bool = False
    ) -> None:
        """Emit a change of the active slot or the end of a trial, and both slots' roles."""
        slot = self.pair[name]
        event = SwapDone(
            model=self.rules.model,
            change=change,
            slot=name,
            revision="" if slot.load is None else slot.load.bundle.revision,
            digest=slot.digest,
            previous_digest=previous_digest,
            transaction_id=transaction_id,
            generation=self.pair.generation,
        )
        self.add(m.Emit(event))
        for each in self.pair if with_roles else ():
            self.emit_slot(each.name, "role_changed")

    def emit_traffic(self, change: str, slot: SlotRecord, percent: float, transaction_id: str) -> None:
        """Emit a change of the requests that a slot gets."""
        revision = "" if slot.load is None else slot.load.bundle.revision
        self.add(m.Emit(TrafficChanged(self.rules.model, change, revision, slot.digest, percent, transaction_id)))

    def emit_fallback(self, change: str, device: str, digest: str, detail: str) -> None:
        """Emit a change of the CPU fallback."""
        self.add(m.Emit(CpuFallbackChanged(self.rules.model, change, device, CPU_DEVICE, digest, detail)))
