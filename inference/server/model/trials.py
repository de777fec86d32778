"""Trials: activation of a candidate, commit, rollback, and the end of a trial lease."""

from dataclasses import astuple

from common.errors import Conflict, InputRefused, NotFound
from inference.server.events import SwapDone
from inference.server.model.options import ModelOptions
from inference.server.model.roles import Role, Roles, Trial, TrialEnd, TrialOutcome, slot_event
from inference.server.model.slot import OUT_OF_MEMORY, Slot
from inference.server.model.stats import StatsTable
from inference.server.request import Attribution

MIN_TRIAL_LEASE_SECONDS = 1.0
MAX_TRIAL_LEASE_SECONDS = 24 * 3600.0


class Trials:
    """Begins and ends the trials of one model. Loop thread only."""

    def __init__(self, roles: Roles, stats: StatsTable, options: ModelOptions) -> None:
        self._roles = roles
        self._stats = stats
        self._options = options

    def activate(self, load_id: str, trial_lease_seconds: float, transaction_id: str) -> None:
        """Begin a trial, extend the trial lease, or roll back to the previous slot, depending on what `load_id` names.

        Raises:
            HotslotError: not possible; nothing has changed.
        """
        roles = self._roles
        slot = self._get_slot_holding(load_id)
        if roles.trial is not None and slot is roles.trial.previous:
            self.roll_back(transaction_id, TrialOutcome.ROLLED_BACK)
            return
        if not MIN_TRIAL_LEASE_SECONDS <= trial_lease_seconds <= MAX_TRIAL_LEASE_SECONDS:
            raise InputRefused(
                f"a trial lease is {MIN_TRIAL_LEASE_SECONDS:.0f} s to {MAX_TRIAL_LEASE_SECONDS:.0f} s, "
                f"not {trial_lease_seconds:.3f} s",
                reason="LEASE_OUT_OF_RANGE",
                field="trial_lease",
            )
        lease_ends = self._options.clock.monotonic() + trial_lease_seconds
        if slot is roles.active:
            if roles.trial is not None:
                roles.trial.lease_ends = lease_ends
            return
        if not slot.is_loaded or slot is roles.fallback:
            raise Conflict("the load is not complete, or is a CPU fallback", reason="NOT_LOADED")
        self._begin(slot, lease_ends, transaction_id)

    def commit(self, load_id: str, transaction_id: str) -> None:
        """End the trial and keep its revision.

        Raises:
            HotslotError: the load is not on trial; nothing has changed.
        """
        roles = self._roles
        slot = self._get_slot_holding(load_id)
        if slot is not roles.active:
            raise Conflict("this load is not active", reason="NOT_ON_TRIAL")
        if roles.trial is None:
            return
        self._close(TrialOutcome.COMMITTED)
        self.emit_change("trial_committed", slot, "", transaction_id)

    def roll_back(self, transaction_id: str, outcome: TrialOutcome, reason: str = "") -> None:
        """Make the previous slot active again; the trial still answers the requests that it holds.

        Args:
            transaction_id: of the command; empty if the server decided it.
            outcome: reported to the updater.
            reason: why the server decided it; empty after a command.
        """
        roles, trial = self._roles, self._roles.trial
        if trial is None or trial.previous is None:
            return
        failed_digest = _digest(trial.slot)
        self._close(outcome, reason)
        roles.previous = None
        roles.set_active(trial.previous)
        self.emit_change(f"trial_{outcome.lower()}", trial.previous, failed_digest, transaction_id)

    def apply_attribution(self, attribution: Attribution) -> None:
        """Roll back a trial that ran out of memory at a request which the previous slot has answered."""
        trial = self._roles.trial
        if trial is None or trial.slot.load is None or attribution.reason != OUT_OF_MEMORY:
            return
        if (attribution.bundle_digest, attribution.device) == astuple(trial.slot.load.key):
            self.roll_back("", TrialOutcome.ROLLED_BACK, OUT_OF_MEMORY)

    def end_expired_trial(self, now: float) -> None:
        """Roll back a trial whose lease has expired."""
        trial = self._roles.trial
        if trial is not None and now >= trial.lease_ends and trial.previous is not None:
            self.roll_back("", TrialOutcome.LEASE_EXPIRED)

    def find_retirable(self, load_id: str) -> Slot | None:
        """The slot to retire for a load; None if no slot holds it.

        A first install on trial has no previous slot: retiring it is its rollback, and ends the trial here.

        Raises:
            Conflict: the slot is active, the previous slot of a trial, or the CPU fallback.
        """
        slot = self._roles.slot_holding(load_id)
        if slot is None:
            return None
        trial = self._roles.trial
        is_trial_previous = trial is not None and slot is trial.previous
        is_first_install = trial is not None and slot is trial.slot and trial.previous is None
        if slot is self._roles.fallback:
            raise Conflict("the slot is loading the CPU fallback", reason="SLOT_IN_USE")
        if is_first_install:
            self._close(TrialOutcome.ROLLED_BACK)
            self._roles.set_active(None)
        elif slot is self._roles.active or is_trial_previous:
            role = self._roles.role_of(slot).lower()
            raise Conflict(f"the slot is {role}, it cannot be retired now", reason="SLOT_IN_USE")
        return slot

    def _begin(self, slot: Slot, lease_ends: float, transaction_id: str) -> None:
        roles = self._roles
        if roles.trial is not None:
            raise Conflict("another revision is on trial", reason="GENERATION_CONFLICT")
        previous = roles.active
        baseline = None
        if previous is not None and previous.load is not None:
            baseline = self._stats.get(previous.load.key).copy()
        roles.previous = previous
        roles.trial = Trial(
            slot=slot,
            previous=previous,
            transaction_id=transaction_id,
            started_at=self._options.clock.now(),
            lease_ends=lease_ends,
            baseline=baseline,
        )
        roles.set_active(slot)
        if slot.process is not None:
            slot.process.set_serving(True)
        self.emit_change("slot_activated", slot, "" if previous is None else _digest(previous), transaction_id)

    def _close(self, outcome: TrialOutcome, reason: str = "") -> None:
        trial = self._roles.trial
        if trial is None:
            return
        self._roles.trial = None
        self._roles.last_trial = TrialEnd(_digest(trial.slot), outcome, self._options.clock.now(), reason)
        self._roles.generation += 1

    def _get_slot_holding(self, load_id: str) -> Slot:
        slot = self._roles.slot_holding(load_id)
        if slot is None:
            raise NotFound(
                "no slot holds this load", reason="LOAD_UNKNOWN", field="load_id", resource=("load", load_id[:64])
            )
        return slot

    def emit_change(self, change: str, slot: Slot, previous_digest: str, transaction_id: str) -> None:
        """Emit a change of the active slot or the end of a trial, and both slots' roles."""
        load = slot.load
        self._options.emit(
            SwapDone(
                model=self._options.model,
                change=change,
                slot=slot.name,
                revision="" if load is None else load.bundle.revision,
                digest=_digest(slot),
                previous_digest=previous_digest,
                transaction_id=transaction_id,
                generation=self._roles.generation,
            )
        )
        for each in self._roles.slots.values():
            self._options.emit(slot_event(self._options.model, self._roles, each, "role_changed", ""))


def is_answering(role: Role) -> bool:
    """Whether requests may be routed to a slot of this role."""
    return role in (Role.ACTIVE, Role.TRIAL, Role.PREVIOUS, Role.FALLBACK)


def _digest(slot: Slot) -> str:
    return "" if slot.load is None else slot.load.bundle.bundle_digest
