"""A slot: at most one runner process, its load, its leases, and the state machine of the process."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from common.bundle import Bundle
from common.clock import Clock
from common.errors import HotslotError
from hotslot.runner.v1 import runner_pb2
from inference.server.events import Broadcast
from inference.server.model.stats import StatsKey
from inference.server.request import Failure, PendingRequest, ServedBy
from inference.server.runner_client.protocol import EndReason, RunnerEnding, RunnerHandle, RunnerListener
from inference.server.scheduling.dispatcher import Computed, Dispatcher

OUT_OF_MEMORY = "OUT_OF_MEMORY"  # reason: memory ran out at a single item, while loading or while warming up
DOES_NOT_FIT = "DOES_NOT_FIT"  # reason: the memory plan of a load exceeds the free memory
SHORTAGES = frozenset({OUT_OF_MEMORY, DOES_NOT_FIT})


@dataclass(slots=True, eq=False)
class Load:
    """A bundle that a slot holds or is loading."""

    load_id: str
    bundle: Bundle
    folder: Path
    device: str  # a policy such as "auto" until the runner has reported its devices
    transaction_id: str
    begun_at: float
    is_loaded: bool = False
    phase: str = "starting"  # "starting", "reading", "warming_up", "loaded"
    fraction: float = 0.0
    precision: str = ""
    load_seconds: float = 0.0
    failure: HotslotError | None = None
    is_proven: bool = False  # has answered since it was loaded, and has passed its last self-test
    loaded_at: float = 0.0
    leases: int = 0
    next_device: str = ""  # device for the next process, because this one's has run out of memory; empty: the same
    changed: Broadcast = field(default_factory=Broadcast)

    @property
    def key(self) -> StatsKey:
        """The key of its counters."""
        return StatsKey(self.bundle.bundle_digest, self.device)

    def served_by(self, model: str, slot: str, node: str) -> ServedBy:
        """The `served_by` record of its predictions."""
        return ServedBy(model, self.bundle.revision, self.bundle.bundle_digest, self.device, slot, node)

    @property
    def placement(self) -> str:
        """Load id and device; a request keeps it for each load that had no memory for it."""
        return f"{self.load_id} on {self.device}"

    def reset(self, now: float) -> None:
        """Prepare for loading again in a new process, on `next_device` if that is set."""
        if self.next_device:
            self.device, self.next_device = self.next_device, ""
        self.is_loaded = self.is_proven = False
        self.phase, self.fraction, self.begun_at = "starting", 0.0, now
        self.leases = 0
        self.changed.notify()


class SlotState(StrEnum):
    """State of a slot's process."""

    EMPTY = "EMPTY"  # no process
    STARTING = "STARTING"  # the process imports its libraries
    READY = "READY"  # the process is idle, without a model
    LOADING = "LOADING"  # a model is being loaded and warmed up
    LOADED = "LOADED"  # a model can answer
    RETIRING = "RETIRING"  # the process ends after its last lease
    FAILED = "FAILED"  # the process ended unexpectedly


class SlotEvent(StrEnum):
    """Event of a slot's process."""

    SPAWNED = "SPAWNED"
    HELLO_RECEIVED = "HELLO_RECEIVED"
    LOAD_BEGUN = "LOAD_BEGUN"
    LOAD_ENDED = "LOAD_ENDED"
    RETIRE_REQUESTED = "RETIRE_REQUESTED"
    PROCESS_ENDED = "PROCESS_ENDED"


