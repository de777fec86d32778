"""Performs what the transitions return.

The only code that starts, loads and retires a slot's process, writes the fallback file, and emits events of slots,
trials and the CPU fallback. A `RunnerProcess` that exceeds a timeout kills its process itself; events
of requests are emitted by `requests` and `api`.
"""

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from inference.server.events import SlotChanged
from inference.server.model import messages as m
from inference.server.model.options import ModelOptions
from inference.server.model.pair import ANSWERING_ROLES, SLOT_NAMES, Pair, Role
from inference.server.model.slot import LoadProgress, Slot
from inference.server.model.stats import StatsTable
from inference.server.model.step import Now
from inference.server.model.transitions import apply
from inference.server.runner_client.protocol import EndReason, RunnerEnding
from inference.server.scheduling.dispatcher import Dispatcher


class RequestEffects(Protocol):
    """The effects on requests, performed by `requests`."""

    def make_dispatcher(self, slot: Slot) -> Dispatcher:
        """A queue for a slot's next process."""
        ...

    def send_self_test(self, effect: m.SendSelfTest) -> None:
        """Send a self-test to a slot."""
        ...

    def record_death(self, effect: m.RecordDeath) -> None:
        """Record the end of a process against a revision."""
        ...

    def move_requests(self, effect: m.MoveRequests) -> None:
        """Run what an ended process held, and what waited for it, on another slot."""
        ...

    def submit_awaiting_cpu(self, effect: m.SubmitAwaitingCpu) -> None:
        """Queue the requests that await the CPU fallback."""
        ...


