"""Which slot answers, as one pure function: (pair, event, now, rules) → (pair, effects).

It holds every decision on the two slots of a model: roles, trials and their leases, deaths and restarts, the CPU
fallback. `effects` performs what it returns. The picture of the slot states is docs/explanation/slot-states.svg.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from common import reasons
from common.errors import Conflict
from inference.server.model import messages as m
from inference.server.model.gap import GapStep
from inference.server.model.pair import (
    ANSWERING_ROLES,
    SLOT_NAMES,
    Pair,
    Role,
    Shadow,
    ShadowPolicy,
    SlotEvent,
    SlotRecord,
    SlotState,
    Trial,
    TrialOutcome,
)
from inference.server.model.policy import (
    ShortageAction,
    SlotRules,
    check_lease,
    check_percent,
    check_shadow,
    count_death,
    decide_after_item,
    list_brief_deaths,
)
from inference.server.model.step import Now, facts_of

STANDBY_DELAY_SECONDS = 5.0  # after a start, if the load takes longer


def apply(pair: Pair, event: m.Event, now: Now, rules: SlotRules) -> tuple[Pair, tuple[m.Effect, ...]]:
    """The pair after an event, and what is to be done, in order.

    Raises:
        HotslotError: a command that is not possible now; nothing has changed.
        RuntimeError: the event cannot happen.
    """
    step = _Transition(pair, now, rules)
    HANDLERS[type(event)](step, event)
    step.end_shadow_without_load()
    return step.pair, tuple(step.effects)


def default_device(pair: Pair, rules: SlotRules) -> str:
    """The device for a load that names none: the CPU during a fallback, else the configured device."""
    return rules.device.device if pair.cpu_fallback is None else pair.cpu_fallback.fallback_device


def has_given_up(pair: Pair, rules: SlotRules) -> bool:
    """Whether the active slot's process has ended too often in a row."""
    active = pair.active_slot
    return active is not None and active.failures >= rules.respawn.give_up


def after_item(
    pair: Pair, slot: str, now: float, rules: SlotRules, *, is_probe: bool, other_failed: bool
) -> ShortageAction:
    """The action after a slot had no memory for a single item: for the request, and for the pair by `OutOfMemory`.

    Args:
        pair: the two slots now.
        slot: had no memory.
        now: clock.monotonic().
        rules: of the model.
        is_probe: the item is a probe or self-test, which tests one slot and is never given to another.
        other_failed: the other slot has failed the same request.
    """
    action = decide_after_item(
        facts_of(pair, slot),
        facts_of(pair, pair.other(slot).name),
        rules.device,
        is_probe=is_probe,
        other_failed=other_failed,
    )
    begins = action in (ShortageAction.FALL_BACK_TO_CPU, ShortageAction.ROLL_BACK_TRIAL_AND_FALL_BACK)
    return ShortageAction.REFUSE if begins and (now < pair.move.not_before or pair.is_stopping) else action