TRANSITIONS: dict[tuple[SlotState, SlotEvent], SlotState] = {
    (SlotState.EMPTY, SlotEvent.SPAWNED): SlotState.STARTING,
    (SlotState.EMPTY, SlotEvent.RETIRE_REQUESTED): SlotState.EMPTY,
    (SlotState.STARTING, SlotEvent.HELLO_RECEIVED): SlotState.READY,
    (SlotState.STARTING, SlotEvent.RETIRE_REQUESTED): SlotState.RETIRING,
    (SlotState.STARTING, SlotEvent.PROCESS_ENDED): SlotState.FAILED,
    (SlotState.READY, SlotEvent.LOAD_BEGUN): SlotState.LOADING,
    (SlotState.READY, SlotEvent.RETIRE_REQUESTED): SlotState.RETIRING,
    (SlotState.READY, SlotEvent.PROCESS_ENDED): SlotState.FAILED,
    (SlotState.LOADING, SlotEvent.LOAD_ENDED): SlotState.LOADED,
    (SlotState.LOADING, SlotEvent.RETIRE_REQUESTED): SlotState.RETIRING,
    (SlotState.LOADING, SlotEvent.PROCESS_ENDED): SlotState.FAILED,
    (SlotState.LOADED, SlotEvent.RETIRE_REQUESTED): SlotState.RETIRING,
    (SlotState.LOADED, SlotEvent.PROCESS_ENDED): SlotState.FAILED,
    (SlotState.RETIRING, SlotEvent.RETIRE_REQUESTED): SlotState.RETIRING,
    (SlotState.RETIRING, SlotEvent.PROCESS_ENDED): SlotState.EMPTY,
    (SlotState.FAILED, SlotEvent.SPAWNED): SlotState.STARTING,
    (SlotState.FAILED, SlotEvent.RETIRE_REQUESTED): SlotState.EMPTY,
}


def next_state(state: SlotState, event: SlotEvent) -> SlotState:
    """The state after an event.

    Raises:
        RuntimeError: the event cannot happen in this state; nothing has changed.
    """
    after = TRANSITIONS.get((state, event))
    if after is None:
        raise RuntimeError(f"a slot that is {state} cannot handle {event}")
    return after


DEVICE_POLICIES = ("auto", "cuda")  # settings that name no single device


class SlotListener(Protocol):
    """Receives the events of a slot and decides what follows."""

    def on_slot_changed(self, slot: "Slot", change: str, detail: str = "") -> None:
        """The state or load of the slot has changed; for logs and metrics."""
        ...

    def on_runner_ready(self, slot: "Slot") -> None:
        """The process is idle and has reported its devices."""
        ...

    def on_runner_started(self, slot: "Slot") -> None:
        """A process was started."""
        ...

    def on_loaded(self, slot: "Slot") -> None:
        """The load is complete; the slot can answer."""
        ...

    def on_load_failed(self, slot: "Slot", outcome: runner_pb2.LoadOutcome) -> None:
        """The load failed; the process cannot be used for another."""
        ...

    def on_runner_ended(
        self, slot: "Slot", ending: RunnerEnding, suspect_requests: list[PendingRequest], waiting: list[PendingRequest]
    ) -> None:
        """The process has ended; it held the suspect requests, and the waiting ones were queued for it."""
        ...

    def on_request_answered(self, slot: "Slot", request: PendingRequest, computed: Computed) -> None:
        """A request was answered."""
        ...

    def on_request_failed(self, slot: "Slot", request: PendingRequest, failure: Failure) -> None:
        """A request failed in the runner."""
        ...

    def on_batch_sent(self, slot: "Slot", requests: Sequence[PendingRequest]) -> None:
        """A batch was sent to the runner."""
        ...

    def on_batch_computed(self, slot: "Slot", reply: runner_pb2.BatchReply) -> None:
        """The runner has finished a batch."""
        ...


class SlotLease:
    """The right to use a load: a retiring slot waits for its leases."""

    def __init__(self, slot: "Slot", load: Load) -> None:
        self._slot = slot
        self._load: Load | None = load
        load.leases += 1

    def end(self) -> None:
        """End the lease; a second call does nothing."""
        load, self._load = self._load, None
        if load is not None:
            load.leases = max(0, load.leases - 1)
            self._slot.on_lease_ended(load)