class PairMachine:
    """The two slots of one model: keeps the pair, applies events to it, performs the effects. Loop thread only."""

    def __init__(self, options: ModelOptions, stats: StatsTable, requests: RequestEffects) -> None:
        self.pair = Pair()
        self._options = options
        self._rules = options.rules
        self._stats = stats
        self._progress: dict[str, LoadProgress] = {}  # by load id, of the loads in the pair
        self._events: deque[m.Event] = deque()
        self._is_applying = False
        self.slots: Mapping[str, Slot] = {
            name: Slot(name, self, requests.make_dispatcher, options.device_memories.spread, options.precision)
            for name in SLOT_NAMES
        }

        self._performers: dict[type[m.Effect], Callable[[Any], None]] = {
            m.Spawn: self._spawn,
            m.PrepareProcess: lambda _: self._options.prepare_process(),
            m.StartLoad: self._start_load,
            m.Prioritise: self._prioritise,
            m.Deprioritise: self._deprioritise,
            m.EndProcess: self._end_process,
            m.AwaitLeases: self._await_leases,
            m.Kill: self._kill,
            m.OpenQueue: self._open_queue,
            m.SendSelfTest: requests.send_self_test,
            m.RecordDeath: requests.record_death,
            m.MoveRequests: requests.move_requests,
            m.SubmitAwaitingCpu: requests.submit_awaiting_cpu,
            m.FailLoad: self._fail_load,
            m.NotifyLoad: self._notify_load,
            m.FreezeBaseline: self._freeze_baseline,
            m.SaveFallback: self._save_fallback,
            m.EmitSlot: self._emit_slot,
            m.Emit: self._emit,
        }

    def progress_of(self, load_id: str) -> LoadProgress:
        """The progress of a load of the pair."""
        return self._progress.setdefault(load_id, LoadProgress(load_id))

    def apply(self, event: m.Event) -> None:
        """Apply an event and perform what follows.

        An event that an effect causes is applied when the effects before it have been performed.

        Raises:
            HotslotError: a command that is not possible now; nothing has changed.
        """
        self._events.append(event)
        if self._is_applying:
            return
        self._is_applying = True
        errors: list[Exception] = []
        while self._events:
            try:
                errors += self._apply_one(self._events.popleft())
            except Exception as error:  # noqa: BLE001  raised below, when the other events have been applied
                errors.append(error)
        self._is_applying = False
        if errors:
            raise errors[0]

    def _apply_one(self, event: m.Event) -> list[Exception]:
        clock, errors = self._options.clock, []
        for slot in self.slots.values():
            if self.pair[slot.name].is_leased != slot.is_leased:
                self.pair = self.pair.with_leased(slot.name, is_leased=slot.is_leased)
        self.pair, effects = apply(self.pair, event, Now(clock.monotonic(), clock.now()), self._rules)
        for effect in effects:
            try:
                self._performers[type(effect)](effect)
            except Exception as error:  # noqa: BLE001  the pair has changed: the other effects must follow it
                errors.append(error)
        if effects:
            load_ids = [slot.load.load_id for slot in self.pair if slot.load is not None]
            pending = self.pair.move.pending_load
            load_ids += [] if pending is None else [pending.load_id]
            self._progress = {load_id: progress for load_id, progress in self._progress.items() if load_id in load_ids}
        return errors

    # Progress of a slot's load: not an event of the pair.

    def on_load_progress(self, slot: str, phase: str, fraction: float) -> None:
        """Report the progress of a load to its callers."""
        load = self.pair[slot].load
        if load is not None:
            self.progress_of(load.load_id).report(phase, fraction)

    def report_slots(self) -> None:
        """Emit the present state of both slots."""
        for slot in self.pair:
            self._emit_slot(m.EmitSlot(slot, self.pair.role_of(slot.name), "slot_reported"))

    # Effects on processes.

    def _spawn(self, effect: m.Spawn) -> None:
        slot = self.slots[effect.slot]
        slot.process = self._options.make_process(slot)
        try:
            slot.process.spawn()
        except OSError as error:  # no process or descriptor left: nothing was started, and no other end is reported
            slot.on_end(RunnerEnding(EndReason.DIED, f"cannot start: {error.strerror}"))
            return
        if effect.role in ANSWERING_ROLES:
            slot.set_serving(is_serving=True)
        elif effect.role is Role.FREE:
            # Nothing is ready to take over from the active slot meanwhile: at low priority, beside busy callers, the
            # imports take four times as long. They end with Hello.
            slot.process.set_serving(True)
        self._emit_slot(m.EmitSlot(self.pair[slot.name], effect.role, "runner_started"))

    def _start_load(self, effect: m.StartLoad) -> None:
        slot, options = self.slots[effect.slot], self._options
        process = slot.process
        if process is not None:
            memory = options.device_memories.of(effect.load.device)
            slot.reservation = memory.reserve(
                lambda reserved_bytes: process.load(options.make_load_request(effect.load, reserved_bytes))
            )

    def _prioritise(self, effect: m.Prioritise) -> None:
        self.slots[effect.slot].set_serving(is_serving=True)

    def _deprioritise(self, effect: m.Deprioritise) -> None:
        process = self.slots[effect.slot].process
        if process is not None:
            process.set_serving(False)

    def _end_process(self, effect: m.EndProcess) -> None:
        slot = self.slots[effect.slot]
        slot.cancel_load()
        if slot.process is not None:
            slot.process.retire()

    def _kill(self, effect: m.Kill) -> None:
        slot = self.slots[effect.slot]
        slot.cancel_load()
        if slot.process is not None:
            slot.process.kill(effect.detail, is_retiring=effect.is_retiring)

    def _await_leases(self, effect: m.AwaitLeases) -> None:
        self.slots[effect.slot].await_leases()

    def _open_queue(self, effect: m.OpenQueue) -> None:
        slot, load = self.slots[effect.slot], self.pair[effect.slot].load
        if slot.process is not None and load is not None:
            device = self._options.device_shares.of(load.device)
            slot.dispatcher.open(slot.process, effect.row_seconds, device, self._options.model)

    # Effects on records and files.

    def _fail_load(self, effect: m.FailLoad) -> None:
        self.progress_of(effect.load_id).fail(effect.error)

    def _notify_load(self, effect: m.NotifyLoad) -> None:
        self.progress_of(effect.load_id).report(effect.phase, 1.0 if effect.phase == "loaded" else 0.0)

    def _freeze_baseline(self, effect: m.FreezeBaseline) -> None:
        self._stats.freeze_baseline(effect.key)

    def _save_fallback(self, effect: m.SaveFallback) -> None:
        file = self._options.cpu_fallback_file
        if effect.row is None:
            file.remove(self._options.model)
        else:
            file.put(effect.row)

    def _emit_slot(self, effect: m.EmitSlot) -> None:
        slot, load, process = effect.slot, effect.slot.load, self.slots[effect.slot.name].process
        self._options.emit(
            SlotChanged(
                model=self._options.model,
                slot=slot.name,
                change=effect.change,
                state=slot.state,
                role=effect.role,
                revision="" if load is None else load.bundle.revision,
                digest=slot.digest,
                device="" if load is None else load.device,
                pid=0 if process is None else process.pid,
                seconds=0.0 if load is None else load.load_seconds,
                detail=effect.detail,
                reason=effect.reason,
            )
        )

    def _emit(self, effect: m.Emit) -> None:
        self._options.emit(effect.event)