class _Transition(GapStep):
    """A method for each event."""

    # A slot's process.

    def boot(self, event: m.Boot) -> None:
        """Load the committed bundle; start the other process when that answers, or after a while."""
        row, device = event.saved, self.rules.device
        self.change(cpu_fallback=row)
        if row is not None and device.allows(row.device) and device.may_move_to_cpu(row.device):
            self.emit_fallback("cpu_fallback_kept", row.device, row.bundle_digest, row.reason)
        elif row is not None:
            self.clear_fallback(row, "the settings changed")
        first, second = SLOT_NAMES
        if event.load is not None:
            self.change(active=first)
            self.assign(first, replace(event.load, device=default_device(self.pair, self.rules)))
        if self.rules.standby and event.load is None:
            self.spawn(second)
        elif self.rules.standby:  # it would take the CPUs that the load needs
            self.change_slot(second, respawn_at=self.now.seconds + STANDBY_DELAY_SECONDS)

    def boot_again(self, event: m.BootAgain) -> None:
        """Load the committed bundle after all, unless another load has come; the standby process stays."""
        first = SLOT_NAMES[0]
        if self.pair.active is None and not any(slot.load for slot in self.pair):
            self.set_active(first)
            self.assign(first, replace(event.load, device=default_device(self.pair, self.rules)))

    def hello(self, event: m.Hello) -> None:
        """The process is idle: load what the slot holds."""
        slot = self.pair[event.slot]
        if slot.state is SlotState.RETIRING:
            return
        self.advance(slot.name, SlotEvent.HELLO_RECEIVED)
        self.change_slot(slot.name, devices=event.devices)
        self.emit_slot(slot.name, "runner_ready")
        if self.pair.role_of(slot.name) not in ANSWERING_ROLES:
            self.add(m.Deprioritise(slot.name))
        row, names = self.pair.cpu_fallback, [name for name, _ in event.devices]
        if row is not None and names and row.device not in names:
            self.clear_fallback(row, "the device is gone")
        if slot.load is not None:
            self.begin_load(slot.name)

    def loaded(self, event: m.Loaded) -> None:
        """The slot can answer: test it, and send it what waits."""
        slot, now = self.pair[event.slot], self.now.seconds
        if slot.load is None or slot.state is not SlotState.LOADING:
            return
        load = replace(
            slot.load,
            device=event.device or slot.load.device,
            precision=event.precision,
            is_loaded=True,
            loaded_at=now,
            load_seconds=now - slot.load.begun_at,
        )
        self.advance(slot.name, SlotEvent.LOAD_ENDED)
        self.change_slot(slot.name, load=load)
        self.emit_slot(slot.name, "load_ended")
        if self.pair.role_of(slot.name) in ANSWERING_ROLES:
            self.add(m.Prioritise(slot.name))
        self.add(m.SendSelfTest(slot.name), m.OpenQueue(slot.name, event.row_seconds))
        self.add(m.NotifyLoad(load.load_id, "loaded"))

    def load_failed(self, event: m.LoadFailed) -> None:
        """Give up a candidate; any other load is tried again in a new process, after growing pauses."""
        name = event.slot
        if self.pair[name].load is None or self.pair[name].state is not SlotState.LOADING:
            return
        detail = f"{event.reason}: {event.message}"
        self.emit_slot(name, "load_failed", detail, event.reason)
        if event.reason in reasons.SHORTAGES:
            self.after_load_shortage(name, event.reason)
        slot = self.pair[name]
        if slot.state is SlotState.RETIRING:
            return
        if slot.load is not None and self.pair.role_of(name) is Role.CANDIDATE:
            self.add(m.FailLoad(slot.load.load_id, event.error))
            self.empty_slot(name, f"load failed: {event.reason}")
        else:
            self.add(m.Kill(name, f"load failed: {detail}"))

    def process_ended(self, event: m.ProcessEnded) -> None:
        """Count the death, choose the slot that continues, schedule a restart, and move the requests."""
        name, slot = event.slot, self.pair[event.slot]
        was_requested = slot.state is SlotState.RETIRING
        self.advance(name, SlotEvent.PROCESS_ENDED)
        if was_requested:
            self.change_slot(name, load=None)
        else:
            in_row = count_death(slot, self.now.seconds, self.rules.respawn)
            brief = list_brief_deaths(slot, self.now.seconds, self.rules.respawn)
            self.change_slot(name, deaths=slot.deaths + 1, deaths_in_row=in_row, last_failure=event.detail)
            self.change_slot(name, brief_deaths=brief)
        self.emit_slot(name, "runner_retired" if was_requested else "runner_died", event.detail)
        role, load = self.pair.role_of(name), self.pair[name].load
        if was_requested and event.has_requests and slot.load is not None:
            self.add(m.RecordDeath(name, slot.load.key, is_trial=False))
        if load is not None and role is not Role.CANDIDATE:
            self.add(m.RecordDeath(name, load.key, is_trial=role is Role.TRIAL))
            if event.is_input_at_fault:  # its two deaths make the restart pauses neither grow nor start anew
                self.change_slot(name, deaths_in_row=max(0, slot.deaths_in_row - 1), brief_deaths=slot.brief_deaths)
        successor = self.choose_successor(name, role)
        self.reload_or_drop(event, role, successor)
        self.use_emptied_slot(name)
        self.schedule_restart(name)
        if not self.keep_requests(event):
            self.add(m.MoveRequests(name, successor))

    def stuck(self, event: m.Stuck) -> None:
        """End a process that makes no progress."""
        self.add(m.Kill(event.slot, event.detail))

    def lease_over(self, event: m.LeaseOver) -> None:
        """End a retiring process with its last lease."""
        slot = self.pair[event.slot]
        if slot.state is SlotState.RETIRING and slot.load is not None and slot.load.is_loaded:
            self.add(m.EndProcess(slot.name))

    # A slot's requests.

    def proven(self, event: m.Proven) -> None:
        """The slot has answered; that of the CPU fallback becomes active by it."""
        load = self.pair[event.slot].load
        if load is not None:
            self.change_slot(event.slot, load=replace(load, is_proven=True))
        standby = self.pair.other(event.slot)
        if standby.state is SlotState.EMPTY and standby.respawn_at is not None:
            self.change_slot(standby.name, respawn_at=self.now.seconds)
        if event.slot == self.pair.fallback:
            self.activate_fallback(event.slot, reasons.OUT_OF_MEMORY)

    def self_test_failed(self, event: m.SelfTestFailed) -> None:
        """The slot is not ready; a CPU fallback whose slot fails its self-test is abandoned."""
        load = self.pair[event.slot].load
        if load is not None:
            self.change_slot(event.slot, load=replace(load, is_proven=False))
        if event.slot == self.pair.fallback:
            self.abandon_fallback(f"its self-test failed: {event.reason}")
            self.empty_slot(event.slot, "its self-test failed")

    def out_of_memory(self, event: m.OutOfMemory) -> None:
        """Begin the CPU fallback, if that is what follows."""
        if event.action not in (ShortageAction.FALL_BACK_TO_CPU, ShortageAction.ROLL_BACK_TRIAL_AND_FALL_BACK):
            return
        if event.action is ShortageAction.ROLL_BACK_TRIAL_AND_FALL_BACK:
            self.roll_back("", TrialOutcome.YIELDED, reasons.OUT_OF_MEMORY)
        active = self.pair.active_slot
        if active is not None and active.load is not None:
            self.begin_fallback(active.name, active.load, event.new_load_id)

    def trial_ran_out(self, event: m.TrialRanOut) -> None:
        """Roll back a trial that had no memory for an item which the previous slot has answered."""
        trial = self.pair.trial
        load = None if trial is None else self.pair[trial.slot].load
        if load is not None and load.key == event.key:
            self.roll_back("", TrialOutcome.ROLLED_BACK, reasons.OUT_OF_MEMORY)

    # Commands.

    def load_bundle(self, event: m.LoadBundle) -> None:
        """Load into the free slot."""
        slot = self.pair.free_slot()
        if slot is None:
            is_over = self.pair.gap is not None and self.pair.gap.is_over
            why = "the next load is the unloaded model's" if is_over else "both slots hold a load; retire one"
            raise Conflict(why, reason="NO_FREE_SLOT")
        self.assign(slot.name, event.load)
        if self.rules.standby:
            # Until the next process of the other slot has done its imports, nothing is ready to take over.
            self.add(m.PrepareProcess())

    def activate(self, event: m.Activate) -> None:
        """Begin a trial, extend its lease, or roll back."""
        slot, trial = self.get_slot_holding(event.load_id), self.pair.trial
        if trial is not None and slot.name == trial.previous:
            self.roll_back(event.transaction_id, TrialOutcome.ROLLED_BACK)
            return
        check_lease(event.trial_lease_seconds, "trial_lease")
        check_percent(event.percent)
        check_shadow(event.shadow)
        lease_ends = self.now.seconds + event.trial_lease_seconds
        if slot.name == self.pair.active:
            if trial is not None:
                self.change(trial=replace(trial, lease_ends=lease_ends))
                self.set_traffic_of_trial(event)
            return
        if not slot.is_loaded or slot.name == self.pair.fallback:
            raise Conflict("the load is not complete, or is a CPU fallback", reason="NOT_LOADED")
        if trial is not None:
            raise Conflict("another revision is on trial", reason="GENERATION_CONFLICT")
        self.begin_trial(slot.name, lease_ends, event.transaction_id)
        self.set_traffic_of_trial(event)

    def set_traffic_of_trial(self, event: m.Activate) -> None:
        """Set what is given of percentage and shadow; a first install has no other slot, so it has neither."""
        trial = self.pair.trial
        if trial is None or trial.previous is None:
            return
        if event.percent is not None:
            self.change_percent(trial, event.percent, event.transaction_id)
        if event.shadow is not None:
            self.begin_shadow(self.pair[trial.slot], event.shadow, event.transaction_id)

    def commit(self, event: m.Commit) -> None:
        """End the trial and keep its revision; on another device than the CPU that ends the fallback too."""
        slot, row = self.get_slot_holding(event.load_id), self.pair.cpu_fallback
        if slot.name != self.pair.active:
            raise Conflict("this load is not active", reason="NOT_ON_TRIAL")
        self.change(gap=None)
        if self.pair.trial is not None:
            self.close_trial(TrialOutcome.COMMITTED)
            self.emit_swap("trial_committed", slot.name, "", event.transaction_id, with_roles=True)
        if row is not None and slot.load is not None and slot.load.device != row.fallback_device:
            self.clear_fallback(row, f"committed on {slot.load.device}")

    def set_percent(self, event: m.SetPercent) -> None:
        """Change which part of the requests the trial gets; the previous slot answers the others."""
        check_percent(event.percent)
        slot, trial = self.get_slot_holding(event.load_id), self.pair.trial
        if trial is None or trial.slot != slot.name or trial.previous is None:
            raise Conflict("a canary is on trial, beside a previous slot; activate it first", reason="NOT_ON_TRIAL")
        self.change_percent(trial, event.percent, event.transaction_id)

    def change_percent(self, trial: Trial, percent: float, transaction_id: str) -> None:
        """Give the trial this part of the requests."""
        if percent != trial.percent:
            self.change(trial=replace(trial, percent=percent))
            self.emit_traffic("canary_percent_set", self.pair[trial.slot], percent, transaction_id)

    def set_shadow(self, event: m.SetShadow) -> None:
        """Copy requests for a candidate, or for the comparison of a trial."""
        check_shadow(event.policy)
        slot, trial = self.get_slot_holding(event.load_id), self.pair.trial
        role = self.pair.role_of(slot.name)
        if role is not Role.CANDIDATE and (role is not Role.TRIAL or trial is None or trial.previous is None):
            raise Conflict(f"the slot is {role.lower()}, it is compared with no other", reason="SLOT_IN_USE")
        if not slot.is_loaded or self.pair.active_slot is None or (trial is not None and trial.previous is None):
            raise Conflict("the load is not complete, or there is no kept model to compare with", reason="NOT_LOADED")
        self.begin_shadow(slot, event.policy, event.transaction_id)

    def begin_shadow(self, slot: SlotRecord, policy: ShadowPolicy, transaction_id: str) -> None:
        """Copy requests for the comparison of a slot from now on; what was counted for the same load stays."""
        load, before, now = slot.load, self.pair.shadow, self.now.seconds
        if load is None:
            return
        shadow = Shadow(load.load_id, policy, self.now.wall, now, now + policy.max_seconds)
        if before is not None and before.load_id == load.load_id:
            shadow = replace(shadow, started_at=before.started_at, begun_at=before.begun_at)
        self.change(shadow=shadow)
        self.emit_traffic("shadow_set", slot, 100 * policy.share, transaction_id)

    def tick(self, _event: m.Tick) -> None:
        """Forget old deaths, end an expired trial or gap, start the processes whose pause has passed."""
        now, trial = self.now.seconds, self.pair.trial
        for slot in self.pair:
            loaded_at = slot.load.loaded_at if slot.load is not None and slot.load.is_loaded else None
            if loaded_at is not None and slot.failures and now - loaded_at >= self.rules.respawn.steady_seconds:
                self.change_slot(slot.name, deaths_in_row=0, brief_deaths=())
        if trial is not None and now >= trial.lease_ends and trial.previous is not None:
            self.roll_back("", TrialOutcome.LEASE_EXPIRED)
        self.end_overdue_gap()
        for slot in self.pair:
            if slot.respawn_at is None or now < slot.respawn_at or self.pair.is_stopping:
                continue
            if slot.load is not None or self.rules.standby:
                self.spawn(slot.name)
            else:
                self.change_slot(slot.name, respawn_at=None)

    def stop(self, event: m.Stop) -> None:
        """Retire all processes, or kill them."""
        self.change(is_stopping=True)
        for slot in self.pair:
            if slot.has_process and event.at_once:
                self.add(m.Kill(slot.name, "the server stops"))
            elif slot.has_process:
                self.empty_slot(slot.name, "the server stops")


HANDLERS: dict[type[m.Event], Callable[[_Transition, Any], None]] = {
    m.Hello: _Transition.hello,
    m.Loaded: _Transition.loaded,
    m.LoadFailed: _Transition.load_failed,
    m.ProcessEnded: _Transition.process_ended,
    m.Stuck: _Transition.stuck,
    m.LeaseOver: _Transition.lease_over,
    m.Proven: _Transition.proven,
    m.SelfTestFailed: _Transition.self_test_failed,
    m.OutOfMemory: _Transition.out_of_memory,
    m.TrialRanOut: _Transition.trial_ran_out,
    m.Boot: _Transition.boot,
    m.BootAgain: _Transition.boot_again,
    m.LoadBundle: _Transition.load_bundle,
    m.Activate: _Transition.activate,
    m.Commit: _Transition.commit,
    m.SetPercent: _Transition.set_percent,
    m.SetShadow: _Transition.set_shadow,
    m.Retire: _Transition.retire,
    m.RenewGap: _Transition.renew_gap,
    m.Tick: _Transition.tick,
    m.Stop: _Transition.stop,
}
