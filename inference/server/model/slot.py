"""A slot: one process at most, the load it holds, what waits for it, and who holds it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from common.clock import Clock
from hotslot.runner.v1 import runner_pb2
from inference.server.model.load import Load
from inference.server.request import Failure, Ticket
from inference.server.runner_client.protocol import EndReason, RunnerEnding, RunnerHandle, RunnerListener
from inference.server.scheduling.dispatcher import Computed, Dispatcher


class SlotState(StrEnum):
    """Where a slot's process stands."""

    EMPTY = "EMPTY"  # no process
    STARTING = "STARTING"  # a process imports
    READY = "READY"  # a process stands ready, without a model
    LOADING = "LOADING"  # a model is loaded and warmed up
    LOADED = "LOADED"  # a model answers
    RETIRING = "RETIRING"  # the process is ending, as asked
    FAILED = "FAILED"  # the process died


class SlotEvent(StrEnum):
    """What can happen to a slot's process."""

    SPAWNED = "SPAWNED"
    SAID_HELLO = "SAID_HELLO"
    LOAD_BEGUN = "LOAD_BEGUN"
    LOAD_ENDED = "LOAD_ENDED"
    RETIRE_ASKED = "RETIRE_ASKED"
    PROCESS_ENDED = "PROCESS_ENDED"


TABLE: dict[tuple[SlotState, SlotEvent], SlotState] = {
    (SlotState.EMPTY, SlotEvent.SPAWNED): SlotState.STARTING,
    (SlotState.EMPTY, SlotEvent.RETIRE_ASKED): SlotState.EMPTY,
    (SlotState.STARTING, SlotEvent.SAID_HELLO): SlotState.READY,
    (SlotState.STARTING, SlotEvent.RETIRE_ASKED): SlotState.RETIRING,
    (SlotState.STARTING, SlotEvent.PROCESS_ENDED): SlotState.FAILED,
    (SlotState.READY, SlotEvent.LOAD_BEGUN): SlotState.LOADING,
    (SlotState.READY, SlotEvent.RETIRE_ASKED): SlotState.RETIRING,
    (SlotState.READY, SlotEvent.PROCESS_ENDED): SlotState.FAILED,
    (SlotState.LOADING, SlotEvent.LOAD_ENDED): SlotState.LOADED,
    (SlotState.LOADING, SlotEvent.RETIRE_ASKED): SlotState.RETIRING,
    (SlotState.LOADING, SlotEvent.PROCESS_ENDED): SlotState.FAILED,
    (SlotState.LOADED, SlotEvent.RETIRE_ASKED): SlotState.RETIRING,
    (SlotState.LOADED, SlotEvent.PROCESS_ENDED): SlotState.FAILED,
    (SlotState.RETIRING, SlotEvent.RETIRE_ASKED): SlotState.RETIRING,
    (SlotState.RETIRING, SlotEvent.PROCESS_ENDED): SlotState.EMPTY,
    (SlotState.FAILED, SlotEvent.SPAWNED): SlotState.STARTING,
    (SlotState.FAILED, SlotEvent.RETIRE_ASKED): SlotState.EMPTY,
}


def step(state: SlotState, event: SlotEvent) -> SlotState:
    """The state after an event.

    Raises:
        RuntimeError: the event cannot happen in this state; nothing has changed.
    """
    after = TABLE.get((state, event))
    if after is None:
        raise RuntimeError(f"a slot that is {state} cannot meet {event}")
    return after


POLICIES = ("auto", "cuda")  # that name no device


class SlotOwner(Protocol):
    """Who is told what happens in a slot; decides what follows."""

    def slot_changed(self, slot: "Slot", change: str, detail: str = "") -> None:
        """For the log and the metrics."""
        ...

    def slot_ready(self, slot: "Slot") -> None:
        """Its process stands, and has said which devices there are."""
        ...

    def slot_started(self, slot: "Slot") -> None:
        """A process was started for it."""
        ...

    def slot_loaded(self, slot: "Slot") -> None:
        """Its load answers from now on."""
        ...

    def slot_refused(self, slot: "Slot", outcome: runner_pb2.LoadOutcome) -> None:
        """Its load failed; the process is without use."""
        ...

    def slot_ended(self, slot: "Slot", ending: RunnerEnding, suspects: list[Ticket], waiting: list[Ticket]) -> None:
        """Its process is gone."""
        ...

    def answered(self, slot: "Slot", ticket: Ticket, computed: Computed) -> None:
        """A request has its answer."""
        ...

    def failed(self, slot: "Slot", ticket: Ticket, failure: Failure) -> None:
        """A request has none."""
        ...

    def batch_begun(self, slot: "Slot", tickets: Sequence[Ticket]) -> None:
        """A batch is in the runner's hands."""
        ...

    def batch_done(self, slot: "Slot", reply: runner_pb2.BatchReply) -> None:
        """A batch has left the runner's hands."""
        ...


