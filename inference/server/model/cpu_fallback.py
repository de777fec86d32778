"""The CPU fallback: when a device runs out of memory, the active bundle is loaded on the CPU in the other slot.

That slot becomes active when it has answered, and the device is saved. `shortage` decides; this module performs it.
"""

import uuid

from common.errors import Interrupted, Overloaded
from inference.server.events import CpuFallbackChanged
from inference.server.model import shortage
from inference.server.model.cpu_fallback_file import CpuFallbackRow
from inference.server.model.options import ModelOptions
from inference.server.model.roles import Roles, TrialOutcome
from inference.server.model.shortage import CPU_DEVICE, DevicePolicy, ShortageAction, SlotFacts
from inference.server.model.slot import OUT_OF_MEMORY, Load, Slot, SlotState
from inference.server.model.trials import Trials
from inference.server.request import PendingRequest

PAUSE_SECONDS = 30.0  # after a failed fallback, before another is begun
RETRY_SECONDS = 1.0  # retry delay for callers if no better estimate is known


class CpuFallbackController:
    """Moves one model from a device that ran out of memory to the CPU. Loop thread only."""

    def __init__(self, roles: Roles, trials: Trials, options: ModelOptions) -> None:
        self._roles = roles
        self._trials = trials
        self._options = options
        self._policy = DevicePolicy(options.device, options.allow_cpu_fallback)
        self._pending_load: Load | None = None  # starts when the other slot is empty
        self._held_requests: list[PendingRequest] = []  # wait for that load; bounded by admission
        self._begun_at = 0.0
        self._expected_seconds = 0.0  # of the load
        self._not_before = 0.0  # clock.monotonic()

    @property
    def current(self) -> CpuFallbackRow | None:
        """The saved fallback; None if the model has none."""
        return self._options.cpu_fallback_file.get(self._options.model)

    def restore(self) -> None:
        """At start: keep the saved fallback, or remove it if the settings no longer allow it."""
        row = self.current
        if row is None:
            return
        if self._policy.allows(row.device) and self._policy.may_move_to_cpu(row.device):
            self._emit_change("cpu_fallback_kept", row.device, row.bundle_digest, row.reason)
        else:
            self._clear(row, "the settings changed")

    def default_device(self) -> str:
        """The device for a load that names none: the CPU during a fallback, else the configured device."""
        row = self.current
        return self._options.device if row is None else row.fallback_device

    def handle_item_shortage(self, slot: Slot, request: PendingRequest) -> ShortageAction:
        """Handle an item that did not fit: decides, and changes the slots; the caller finishes or moves the request."""
        other = self._roles.other_slot(slot)
        action = shortage.decide_after_item(
            self._facts_of(slot),
            self._facts_of(other),
            self._policy,
            is_probe=request.internal,
            other_failed=request.attribution is not None
            or (other.load is not None and other.load.placement in request.out_of_memory_on),
        )
        if action not in (ShortageAction.FALL_BACK_TO_CPU, ShortageAction.ROLL_BACK_TRIAL_AND_FALL_BACK):
            return action
        if self._options.clock.monotonic() < self._not_before or self._options.is_stopping():
            return ShortageAction.REFUSE
        if action is ShortageAction.ROLL_BACK_TRIAL_AND_FALL_BACK:
            self._trials.roll_back("", TrialOutcome.YIELDED, OUT_OF_MEMORY)
        if self._roles.active is not None and self._roles.active.load is not None:
            self._begin(self._roles.active, self._roles.active.load)
        return action

    def handle_load_shortage(self, slot: Slot, reason: str) -> ShortageAction:
        """Handle a load that did not fit: decides, and changes the device or trial; the caller ends the process."""
        action = shortage.decide_after_load(
            self._facts_of(slot), self._facts_of(self._roles.other_slot(slot)), self._policy
        )
        if slot is self._roles.fallback:
            self.abandon(f"it did not fit on the CPU: {reason}")
        elif action is ShortageAction.ROLL_BACK_TRIAL:
            self._trials.roll_back("", TrialOutcome.ROLLED_BACK, OUT_OF_MEMORY)
        elif action is ShortageAction.FALL_BACK_TO_CPU:
            self._reload_in_place(slot, reason)
        return action

    def hold_request(self, request: PendingRequest) -> None:
        """Hold a request until the CPU can answer it; fail it at once if its deadline is sooner."""
        now = self._options.clock.monotonic()
        target = self._roles.fallback or (self._roles.active if self._pending_load is None else None)
        is_ready = target is not None and target.is_loaded
        expected = 0.0 if is_ready else max(0.0, self._expected_seconds - (now - self._begun_at))
        if request.deadline - now <= expected:
            request.finish(self.out_of_memory_error(expected))
            return
        request.release_leases()  # its lease would keep the slot that must be emptied first
        request.try_until = 0.0
        if target is None:
            self._held_requests.append(request)
        else:
            target.submit(request)

    def out_of_memory_error(self, retry_seconds: float = 0.0) -> Overloaded:
        """The error for a request that no slot has memory for."""
        pause = self._not_before - self._options.clock.monotonic()
        return Overloaded(
            "the device has no memory left for this request",
            reason=OUT_OF_MEMORY,
            retry_after_seconds=max(RETRY_SECONDS, retry_seconds, pause),
        )

    def on_slot_emptied(self, slot: Slot) -> None:
        """Give an emptied slot the pending CPU load, if there is one."""
        if self._pending_load is not None and slot.load is None and slot is not self._roles.active:
            slot.load, self._pending_load = self._pending_load, None
            self._roles.fallback = slot
            slot.deaths_in_row = 0
            self._submit_held_requests(slot)

    def on_slot_answered(self, slot: Slot) -> None:
        """Make the slot of the CPU fallback active once it has answered."""
        if slot is self._roles.fallback:
            self._activate(slot, OUT_OF_MEMORY)

    def on_self_test_failed(self, slot: Slot, why: str) -> None:
        """Abandon a CPU fallback whose slot has failed its self-test."""
        if slot is self._roles.fallback:
            self.abandon(f"its self-test failed: {why}")
            slot.retire("its self-test failed")

    def abandon(self, why: str) -> None:
        """Give up the CPU fallback: the active slot stays, and no other fallback begins for PAUSE_SECONDS."""
        slot, self._roles.fallback = self._roles.fallback, None
        self._not_before = self._options.clock.monotonic() + PAUSE_SECONDS
        active = self._roles.active
        device = "" if active is None or active.load is None else active.load.device
        digest = "" if slot is None or slot.load is None else slot.load.bundle.bundle_digest
        self._emit_change("cpu_fallback_failed", device, digest, why)

    def on_committed(self, load_id: str) -> None:
        """End the fallback if the committed load is on another device than the CPU."""
        row, slot = self.current, self._roles.slot_holding(load_id)
        if row is not None and slot is not None and slot.load is not None and slot.load.device != row.fallback_device:
            self._clear(row, f"committed on {slot.load.device}")

    def on_devices_known(self, slot: Slot) -> None:
        """End the fallback if its device no longer exists."""
        row = self.current
        names = [name for name, _ in slot.devices]
        if row is not None and names and row.device not in names:
            self._clear(row, "the device is gone")

    # Helpers.

    def _begin(self, active: Slot, held: Load) -> None:
        """Begin to move the active bundle to the CPU, unless that has begun."""
        if self._pending_load is not None or self._roles.fallback is not None:
            return
        now, other = self._options.clock.monotonic(), self._roles.other_slot(active)
        if self._is_loaded_on_cpu(other, held):
            self._activate(other, OUT_OF_MEMORY)
            return
        # An estimate: the load time on the CPU is not known yet.
        self._begun_at, self._expected_seconds = now, held.load_seconds
        load = Load(
            load_id=uuid.uuid4().hex[:12],
            bundle=held.bundle,
            folder=held.folder,
            device=CPU_DEVICE,
            transaction_id="",
            begun_at=now,
        )
        self._emit_change("cpu_fallback_begun", held.device, held.bundle.bundle_digest, OUT_OF_MEMORY)
        if other.load is not None:
            self._vacate(other)
        if other.load is None and other.state is not SlotState.RETIRING:
            self._start_load(other, load)
        else:
            self._pending_load = load

    def _start_load(self, slot: Slot, load: Load) -> None:
        self._roles.fallback = slot
        if slot.process is not None:
            slot.process.set_serving(True)
        slot.assign(load)

    def _vacate(self, slot: Slot) -> None:
        """Empty the other slot for the fallback; its load is not counted as failed."""
        if slot.load is not None and not slot.load.is_loaded and slot.load.failure is None:
            message = "the slot was needed for the CPU fallback; load it again later"
            slot.load.failure = Interrupted(message, reason="LOAD_YIELDED")
            slot.load.changed.notify()
        if slot is self._roles.previous:
            self._roles.previous = None
        if slot.state is not SlotState.RETIRING:
            slot.retire("yielded: memory ran out and the CPU fallback needs the slot")

    def _reload_in_place(self, slot: Slot, reason: str) -> None:
        """Load on the CPU in the same slot, with its next process."""
        load = slot.load
        if load is None:
            return
        other = self._roles.other_slot(slot)
        is_active = slot is self._roles.active
        if is_active and other is self._roles.fallback:
            self._activate(other, reason)  # it is loading already, and no other slot can answer
        elif is_active and self._is_loaded_on_cpu(other, load):
            self._activate(other, reason)
        else:
            load.next_device = CPU_DEVICE
            slot.deaths_in_row = 0
            self._save(load, reason)
            if is_active and self._pending_load is not None:
                self._pending_load = None
                self._submit_held_requests(slot)

    def _is_loaded_on_cpu(self, other: Slot, load: Load) -> bool:
        held = other.load
        return (
            held is not None
            and other.is_loaded
            and (held.bundle.bundle_digest, held.device) == (load.bundle.bundle_digest, CPU_DEVICE)
        )

    def _activate(self, slot: Slot, reason: str) -> None:
        """Make the slot on the CPU active; the slot that it replaces retires after its last lease."""
        roles, old = self._roles, self._roles.active
        roles.fallback = None
        if roles.previous is slot:
            roles.previous = None
        roles.set_active(slot)
        if slot.process is not None:
            slot.process.set_serving(True)
        if old is None or old.load is None:
            return
        self._save(old.load, reason)
        self._trials.emit_change("slot_fell_back", slot, old.load.bundle.bundle_digest, "")
        old.retire(f"{old.load.device} ran out of memory")

    def _save(self, load: Load, reason: str) -> None:
        row = CpuFallbackRow(
            model=self._options.model,
            device=load.device,
            fallback_device=CPU_DEVICE,
            bundle_digest=load.bundle.bundle_digest,
            since=self._options.clock.now(),
            reason=reason,
        )
        self._options.cpu_fallback_file.put(row)
        self._emit_change("cpu_fallback_taken", row.device, row.bundle_digest, reason)

    def _clear(self, row: CpuFallbackRow, why: str) -> None:
        self._options.cpu_fallback_file.remove(row.model)
        self._emit_change("cpu_fallback_ended", row.device, row.bundle_digest, why)

    def _submit_held_requests(self, slot: Slot) -> None:
        parked, self._held_requests = self._held_requests, []
        for request in parked:
            if not request.is_done:
                slot.submit(request)

    def _facts_of(self, slot: Slot) -> SlotFacts:
        load = slot.load
        return SlotFacts(self._roles.role_of(slot), "" if load is None else load.device)

    def _emit_change(self, change: str, device: str, digest: str, detail: str) -> None:
        self._options.emit(
            CpuFallbackChanged(
                model=self._options.model,
                change=change,
                device=device,
                fallback_device=CPU_DEVICE,
                digest=digest,
                detail=detail,
            )
        )
