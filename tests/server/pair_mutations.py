"""Defences taken out of the shipped transitions, one at a time: each must make the exploration fail."""

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from unittest.mock import patch

from inference.server.model import messages as m
from inference.server.model import transitions
from inference.server.model.pair import Load, Role, SlotState, TrialOutcome
from inference.server.model.step import Step

_empty_slot = Step.empty_slot
_set_active = Step.set_active
_assign = Step.assign
_roll_back = Step.roll_back


@contextlib.contextmanager
def retire_without_waiting() -> Iterator[None]:
    """A slot's process is ended although a request holds a lease on it."""

    def empty_slot(self: Step, name: str, detail: str, **options: bool) -> None:
        self.change_slot(name, is_leased=False)
        _empty_slot(self, name, detail, **options)

    with patch.object(Step, "empty_slot", empty_slot):
        yield


@contextlib.contextmanager
def lease_over_forgotten() -> Iterator[None]:
    """A retiring process goes on after its last lease."""
    with patch.dict(transitions.HANDLERS, {m.LeaseOver: lambda *_: None}):
        yield


@contextlib.contextmanager
def generation_stands_still() -> Iterator[None]:
    """A swap is no new generation."""

    def set_active(self: Step, name: str | None) -> None:
        self.change(active=name)

    with patch.object(Step, "set_active", set_active):
        yield


@contextlib.contextmanager
def expired_trial_goes_on() -> Iterator[None]:
    """A trial lease that runs out has no effect."""

    def roll_back(self: Step, transaction_id: str, outcome: TrialOutcome, reason: str = "") -> None:
        if outcome is not TrialOutcome.LEASE_EXPIRED:
            _roll_back(self, transaction_id, outcome, reason)

    with patch.object(Step, "roll_back", roll_back):
        yield


@contextlib.contextmanager
def trial_without_previous() -> Iterator[None]:
    """A rollback ends the trial and makes no slot active."""

    def roll_back(self: Step, transaction_id: str, outcome: TrialOutcome, reason: str = "") -> None:
        trial = self.pair.trial
        _roll_back(self, transaction_id, outcome, reason)
        if trial is not None:
            self.set_active(None)

    with patch.object(Step, "roll_back", roll_back):
        yield


@contextlib.contextmanager
def previous_may_be_retired() -> Iterator[None]:
    """RetireSlot empties the previous slot of a trial."""

    def retire(self: Step, event: m.Retire) -> None:
        slot = self.pair.slot_holding(event.load_id)
        if slot is not None and slot.name != self.pair.active:
            self.empty_slot(slot.name, "RetireSlot")

    with patch.dict(transitions.HANDLERS, {m.Retire: retire}):
        yield


@contextlib.contextmanager
def no_restart() -> Iterator[None]:
    """An active slot whose process has ended stays without one."""
    with patch.object(Step, "schedule_restart", lambda *_: None):
        yield


@contextlib.contextmanager
def candidate_keeps_its_slot() -> Iterator[None]:
    """The CPU fallback waits for a candidate instead of taking its slot."""
    begin = Step.begin_fallback

    def begin_fallback(self: Step, active: str, load: Load, load_id: str) -> None:
        if self.pair.role_of(self.pair.other(active).name) is not Role.CANDIDATE:
            begin(self, active, load, load_id)

    with patch.object(Step, "begin_fallback", begin_fallback):
        yield


@contextlib.contextmanager
def held_requests_stay() -> Iterator[None]:
    """The pending load gets its slot, and the requests that wait for it get no answer."""
    use = Step.use_emptied_slot

    def use_emptied_slot(self: Step, name: str) -> None:
        use(self, name)
        self.effects = [effect for effect in self.effects if not isinstance(effect, m.SubmitAwaitingCpu)]

    with patch.object(Step, "use_emptied_slot", use_emptied_slot):
        yield


@contextlib.contextmanager
def waiting_requests_stay() -> Iterator[None]:
    """What waits in a slot without a process is left behind when the slot is emptied."""

    def empty_slot(self: Step, name: str, detail: str, **options: bool) -> None:
        _empty_slot(self, name, detail, **options)
        self.effects = [effect for effect in self.effects if not isinstance(effect, m.MoveRequests)]

    with patch.object(Step, "empty_slot", empty_slot):
        yield


@contextlib.contextmanager
def two_processes_in_a_slot() -> Iterator[None]:
    """A bundle is loaded by a new process although the standby process is ready."""

    def assign(self: Step, name: str, load: Load) -> None:
        is_ready = self.pair[name].state is SlotState.READY
        if is_ready:
            self.change_slot(name, state=SlotState.EMPTY)
        _assign(self, name, load)

    with patch.object(Step, "assign", assign):
        yield


@contextlib.contextmanager
def killed_although_it_answers() -> Iterator[None]:
    """A model that can answer is killed when its slot is needed."""

    def empty_slot(self: Step, name: str, detail: str, **options: bool) -> None:
        is_loaded = self.pair[name].is_loaded
        _empty_slot(self, name, detail, **options)
        if is_loaded:
            self.add(m.Kill(name, detail))

    with patch.object(Step, "empty_slot", empty_slot):
        yield


ALL: dict[str, Callable[[], AbstractContextManager[None]]] = {
    "retire without waiting": retire_without_waiting,
    "lease over forgotten": lease_over_forgotten,
    "generation stands still": generation_stands_still,
    "expired trial goes on": expired_trial_goes_on,
    "trial without previous": trial_without_previous,
    "previous may be retired": previous_may_be_retired,
    "no restart": no_restart,
    "candidate keeps its slot": candidate_keeps_its_slot,
    "held requests stay": held_requests_stay,
    "waiting requests stay": waiting_requests_stay,
    "two processes in a slot": two_processes_in_a_slot,
    "killed although it answers": killed_although_it_answers,
}
