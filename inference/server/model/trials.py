"""Swaps: a candidate answers on trial, is committed, taken back, or its lease runs out."""

from dataclasses import astuple

from common.errors import Conflict, InputRefused, NotFound
from inference.server.events import SwapDone
from inference.server.model.dependencies import ManagerKit
from inference.server.model.roles import Role, Roles, Trial, TrialEnd, TrialOutcome
from inference.server.model.shortage import OUT_OF_MEMORY
from inference.server.model.slot import Slot
from inference.server.model.stats import StatsBook
from inference.server.model.telling import slot_event
from inference.server.request import Charge

MIN_TRIAL_LEASE_SECONDS = 1.0
MAX_TRIAL_LEASE_SECONDS = 24 * 3600.0


class Trials:
    """The only hand that changes who answers by command or by a trial lease's end. Loop thread only."""

    def __init__(self, roles: Roles, book: StatsBook, kit: ManagerKit) -> None:
        self._roles = roles
        self._book = book
        self._kit = kit

    def activate(self, load_id: str, trial_lease_seconds: float, transaction_id: str) -> None:
        """Let a loaded candidate answer on trial, extend a trial lease, or go back to the previous slot.

        Raises:
            HotslotError: it cannot be done; nothing has changed.
        """
        roles = self._roles
        slot = self._holding(load_id)
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
        lease_ends = self._kit.clock.monotonic() + trial_lease_seconds
        if slot is roles.active:
            if roles.trial is not None:
                roles.trial.lease_ends = lease_ends
            return
        if not slot.is_loaded or slot is roles.fallback:
            raise Conflict("the load is not done, or not yours to activate", reason="NOT_LOADED")
        self._begin(slot, lease_ends, transaction_id)

    def commit(self, load_id: str, transaction_id: str) -> None:
        """End a trial for good.

        Raises:
            HotslotError: the load is not on trial; nothing has changed.
        """
        roles = self._roles
        slot = self._holding(load_id)
        if slot is not roles.active:
            raise Conflict("this load does not answer callers", reason="NOT_ON_TRIAL")
        if roles.trial is None:
            return
        self._close(TrialOutcome.COMMITTED)
        self.tell("trial_committed", slot, "", transaction_id)

    def roll_back(self, transaction_id: str, outcome: TrialOutcome, reason: str = "") -> None:
        """Put the previous slot back; what the trial holds in flight is still answered by it.

        Args:
            transaction_id: of whoever asked; empty if the server does so by itself.
            outcome: as it is told.
            reason: why the server does so by itself.
        """
        roles, trial = self._roles, self._roles.trial
        if trial is None or trial.previous is None:
            return
        failed_digest = _digest(trial.slot)
        self._close(outcome, reason)
        roles.previous = None
        roles.swap(trial.previous)
        self.tell(f"trial_{outcome.lower()}", trial.previous, failed_digest, transaction_id)

    def settled(self, charge: Charge) -> None:
        """The previous slot has answered what the trial failed: where that was for memory, it does not fit."""
        trial = self._roles.trial
        if trial is None or trial.slot.load is None or charge.reason != OUT_OF_MEMORY:
            return
        if (charge.bundle_digest, charge.device) == astuple(trial.slot.load.key):
            self.roll_back("", TrialOutcome.ROLLED_BACK, OUT_OF_MEMORY)

    def check_lease(self, now: float) -> None:
        """Put the previous slot back if the trial lease has run out: whoever should have extended it is gone."""
        trial = self._roles.trial
        if trial is not None and now >= trial.lease_ends and trial.previous is not None:
            self.roll_back("", TrialOutcome.LEASE_EXPIRED)

    def retirable(self, load_id: str) -> Slot | None:
        """The slot to empty for a load; None if the load is gone already.

        A first install on trial has nothing to go back to: retiring it is its rollback.

        Raises:
            Conflict: the slot answers callers, or what a trial falls back on.
        """
        slot = self._roles.holding(load_id)
        if slot is None:
            return None
        trial = self._roles.trial
        is_net = trial is not None and slot is trial.previous
        is_first_install = trial is not None and slot is trial.slot and trial.previous is None
        if slot is self._roles.fallback:
            raise Conflict("the slot is about to answer in place of the active one", reason="SLOT_IN_USE")
        if is_first_install:
            self._close(TrialOutcome.ROLLED_BACK)
            self._roles.swap(None)
        elif slot is self._roles.active or is_net:
            role = self._roles.role_of(slot).lower()
            raise Conflict(f"the slot is {role}, a trial or the callers need it", reason="SLOT_IN_USE")
        return slot

    def _begin(self, slot: Slot, lease_ends: float, transaction_id: str) -> None:
        roles = self._roles
        if roles.trial is not None:
            raise Conflict("another revision is on trial", reason="GENERATION_CONFLICT")
        previous = roles.active
        baseline = None
        if previous is not None and previous.load is not None:
            baseline = self._book.of(previous.load.key).frozen()
        roles.previous = previous
        roles.trial = Trial(
            slot=slot,
            previous=previous,
            transaction_id=transaction_id,
            started_at=self._kit.clock.now(),
            lease_ends=lease_ends,
            baseline=baseline,
        )
        roles.swap(slot)
        if slot.process is not None:
            slot.process.set_serving(True)
        self.tell("slot_activated", slot, "" if previous is None else _digest(previous), transaction_id)

    def _close(self, outcome: TrialOutcome, reason: str = "") -> None:
        trial = self._roles.trial
        if trial is None:
            return
        self._roles.trial = None
        self._roles.last_trial = TrialEnd(_digest(trial.slot), outcome, self._kit.clock.now(), reason)
        self._roles.generation += 1

    def _holding(self, load_id: str) -> Slot:
        slot = self._roles.holding(load_id)
        if slot is None:
            raise NotFound(
                "no slot holds this load", reason="LOAD_UNKNOWN", field="load_id", resource=("load", load_id[:64])
            )
        return slot

    def tell(self, change: str, slot: Slot, previous_digest: str, transaction_id: str) -> None:
        """Tell the log and the metrics that another slot answers, or that a trial has ended."""
        load = slot.load
        self._kit.emit(
            SwapDone(
                model=self._kit.model,
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
            self._kit.emit(slot_event(self._kit.model, self._roles, each, "role_changed", ""))


def is_answering(role: Role) -> bool:
    """Whether callers wait for a slot of this role."""
    return role in (Role.ACTIVE, Role.TRIAL, Role.PREVIOUS, Role.FALLBACK)


def _digest(slot: Slot) -> str:
    return "" if slot.load is None else slot.load.bundle.bundle_digest
