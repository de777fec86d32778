"""The gap: the active model is unloaded by command, because its device has no room for another one beside it. Pure.

Nothing answers until another load is activated. The gap has a lease, as a trial has: when it has run out and nothing
answers, the unloaded model is loaded again, as soon as what is in its way has left the device. So it is when accepted
requests have no other model: a process that was to answer them before it is retired has ended.
"""

from dataclasses import replace

from common.errors import Conflict, Interrupted
from inference.server.model import messages as m
from inference.server.model.pair import UNRESOLVED_DEVICES, Gap, GapEnd, SlotRecord, SlotState, TrialOutcome
from inference.server.model.policy import check_lease
from inference.server.model.step import Step

_SWAPS = {GapEnd.LEASE_EXPIRED: "gap_lease_expired", GapEnd.ABANDONED: "gap_abandoned"}
_SOONEST_FIRST = (SlotState.READY, SlotState.STARTING, SlotState.EMPTY, SlotState.FAILED)


class GapStep(Step):
    """The moves of a gap."""

    def retire(self, event: m.Retire) -> None:
        """Empty the slot that holds a load; does nothing if no slot does.

        A first install on trial has no previous slot: retiring it is its rollback. The active slot is retired if the
        command accepts that nothing answers then.
        """
        slot, trial = self.pair.slot_holding(event.load_id), self.pair.trial
        if slot is None:
            return
        if slot.name == self.pair.fallback:
            raise Conflict("the slot is loading the CPU fallback", reason="SLOT_IN_USE")
        if trial is not None and slot.name == trial.slot and trial.previous is None:
            self.close_trial(TrialOutcome.ROLLED_BACK)
            self.set_active(None)
            if slot.is_leased and not slot.is_loaded:  # requests wait for its load
                self._end_gap(GapEnd.ABANDONED)
            if self.return_from_gap():
                return
        elif event.gap is not None and slot.name == self.pair.active and self.pair.may_leave_gap:
            self._begin_gap(slot, event.gap)
        elif slot.name == self.pair.active or (trial is not None and slot.name == trial.previous):
            role = self.pair.role_of(slot.name).lower()
            raise Conflict(f"the slot is {role}, it cannot be retired now", reason="SLOT_IN_USE")
        if slot.name == self.pair.previous:
            self.change(previous=None)
        self.empty_slot(slot.name, "RetireSlot")

    def renew_gap(self, _event: m.RenewGap) -> None:
        """Begin the lease of the gap anew: a command of the updater is under way."""
        gap = self.pair.gap
        if gap is not None and not gap.is_over:
            self.change(gap=replace(gap, lease_ends=self.now.seconds + gap.lease_seconds))

    def end_overdue_gap(self) -> None:
        """Give up what was to follow in the gap if its lease has run out and nothing answers.

        A trial that answers stays: a caller's answer outranks the evidence that is missing without the updater.
        """
        gap = self.pair.gap
        if gap is None or gap.is_over or self.now.seconds < gap.lease_ends or self.pair.is_stopping:
            return
        if self.pair.answering_slot() is None:
            self.close_trial(TrialOutcome.LEASE_EXPIRED)
            self.set_active(None)
            self._end_gap(GapEnd.LEASE_EXPIRED)
            self.return_from_gap()

    def keep_requests(self, event: m.ProcessEnded) -> bool:
        """End the gap if an ended process leaves requests that no slot is to answer.

        Returns:
            Whether the unloaded model returns: `return_from_gap` moves the requests, now or later.
        """
        if event.has_requests and self.successor() is None:
            self._end_gap(GapEnd.ABANDONED)
        return self.return_from_gap()

    def return_from_gap(self) -> bool:
        """Load the unloaded model again when nothing else is on its device; its slot gets all requests that wait.

        Returns:
            Whether the gap is over: the requests of an ended process are moved by this method, now or later.
        """
        gap = self.pair.gap
        if gap is None or gap.end is None or self.pair.is_stopping:
            return False
        kept = self._find_reload(gap)
        for slot in self.pair:
            if slot.name != kept and slot.load is not None and slot.state is not SlotState.RETIRING:
                self._clear(slot, gap.end)
        others = [slot for slot in self.pair if slot.name != kept]
        if not kept and any(slot.load is not None for slot in others):
            return True
        target = self.pair[kept] if kept else min(others, key=lambda slot: _SOONEST_FIRST.index(slot.state))
        self.change(gap=None)
        self.set_active(target.name)
        if target.has_process:
            self.add(m.Prioritise(target.name))
        self.add(*(m.MoveRequests(slot.name, target.name) for slot in others if slot.load is None))
        if not kept:
            self.assign(target.name, gap.load.reset(self.now.seconds))
        self.emit_swap(_SWAPS[gap.end], target.name, "", "", with_roles=True)
        return True

    def _begin_gap(self, slot: SlotRecord, terms: m.GapTerms) -> None:
        check_lease(terms.lease_seconds, "gap_lease")
        if slot.load is not None:
            load = replace(slot.load, load_id=terms.new_load_id)
            self.change(gap=Gap(load, terms.lease_seconds, self.now.seconds + terms.lease_seconds))
            self.set_active(None)

    def _end_gap(self, end: GapEnd) -> None:
        """From now on the next load is the unloaded model's; the active slot must be none."""
        if self.pair.gap is not None and not self.pair.gap.is_over:
            self.change(gap=replace(self.pair.gap, end=end))

    def _find_reload(self, gap: Gap) -> str:
        """The slot where the updater has loaded the same bundle again on the same device; empty if there is none."""
        devices = (gap.load.device, *UNRESOLVED_DEVICES)
        for slot in self.pair:
            is_there = slot.load is not None and slot.load.device in devices and slot.state is not SlotState.RETIRING
            if is_there and slot.digest == gap.load.bundle.bundle_digest:
                return slot.name
        return ""

    def _clear(self, slot: SlotRecord, why: str) -> None:
        """Empty a slot; what waits in it stays until the unloaded model has a slot."""
        if slot.load is not None and not slot.load.is_loaded:
            error = Interrupted(f"the slot was needed, load it again later: {why}", reason="LOAD_YIELDED")
            self.add(m.FailLoad(slot.load.load_id, error))
        if slot.has_process:
            self.empty_slot(slot.name, why)
            return
        self.emit_slot(slot.name, "retire_begun", why)
        self.change_slot(slot.name, load=None)
