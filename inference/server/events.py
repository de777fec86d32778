"""The events of the server, as records for logs and metrics. No event contains a picture or a text."""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

from common.records import record


class CallTrace(Protocol):
    """A call that is recorded, until it ends. Loop thread only."""

    def add_item(self, item: "ItemEnded", now: float) -> None:
        """Note an item whose outcome is known; `now` is the monotonic clock."""

    def end(self, call: "CallEnded", now: float) -> None:
        """Record the call; `now` is the monotonic clock."""

    def take_exemplar(self) -> dict[str, str] | None:
        """Its trace, for a histogram; None if another call's was taken a moment before."""


@record
class CallStarted:
    """A call has started."""

    service: str
    method: str
    kind: str  # "unary", "bidi_stream", "server_stream"


@record
class CallEnded:
    """A call has ended."""

    service: str
    method: str
    kind: str
    code: str  # "OK", "InvalidArgument" …
    seconds: float
    request_id: str
    traceparent: str
    reason: str  # of the error; empty for OK
    received: int  # messages
    sent: int
    fields: tuple[tuple[str, object], ...] = ()  # log fields set by the handler


class ItemOutcome(StrEnum):
    """The outcome of an item."""

    ANSWERED = "answered"
    REFUSED = "refused"  # valid, but turned away: overloaded, no memory on the device, not ready, draining
    INVALID = "invalid"  # wrong input, or an unknown model
    EXPIRED = "expired"  # its deadline had passed on arrival, or passed before it was answered
    CANCELLED = "cancelled"  # the caller has cancelled it, or is gone
    FAILED = "failed"  # accepted, and failed by the server, the runner or the engine


@record
class ItemEnded:
    """An item (a unary request or a stream item) has its outcome; emitted once for each."""

    model: str  # empty if none was found
    revision: str  # that answered or failed it, or had it last; empty if it was not accepted
    device: str  # of that revision's slot
    outcome: ItemOutcome
    reason: str = ""  # of the error; empty for an answer
    labels: tuple[str, ...] = ()  # answers to statements; kinds of an address's parts
    seconds: float = 0.0  # since it was accepted
    queued_seconds: float = 0.0
    prepared_seconds: float = 0.0
    computed_seconds: float = 0.0
    slot: str = ""  # that had it last
    handover: str = ""  # why a trial failed it; empty if none did
    trace: CallTrace | None = None  # of its call, if that is recorded


@record
class DeviceCallEnded:
    """A runner has computed rows in one device call."""

    model: str
    revision: str
    items: int
    rows: int
    seconds: float


@dataclass(frozen=True, slots=True)
class SlotChanged:
    """The process, load or role of a slot has changed."""

    model: str
    slot: str
    change: str  # past tense: "runner_started", "load_begun", "load_ended", "runner_died" …
    state: str
    role: str
    revision: str
    digest: str
    device: str
    pid: int
    seconds: float = 0.0
    detail: str = ""
    reason: str = ""  # error reason of a failed load


@dataclass(frozen=True, slots=True)
class SwapDone:
    """The active slot has changed, or a trial has ended."""

    model: str
    # "slot_activated", "trial_committed", "trial_rolled_back", "trial_lease_expired", "gap_lease_expired", …
    change: str
    slot: str
    revision: str
    digest: str
    previous_digest: str
    transaction_id: str
    generation: int


@dataclass(frozen=True, slots=True)
class TrafficChanged:
    """Which requests a load gets has changed: as a canary, or as copies for comparison."""

    model: str
    change: str  # "canary_percent_set", "shadow_set"
    revision: str
    digest: str
    percent: float  # of the requests: that it answers, or that are copied
    transaction_id: str


@dataclass(frozen=True, slots=True)
class AnswersCompared:
    """Two slots have answered the same request."""

    model: str
    revision: str  # that is judged
    equal: int  # answers
    different: int  # answers


@dataclass(frozen=True, slots=True)
class CopyDropped:
    """A request of the sample was not compared."""

    model: str
    revision: str  # that is judged
    reason: str


@dataclass(frozen=True, slots=True)
class RequestHandedOver:
    """A request that the trial failed was given to the previous slot."""

    model: str
    revision: str  # on trial
    reason: str


@dataclass(frozen=True, slots=True)
class OverloadChanged:
    """A model is offered more than it serves, for long, so that its queue is kept short; or no longer."""

    model: str
    is_overloaded: bool


@dataclass(frozen=True, slots=True)
class CpuFallbackChanged:
    """A CPU fallback has begun, succeeded, failed, was kept at start, or has ended."""

    model: str
    change: str  # "cpu_fallback_" + "begun", "taken", "failed", "kept" or "ended"
    device: str  # that ran out of memory
    fallback_device: str
    digest: str
    detail: str  # the reason, or why it ended


Event = (
    CallStarted
    | CallEnded
    | ItemEnded
    | DeviceCallEnded
    | SlotChanged
    | SwapDone
    | TrafficChanged
    | AnswersCompared
    | CopyDropped
    | RequestHandedOver
    | OverloadChanged
    | CpuFallbackChanged
)
Emit = Callable[[Event], None]
Handlers = Mapping[type[Event], Callable[[Any], None]]


def emit_to_all(listeners: Iterable[Handlers]) -> Emit:
    """An emit function that passes each event to those that handle its kind."""
    found: dict[type[Event], tuple[Callable[[Any], None], ...]] = {}
    for handlers in listeners:
        for kind, handle in handlers.items():
            found[kind] = (*found.get(kind, ()), handle)

    def emit(event: Event) -> None:
        for handle in found.get(type(event), ()):
            handle(event)

    return emit


class Broadcast:
    """Wakes all waiters on a change. Loop thread only."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def notify(self) -> None:
        """Wake the waiters."""
        self._event.set()
        self._event = asyncio.Event()

    def next(self) -> asyncio.Event:
        """The event of the next change: get it before reading the state, wait on it afterwards."""
        return self._event