class SlotLease:
    """The right to use a load; ends once."""

    def __init__(self, slot: "Slot", load: Load) -> None:
        self._slot = slot
        self._load: Load | None = load
        load.leases += 1

    def end(self) -> None:
        """Give it back; a second time is harmless."""
        load, self._load = self._load, None
        if load is not None:
            load.leases = max(0, load.leases - 1)
            self._slot.lease_ended(load)


@dataclass(frozen=True, slots=True)
class SlotParts:
    """How a slot makes what it is made of."""

    clock: Clock
    make_process: Callable[[RunnerListener], RunnerHandle]
    make_dispatcher: Callable[["Slot"], Dispatcher]
    load_request: Callable[[Load], runner_pb2.LoadBundle]
    precision: str = ""  # empty: each device's own


class Slot:
    """One of a model's two places. Loop thread only."""

    def __init__(self, name: str, owner: SlotOwner, parts: SlotParts) -> None:
        self.name = name
        self.state = SlotState.EMPTY
        self.load: Load | None = None
        self.process: RunnerHandle | None = None
        self.devices: list[tuple[str, str]] = []  # device, what it is to compute in
        self.heartbeat = runner_pb2.Heartbeat()
        self.restarts = 0
        self.deaths_in_row = 0
        self.last_failure = ""
        self.respawn_at: float | None = None
        self._owner = owner
        self._parts = parts
        self._batch_leases: list[SlotLease] = []
        self.dispatcher = parts.make_dispatcher(self)

    @property
    def is_loaded(self) -> bool:
        """Whether it answers."""
        return self.state is SlotState.LOADED

    def lease(self) -> SlotLease:
        """Pin what it holds.

        Raises:
            RuntimeError: it holds nothing.
        """
        if self.load is None:
            raise RuntimeError(f"slot {self.name} holds no load")
        return SlotLease(self, self.load)

    def submit(self, ticket: Ticket) -> None:
        """Give it a request; the request holds what the slot holds until it is settled.

        Raises:
            RuntimeError: it holds nothing.
        """
        ticket.on_slot = self.name
        ticket.leases.append(self.lease())
        self.dispatcher.submit(ticket)

    def spawn(self) -> None:
        """Start a process; a load that the slot holds follows by itself."""
        self._step(SlotEvent.SPAWNED)
        self.respawn_at = None
        self.process = self._parts.make_process(self)
        try:
            self.process.spawn()
        except OSError as error:  # no process or descriptor left; nothing was started, so nobody tells the end
            self.on_end(RunnerEnding(EndReason.DIED, f"could not be started: {error.strerror}", None))
            return
        self._owner.slot_started(self)

    def begin(self, load: Load) -> None:
        """Take a load: at once if a process stands ready, else as soon as one does."""
        if self.load is not None:
            raise RuntimeError(f"slot {self.name} holds a load already")
        self.load = load
        if self.state is SlotState.READY:
            self._begin_load()
        elif self.state in (SlotState.EMPTY, SlotState.FAILED):
            self.spawn()

    def retire(self, detail: str) -> None:
        """Empty the slot: what holds it is finished, then its process ends."""
        was = self.state
        self._step(SlotEvent.RETIRE_ASKED)
        self._owner.slot_changed(self, "retire_begun", detail)
        if self.state is SlotState.EMPTY:
            self.load = None  # a start that is due still comes, if a process shall stand by
        elif was is SlotState.LOADED:
            self._retire_if_idle()
        elif was is not SlotState.RETIRING:
            self.kill(detail)

    def kill(self, detail: str) -> None:
        """End the process at once."""
        if self.process is not None:
            self.process.kill(detail)

    def lease_ended(self, load: Load) -> None:
        """A lease was given back; a retiring process ends with the last one."""
        if self.state is SlotState.RETIRING and load is self.load:
            self._retire_if_idle()

    # What the runner process says.

    def on_hello(self, hello: runner_pb2.Hello) -> None:
        """The process stands."""
        if self.state is SlotState.RETIRING:
            return
        self._step(SlotEvent.SAID_HELLO)
        rows = zip(hello.devices, hello.precisions, strict=False)
        self.devices = [(device, self._parts.precision or precision) for device, precision in rows]
        self._owner.slot_ready(self)
        if self.load is not None:
            self._begin_load()

    def on_load_progress(self, progress: runner_pb2.LoadProgress) -> None:
        """A load goes on."""
        if self.load is not None:
            self.load.phase, self.load.fraction = progress.phase, progress.fraction
            self.load.changed.notify()

    def on_load_outcome(self, outcome: runner_pb2.LoadOutcome) -> None:
        """A load has ended."""
        load = self.load
        if load is None or self.state is not SlotState.LOADING or self.process is None:
            return
        if outcome.HasField("failure"):
            self._owner.slot_refused(self, outcome)
            return
        now = self._parts.clock.monotonic()
        self._step(SlotEvent.LOAD_ENDED)
        load.device, load.precision = outcome.device or load.device, outcome.precision
        load.is_loaded, load.phase, load.fraction = True, "loaded", 1.0
        load.load_seconds, load.loaded_at = now - load.begun_at, now
        self._owner.slot_changed(self, "load_ended")
        self._owner.slot_loaded(self)
        self.dispatcher.open(self.process, outcome.row_seconds)
        load.changed.notify()

    def on_batch_reply(self, reply: runner_pb2.BatchReply) -> None:
        """Items have outcomes."""
        self.dispatcher.on_reply(reply)

    def on_heartbeat(self, heartbeat: runner_pb2.Heartbeat) -> None:
        """The process lives; kept for status."""
        self.heartbeat = heartbeat

    def on_end(self, ending: RunnerEnding) -> None:
        """The process is gone, as asked or not."""
        was_asked = self.state is SlotState.RETIRING
        self._step(SlotEvent.PROCESS_ENDED)
        self.process, self._batch_leases = None, []
        self.heartbeat = runner_pb2.Heartbeat()
        suspects, waiting = self.dispatcher.close()
        self.dispatcher = self._parts.make_dispatcher(self)
        if was_asked:
            self.load = None
        else:
            self.restarts += 1
            self.deaths_in_row += 1
            self.last_failure = f"{ending.reason}: {ending.detail}"
        self._owner.slot_ended(self, ending, suspects, waiting)

    # What the dispatcher says.

    def on_answer(self, ticket: Ticket, computed: Computed) -> None:
        """An item has its answer."""
        self._owner.answered(self, ticket, computed)

    def on_failure(self, ticket: Ticket, failure: Failure) -> None:
        """An item has none."""
        self._owner.failed(self, ticket, failure)

    def on_batch_begun(self, tickets: Sequence[Ticket]) -> None:
        """A batch is in the runner's hands; it keeps a lease of its own.

        A caller that hangs up ends the request's lease while the device still reads these weights.
        """
        self._batch_leases.append(self.lease())
        self._owner.batch_begun(self, tickets)

    def on_batch_done(self, reply: runner_pb2.BatchReply) -> None:
        """A batch is done."""
        self._owner.batch_done(self, reply)
        if self._batch_leases:
            self._batch_leases.pop(0).end()

    def _begin_load(self) -> None:
        load, process = self.load, self.process
        if load is None or process is None:
            raise RuntimeError(f"slot {self.name} has nothing to load")
        if load.device in POLICIES and self.devices:
            load.device = self.devices[0][0]  # the best of those that the policy lets be used
        self._step(SlotEvent.LOAD_BEGUN)
        process.load(self._parts.load_request(load))
        self._owner.slot_changed(self, "load_begun")

    def _retire_if_idle(self) -> None:
        if self.process is not None and (self.load is None or self.load.leases == 0):
            self.process.retire()

    def _step(self, event: SlotEvent) -> None:
        self.state = step(self.state, event)
