"""A slot's process, its queue and its leases. No decision is made here: events go to the pair."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from common import reasons
from common.errors import Conflict, HotslotError, Interrupted, Overloaded
from hotslot.runner.v1 import runner_pb2
from inference.server.events import Broadcast
from inference.server.model import messages as m
from inference.server.request import MAX_DEATHS, InputId, PendingRequest
from inference.server.runner_client.protocol import EndReason, RunnerEnding, RunnerHandle
from inference.server.scheduling.device_memory import LoadReservation
from inference.server.scheduling.dispatcher import Dispatcher


@dataclass(slots=True, eq=False)
class LoadProgress:
    """How far a load has come, for the callers that watch it."""

    load_id: str
    phase: str = "starting"  # "starting", "reading", "compiling", "warming_up", "loaded"
    fraction: float = 0.0
    failure: HotslotError | None = None
    changed: Broadcast = field(default_factory=Broadcast)

    @property
    def is_loaded(self) -> bool:
        """Whether the load is complete."""
        return self.phase == "loaded"

    def report(self, phase: str, fraction: float) -> None:
        """Record progress, and wake the callers."""
        self.phase, self.fraction = phase, fraction
        self.changed.notify()

    def fail(self, error: HotslotError) -> None:
        """Record the failure, unless there is one, and wake the callers."""
        self.failure = self.failure or error
        self.changed.notify()


class SlotListener(Protocol):
    """Receives the events of a slot."""

    def apply(self, event: m.Event) -> None:
        """Decide what follows, and perform it."""
        ...

    def on_load_progress(self, slot: str, phase: str, fraction: float) -> None:
        """A load has come further."""
        ...


class Leases:
    """Counts the leases on one process's model."""

    def __init__(self) -> None:
        self.count = 0
        self.on_idle: Callable[[], None] | None = None  # called when the last lease has ended


class SlotLease:
    """The right to use a model: a retiring slot waits for its leases."""

    def __init__(self, leases: Leases) -> None:
        self._leases: Leases | None = leases
        leases.count += 1

    def end(self) -> None:
        """End the lease; a second call does nothing."""
        leases, self._leases = self._leases, None
        if leases is None:
            return
        leases.count -= 1
        if leases.count == 0 and leases.on_idle is not None:
            leases.on_idle()


