"""Memory ran out: the same bundle is loaded on the CPU in the other slot, proven, swapped in, and remembered.

What follows is decided in `shortage` alone; this room performs it.
"""

import uuid

from common.errors import Interrupted, Overloaded
from inference.server.events import FallbackChanged
from inference.server.model import shortage
from inference.server.model.dependencies import ManagerKit
from inference.server.model.fallback_file import Fallback
from inference.server.model.load import Load
from inference.server.model.roles import Roles, TrialOutcome
from inference.server.model.shortage import FALLBACK_DEVICE, OUT_OF_MEMORY, Place, Policy, Step
from inference.server.model.slot import Slot, SlotState
from inference.server.model.trials import Trials
from inference.server.request import Ticket

PAUSE_SECONDS = 30.0  # after a fallback that failed, before another is begun
RETRY_SECONDS = 1.0  # told to a caller where nothing better is known


class Fallbacks:
    """One model's way from a device that ran out to the fallback device. Loop thread only."""

    def __init__(self, roles: Roles, trials: Trials, kit: ManagerKit) -> None:
        self._roles = roles
        self._trials = trials
        self._kit = kit
        self._policy = Policy(kit.device, kit.cpu_fallback)
        self._wish: Load | None = None  # waits until the other slot is empty
        self._parked: list[Ticket] = []  # wait for the same; bounded by the entrance
        self._begun_at = 0.0
        self._expected_seconds = 0.0  # of the load
        self._not_before = 0.0  # clock.monotonic()

    @property
    def standing(self) -> Fallback | None:
        """The fallback that is remembered."""
        return self._kit.fallbacks.of(self._kit.model)

    def recall(self) -> None:
        """A new server keeps to what the last one found out, unless the settings no longer mean it."""
        row = self.standing
        if row is None:
            return
        if self._policy.names(row.device) and self._policy.may_leave(row.device):
            self._tell("fallback_kept", row.device, row.bundle_digest, row.reason)
        else:
            self._forget(row, "the settings changed")

    def default_device(self) -> str:
        """Where a load goes for which no device was named: the fallback's while it stands, else the policy's."""
        row = self.standing
        return self._kit.device if row is None else row.fallback_device

    def after_item(self, slot: Slot, ticket: Ticket) -> Step:
        """A single item did not fit: decide, and do what concerns the slots; the caller sees to the ticket."""
        beside = self._roles.other(slot)
        step = shortage.after_item(
            self._place(slot),
            self._place(beside),
            self._policy,
            is_probe=ticket.internal,
            beside_failed=ticket.charge is not None
            or (beside.load is not None and beside.load.place in ticket.ran_out),
        )
        if step not in (Step.FALL_BACK, Step.END_TRIAL_AND_FALL_BACK):
            return step
        if self._kit.clock.monotonic() < self._not_before or self._kit.is_stopping():
            return Step.REFUSE
        if step is Step.END_TRIAL_AND_FALL_BACK:
            self._trials.roll_back("", TrialOutcome.YIELDED, OUT_OF_MEMORY)
        if self._roles.active is not None and self._roles.active.load is not None:
            self._begin(self._roles.active, self._roles.active.load)
        return step

    def after_load(self, slot: Slot, reason: str) -> Step:
        """A load did not fit: decide, and do what concerns devices and trials; its process is yet to be ended."""
        step = shortage.after_load(self._place(slot), self._place(self._roles.other(slot)), self._policy)
        if slot is self._roles.fallback:
            self.give_up(f"it did not fit there either: {reason}")
        elif step is Step.END_TRIAL:
            self._trials.roll_back("", TrialOutcome.ROLLED_BACK, OUT_OF_MEMORY)
        elif step is Step.FALL_BACK:
            self._leave_in_place(slot, reason)
        return step

    def wait(self, ticket: Ticket) -> None:
        """Let a request wait for the fallback device, or refuse it at once if its deadline is sooner."""
        now = self._kit.clock.monotonic()
        target = self._roles.fallback or (self._roles.active if self._wish is None else None)
        is_there = target is not None and target.is_loaded
        expected = 0.0 if is_there else max(0.0, self._expected_seconds - (now - self._begun_at))
        if ticket.deadline - now <= expected:
            ticket.settle(self.refusal(expected))
            return
        ticket.release()  # a lease would keep the slot that has to be emptied first
        ticket.try_until = 0.0
        if target is None:
            self._parked.append(ticket)
        else:
            target.submit(ticket)

    def refusal(self, retry_seconds: float = 0.0) -> Overloaded:
        """What a caller is told whose request no device has memory for."""
        pause = self._not_before - self._kit.clock.monotonic()
        return Overloaded(
            "the device has no memory left for this request",
            reason=OUT_OF_MEMORY,
            retry_after_seconds=max(RETRY_SECONDS, retry_seconds, pause),
        )

    def emptied(self, slot: Slot) -> None:
        """A slot's process is gone: if the fallback waits for it, it takes it."""
        if self._wish is not None and slot.load is None and slot is not self._roles.active:
            slot.load, self._wish = self._wish, None
            self._roles.fallback = slot
            slot.deaths_in_row = 0
            self._send_parked(slot)

    def proven(self, slot: Slot) -> None:
        """A slot has answered: if it is the fallback's, it is the active one from now on."""
        if slot is self._roles.fallback:
            self._swap_to(slot, OUT_OF_MEMORY)

    def disproven(self, slot: Slot, why: str) -> None:
        """A slot has failed its self-test: a fallback that does so before it has answered anybody is none."""
        if slot is self._roles.fallback:
            self.give_up(f"its self-test failed: {why}")
            slot.retire("its self-test failed")

    def give_up(self, why: str) -> None:
        """The fallback device does not answer either: what is active stays, and nothing is tried for a while."""
        slot, self._roles.fallback = self._roles.fallback, None
        self._not_before = self._kit.clock.monotonic() + PAUSE_SECONDS
        active = self._roles.active
        device = "" if active is None or active.load is None else active.load.device
        digest = "" if slot is None or slot.load is None else slot.load.bundle.bundle_digest
        self._tell("fallback_failed", device, digest, why)

    def committed(self, load_id: str) -> None:
        """A load was committed: one on another device than the fallback's ends the fallback."""
        row, slot = self.standing, self._roles.holding(load_id)
        if row is not None and slot is not None and slot.load is not None and slot.load.device != row.fallback_device:
            self._forget(row, f"committed on {slot.load.device}")

    def devices_seen(self, slot: Slot) -> None:
        """A runner has said which devices there are: nobody comes back to one that is gone."""
        row = self.standing
        names = [name for name, _ in slot.devices]
        if row is not None and names and row.device not in names:
            self._forget(row, "the device is gone")

    # Helpers.

    def _begin(self, active: Slot, held: Load) -> None:
        """See that the active bundle comes to the fallback device, unless it is on its way."""
        if self._wish is not None or self._roles.fallback is not None:
            return
        now, beside = self._kit.clock.monotonic(), self._roles.other(active)
        if self._is_there_already(beside, held):
            self._swap_to(beside, OUT_OF_MEMORY)
            return
        # On another device it takes another time; this is the best that is known.
        self._begun_at, self._expected_seconds = now, held.load_seconds
        load = Load(
            load_id=uuid.uuid4().hex[:12],
            bundle=held.bundle,
            folder=held.folder,
            device=FALLBACK_DEVICE,
            transaction_id="",
            begun_at=now,
        )
        self._tell("fallback_begun", held.device, held.bundle.bundle_digest, OUT_OF_MEMORY)
        if beside.load is not None:
            self._yield(beside)
        if beside.load is None and beside.state is not SlotState.RETIRING:
            self._start(beside, load)
        else:
            self._wish = load

    def _start(self, slot: Slot, load: Load) -> None:
        self._roles.fallback = slot
        if slot.process is not None:
            slot.process.set_serving(True)
        slot.begin(load)

    def _yield(self, slot: Slot) -> None:
        """What is needed less than the service makes room, without blame."""
        if slot.load is not None and not slot.load.is_loaded and slot.load.failure is None:
            message = "the slot was needed to keep the service up; load it again later"
            slot.load.failure = Interrupted(message, reason="LOAD_YIELDED")
            slot.load.changed.notify()
        if slot is self._roles.previous:
            self._roles.previous = None
        if slot.state is not SlotState.RETIRING:
            slot.retire("yielded: memory ran out and the service needs the slot")

    def _leave_in_place(self, slot: Slot, reason: str) -> None:
        """A load that does not fit frees its own slot: the next process there loads on the fallback device."""
        load = slot.load
        if load is None:
            return
        beside = self._roles.other(slot)
        is_answered = slot is self._roles.active
        if is_answered and beside is self._roles.fallback:
            self._swap_to(beside, reason)  # it is on its way already; nothing else could answer
        elif is_answered and self._is_there_already(beside, load):
            self._swap_to(beside, reason)
        else:
            load.fall_back_to = FALLBACK_DEVICE
            slot.deaths_in_row = 0
            self._remember(load, reason)
            if is_answered and self._wish is not None:
                self._wish = None
                self._send_parked(slot)

    def _is_there_already(self, beside: Slot, load: Load) -> bool:
        held = beside.load
        return (
            held is not None
            and beside.is_loaded
            and (held.bundle.bundle_digest, held.device) == (load.bundle.bundle_digest, FALLBACK_DEVICE)
        )

    def _swap_to(self, slot: Slot, reason: str) -> None:
        """The slot on the fallback device answers from now on; what it replaces finishes what it holds."""
        roles, old = self._roles, self._roles.active
        roles.fallback = None
        if roles.previous is slot:
            roles.previous = None
        roles.swap(slot)
        if slot.process is not None:
            slot.process.set_serving(True)
        if old is None or old.load is None:
            return
        self._remember(old.load, reason)
        self._trials.tell("slot_fell_back", slot, old.load.bundle.bundle_digest, "")
        old.retire(f"{old.load.device} ran out of memory")

    def _remember(self, load: Load, reason: str) -> None:
        row = Fallback(
            model=self._kit.model,
            device=load.device,
            fallback_device=FALLBACK_DEVICE,
            bundle_digest=load.bundle.bundle_digest,
            since=self._kit.clock.now(),
            reason=reason,
        )
        self._kit.fallbacks.put(row)
        self._tell("fallback_taken", row.device, row.bundle_digest, reason)

    def _forget(self, row: Fallback, why: str) -> None:
        self._kit.fallbacks.drop(row.model)
        self._tell("fallback_ended", row.device, row.bundle_digest, why)

    def _send_parked(self, slot: Slot) -> None:
        parked, self._parked = self._parked, []
        for ticket in parked:
            if not ticket.is_settled:
                slot.submit(ticket)

    def _place(self, slot: Slot) -> Place:
        load = slot.load
        return Place(self._roles.role_of(slot), "" if load is None else load.device)

    def _tell(self, change: str, device: str, digest: str, detail: str) -> None:
        self._kit.emit(
            FallbackChanged(
                model=self._kit.model,
                change=change,
                device=device,
                fallback_device=FALLBACK_DEVICE,
                digest=digest,
                detail=detail,
            )
        )