@dataclass(frozen=True, slots=True)
class SlotDependencies:
    """Factories for a slot's process and dispatcher, and what they need."""

    clock: Clock
    make_process: Callable[[RunnerListener], RunnerHandle]
    make_dispatcher: Callable[["Slot"], Dispatcher]
    make_load_request: Callable[[Load], runner_pb2.LoadBundle]
    precision: str = ""  # empty: the default of each device


class Slot:
    """One of a model's two slots. Loop thread only."""

    def __init__(self, name: str, listener: SlotListener, dependencies: SlotDependencies) -> None:
        self.name = name
        self.state = SlotState.EMPTY
        self.load: Load | None = None
        self.process: RunnerHandle | None = None
        self.devices: list[tuple[str, str]] = []  # device, computing precision
        self.heartbeat = runner_pb2.Heartbeat()
        self.restarts = 0
        self.deaths_in_row = 0
        self.last_failure = ""
        self.respawn_at: float | None = None
        self._listener = listener
        self._dependencies = dependencies
        self._batch_leases: list[SlotLease] = []
        self.dispatcher = dependencies.make_dispatcher(self)

    @property
    def is_loaded(self) -> bool:
        """Whether the slot can answer."""
        return self.state is SlotState.LOADED

    def lease(self) -> SlotLease:
        """Take a lease on the load.

        Raises:
            RuntimeError: the slot holds no load.
        """
        if self.load is None:
            raise RuntimeError(f"slot {self.name} holds no load")
        return SlotLease(self, self.load)

    def submit(self, request: PendingRequest) -> None:
        """Queue a request; it keeps a lease on the load until it is done.

        Raises:
            RuntimeError: the slot holds no load.
        """
        request.on_slot = self.name
        request.leases.append(self.lease())
        self.dispatcher.submit(request)

    def spawn(self) -> None:
        """Start a process; it loads what the slot holds, if anything."""
        self._step(SlotEvent.SPAWNED)
        self.respawn_at = None
        self.process = self._dependencies.make_process(self)
        try:
            self.process.spawn()
        except OSError as error:  # no process or descriptor left: nothing was started, and no other end is reported
            self.on_end(RunnerEnding(EndReason.DIED, f"cannot start: {error.strerror}", None))
            return
        self._listener.on_runner_started(self)

    def assign(self, load: Load) -> None:
        """Load a bundle: at once if the process is idle, else as soon as one is.

        Raises:
            RuntimeError: the slot already holds a load.
        """
        if self.load is not None:
            raise RuntimeError(f"slot {self.name} holds a load already")
        self.load = load
        if self.state is SlotState.READY:
            self._begin_load()
        elif self.state in (SlotState.EMPTY, SlotState.FAILED):
            self.spawn()

    def retire(self, detail: str) -> None:
        """Empty the slot: the process ends when its last lease has ended."""
        was = self.state
        self._step(SlotEvent.RETIRE_REQUESTED)
        self._listener.on_slot_changed(self, "retire_begun", detail)
        if self.state is SlotState.EMPTY:
            self.load = None  # a scheduled start still happens if a standby process is configured
        elif was is SlotState.LOADED:
            self._retire_if_idle()
        elif was is not SlotState.RETIRING:
            self.kill(detail)

    def kill(self, detail: str) -> None:
        """End the process at once."""
        if self.process is not None:
            self.process.kill(detail)

    def on_lease_ended(self, load: Load) -> None:
        """End a retiring process with its last lease."""
        if self.state is SlotState.RETIRING and load is self.load:
            self._retire_if_idle()

    # Events of the runner process.

    def on_hello(self, hello: runner_pb2.Hello) -> None:
        """The process is idle: load what the slot holds."""
        if self.state is SlotState.RETIRING:
            return
        self._step(SlotEvent.HELLO_RECEIVED)
        rows = zip(hello.devices, hello.precisions, strict=False)
        self.devices = [(device, self._dependencies.precision or precision) for device, precision in rows]
        self._listener.on_runner_ready(self)
        if self.load is not None:
            self._begin_load()

    def on_load_progress(self, progress: runner_pb2.LoadProgress) -> None:
        """Record the progress of the load."""
        if self.load is not None:
            self.load.phase, self.load.fraction = progress.phase, progress.fraction
            self.load.changed.notify()

    def on_load_outcome(self, outcome: runner_pb2.LoadOutcome) -> None:
        """The load has succeeded or failed."""
        load = self.load
        if load is None or self.state is not SlotState.LOADING or self.process is None:
            return
        if outcome.HasField("failure"):
            self._listener.on_load_failed(self, outcome)
            return
        now = self._dependencies.clock.monotonic()
        self._step(SlotEvent.LOAD_ENDED)
        load.device, load.precision = outcome.device or load.device, outcome.precision
        load.is_loaded, load.phase, load.fraction = True, "loaded", 1.0
        load.load_seconds, load.loaded_at = now - load.begun_at, now
        self._listener.on_slot_changed(self, "load_ended")
        self._listener.on_loaded(self)
        self.dispatcher.open(self.process, outcome.row_seconds)
        load.changed.notify()

    def on_batch_reply(self, reply: runner_pb2.BatchReply) -> None:
        """Pass outcomes of items to the dispatcher."""
        self.dispatcher.on_reply(reply)

    def on_heartbeat(self, heartbeat: runner_pb2.Heartbeat) -> None:
        """Keep the last heartbeat for status reports."""
        self.heartbeat = heartbeat

    def on_end(self, ending: RunnerEnding) -> None:
        """The process has ended, after a retire or unexpectedly."""
        was_requested = self.state is SlotState.RETIRING
        self._step(SlotEvent.PROCESS_ENDED)
        self.process, self._batch_leases = None, []
        self.heartbeat = runner_pb2.Heartbeat()
        suspect_requests, waiting = self.dispatcher.close()
        self.dispatcher = self._dependencies.make_dispatcher(self)
        if was_requested:
            self.load = None
        else:
            self.restarts += 1
            self.deaths_in_row += 1
            self.last_failure = f"{ending.reason}: {ending.detail}"
        self._listener.on_runner_ended(self, ending, suspect_requests, waiting)

    # Events of the dispatcher.

    def on_answer(self, request: PendingRequest, computed: Computed) -> None:
        """An item was answered."""
        self._listener.on_request_answered(self, request, computed)

    def on_failure(self, request: PendingRequest, failure: Failure) -> None:
        """An item failed."""
        self._listener.on_request_failed(self, request, failure)

    def on_batch_sent(self, requests: Sequence[PendingRequest]) -> None:
        """A batch was sent; it takes a lease of its own.

        A caller that hangs up ends its request's lease while the device still reads these weights.
        """
        self._batch_leases.append(self.lease())
        self._listener.on_batch_sent(self, requests)

    def on_batch_done(self, reply: runner_pb2.BatchReply) -> None:
        """The runner has finished a batch: end its lease."""
        self._listener.on_batch_computed(self, reply)
        if self._batch_leases:
            self._batch_leases.pop(0).end()

    def _begin_load(self) -> None:
        load, process = self.load, self.process
        if load is None or process is None:
            raise RuntimeError(f"slot {self.name} has no load or no process")
        if load.device in DEVICE_POLICIES and self.devices:
            load.device = self.devices[0][0]  # the runner lists the allowed devices, best first
        self._step(SlotEvent.LOAD_BEGUN)
        process.load(self._dependencies.make_load_request(load))
        self._listener.on_slot_changed(self, "load_begun")

    def _retire_if_idle(self) -> None:
        if self.process is not None and (self.load is None or self.load.leases == 0):
            self.process.retire()

    def _step(self, event: SlotEvent) -> None:
        self.state = next_state(self.state, event)