class Slot:
    """One of a model's two slots; also the listener of its runner. Loop thread only."""

    def __init__(
        self,
        name: str,
        listener: SlotListener,
        make_dispatcher: Callable[["Slot"], Dispatcher],
        spread: Callable[[Sequence[str]], list[str]],
        precision: str = "",
    ) -> None:
        self.name = name
        self.process: RunnerHandle | None = None
        self.heartbeat = runner_pb2.Heartbeat()
        self.kernels = ""  # of the loaded model, as the runner's LoadOutcome says
        self.reservation: LoadReservation | None = None  # of the process's load, until the load fails or it ends
        self._listener = listener
        self._make_dispatcher = make_dispatcher
        self._spread = spread  # orders devices for the next load
        self._precision = precision  # empty: the default of each device
        self._leases = Leases()
        self._computing: SlotLease | None = None  # while the process holds items
        self.is_lowered = False  # computes at low priority although callers may be given to it
        self.is_yielding = False  # even runs only when no other process wants the CPUs
        self.abandoned_at_end: list[InputId] = []  # inputs in the call that ran when the process ended; callers left
        self._left: tuple[list[PendingRequest], list[PendingRequest]] | None = None  # by an ended process
        self.dispatcher = make_dispatcher(self)

    @property
    def is_leased(self) -> bool:
        """Whether a request, or an item in the process, holds a lease."""
        return self._leases.count > 0

    def lease(self) -> SlotLease:
        """Take a lease on the model."""
        return SlotLease(self._leases)

    def submit(self, request: PendingRequest) -> None:
        """Queue a request; it keeps a lease until it is done."""
        request.on_slot = self.name
        request.leases.append(self.lease())
        self.dispatcher.submit(request)

    def begin_computing(self) -> None:
        """Take a lease while the process holds items.

        A caller that hangs up ends its request's lease while the device still reads these weights.
        """
        self._computing = self._computing or self.lease()

    def end_computing(self) -> None:
        """End this lease: the process holds no item."""
        lease, self._computing = self._computing, None
        if lease is not None:
            lease.end()

    def set_serving(self, *, is_serving: bool) -> None:
        """Set the priority of the process: full, or low while it computes nothing that a caller waits for."""
        self.is_lowered, self.is_yielding = not is_serving, False
        if self.process is not None:
            self.process.set_serving(is_serving)

    def yield_cpus(self) -> None:
        """Let the process run only when no other one wants the CPUs, until `set_serving`."""
        self.is_lowered = self.is_yielding = True
        if self.process is not None:
            self.process.yield_cpus()

    def cancel_load(self) -> None:
        """Forget a load that waits for the plans of others; one that was started goes on."""
        if self.reservation is not None and not self.reservation.is_started:
            self._release_memory()

    def _release_memory(self) -> None:
        reservation, self.reservation = self.reservation, None
        if reservation is not None:
            reservation.release()

    def await_leases(self) -> None:
        """Send LeaseOver when the last lease has ended."""
        self._leases.on_idle = lambda: self._listener.apply(m.LeaseOver(self.name))

    def take_requests(self) -> tuple[list[PendingRequest], list[PendingRequest]]:
        """Remove and return the requests that the process computed, and those that waited.

        After the end of a process these are its own; before, what the queue holds now.
        """
        computed, waiting = self._close_queue() if self._left is None else self._left
        self._left = None
        return computed, waiting

    @property
    def in_flight_at_end(self) -> list[PendingRequest]:
        """The requests that the process computed when it ended, until they are taken."""
        return [] if self._left is None else self._left[0]

    @property
    def _has_requests(self) -> bool:
        """Whether an ended process has left callers' requests that can be run again."""
        computed, waiting = self._left or ([], [])
        left = [*waiting, *(request for request in computed if request.deaths + 1 < MAX_DEATHS)]
        return any(not (request.internal or request.is_done) and request.on_slot == self.name for request in left)

    def _close_queue(self, computing: Sequence[int] = ()) -> tuple[list[PendingRequest], list[PendingRequest]]:
        """Begin with an empty queue and without leases; returns what the process computed, and what waited."""
        self._leases, self._computing = Leases(), None
        left = self.dispatcher.close(computing)
        self.dispatcher = self._make_dispatcher(self)
        return left

    # Events of the runner process.

    def on_hello(self, hello: runner_pb2.Hello) -> None:
        """The process is idle."""
        precisions = dict(zip(hello.devices, hello.precisions, strict=False))
        order = self._spread(list(precisions))
        devices = tuple((device, self._precision or precisions[device]) for device in order)
        self._listener.apply(m.Hello(self.name, devices))

    def on_load_progress(self, progress: runner_pb2.LoadProgress) -> None:
        """Report the progress of the load, and record its plan."""
        if self.reservation is not None:
            self.reservation.update(progress.needed_bytes, progress.taken_bytes)
        self._listener.on_load_progress(self.name, progress.phase, progress.fraction)

    def on_load_outcome(self, outcome: runner_pb2.LoadOutcome) -> None:
        """The load has succeeded or failed."""
        if outcome.HasField("failure"):
            failure = outcome.failure
            self._release_memory()
            self._listener.apply(m.LoadFailed(self.name, failure.reason, failure.message, _load_error(outcome)))
        else:
            if self.reservation is not None:
                self.reservation.update(outcome.needed_bytes, outcome.taken_bytes)
            self.kernels = outcome.kernels
            self.dispatcher.set_call_rows(outcome.call_rows)
            self._listener.apply(m.Loaded(self.name, outcome.device, outcome.precision, outcome.row_seconds))

    def on_items_reply(self, reply: runner_pb2.ItemsReply) -> None:
        """Pass outcomes of items to the dispatcher."""
        self.dispatcher.on_reply(reply)

    def on_heartbeat(self, heartbeat: runner_pb2.Heartbeat) -> None:
        """Keep the last heartbeat: it decides whether the process hangs."""
        self.heartbeat = heartbeat
        self.dispatcher.on_heartbeat(heartbeat)

    def on_end(self, ending: RunnerEnding) -> None:
        """The process has ended, after a retire or unexpectedly."""
        self.process, self.kernels = None, ""
        self.is_lowered = self.is_yielding = False
        self._release_memory()
        self.heartbeat = runner_pb2.Heartbeat()
        self.abandoned_at_end = self.dispatcher.find_abandoned(ending.computing)
        before = self._left or ([], [])  # of the process before, if they wait for the unloaded model of a gap
        computed, waiting = self._close_queue(ending.computing)
        self._left = [*before[0], *computed], [*before[1], *waiting]
        self._listener.apply(
            m.ProcessEnded(
                self.name,
                f"{ending.reason}: {ending.detail}",
                has_stalled=ending.reason is EndReason.LOAD_STALLED,
                is_input_at_fault=any(request.deaths + 1 >= MAX_DEATHS for request in self.in_flight_at_end),
                has_requests=self._has_requests,
            )
        )


def _load_error(outcome: runner_pb2.LoadOutcome) -> HotslotError:
    """Convert the failure of a load to the error that LoadSlot returns."""
    failure = outcome.failure
    if failure.reason in reasons.SHORTAGES:
        numbers = {"needed_bytes": outcome.needed_bytes, "free_bytes": outcome.free_bytes}
        metadata = {"device": outcome.device, **{name: str(number) for name, number in numbers.items() if number}}
        return Overloaded(failure.message, reason=failure.reason, metadata=metadata)
    if failure.reason in ("BUNDLE_BROKEN", "BUNDLE_FOREIGN"):
        return Conflict(failure.message, reason=failure.reason)
    return Interrupted(failure.message, reason=failure.reason or "LOAD_FAILED")
