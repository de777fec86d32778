"""What happens in the server, as records; who cares listens. No record holds a picture or a text."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CallStarted:
    """A call has come in."""

    service: str
    method: str
    kind: str  # "unary", "bidi_stream", "server_stream"


@dataclass(frozen=True, slots=True)
class CallEnded:
    """A call has ended."""

    service: str
    method: str
    kind: str
    code: str  # "OK", "InvalidArgument" …
    seconds: float
    request_id: str
    traceparent: str
    reason: str  # of the error; empty if there is none
    received: int  # messages
    sent: int
    fields: tuple[tuple[str, object], ...] = ()  # what the handler noted, for the log


@dataclass(frozen=True, slots=True)
class ItemEnded:
    """An item (a unary request or one of a stream) has its outcome."""

    model: str
    revision: str  # that answered; empty if none did
    outcome: str  # "OK", or the reason of the error
    seconds: float
    queued_seconds: float = 0.0
    prepared_seconds: float = 0.0
    computed_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class BatchSent:
    """A batch was handed to a runner."""

    model: str
    revision: str
    items: int
    rows: int


@dataclass(frozen=True, slots=True)
class SlotChanged:
    """A slot's process or load has changed."""

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
    reason: str = ""  # of a load that failed, for machines


@dataclass(frozen=True, slots=True)
class SwapDone:
    """Another slot answers now, or a trial has ended."""

    model: str
    change: str  # "slot_activated", "trial_committed", "trial_rolled_back", "trial_term_expired", …
    slot: str
    revision: str
    digest: str
    previous_digest: str
    transaction_id: str
    generation: int


@dataclass(frozen=True, slots=True)
class RequestHandedOver:
    """A request that a trial failed goes to the previous slot."""

    model: str
    revision: str  # on trial
    reason: str


@dataclass(frozen=True, slots=True)
class CpuFallbackChanged:
    """A model leaves a device that ran out of memory, or may go back to it."""

    model: str
    change: str  # "fallback_begun", "fallback_taken", "fallback_failed", "fallback_kept" (at start), "fallback_ended"
    device: str  # that ran out
    fallback_device: str
    digest: str
    detail: str  # the reason, or why it ended


Event = (
    CallStarted | CallEnded | ItemEnded | BatchSent | SlotChanged | SwapDone | RequestHandedOver | CpuFallbackChanged
)
Emit = Callable[[Event], None]


class Broadcast:
    """Wakes everybody who waits for a change. Loop thread only."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def notify(self) -> None:
        """Something has changed."""
        self._event.set()
        self._event = asyncio.Event()

    def next(self) -> asyncio.Event:
        """The event of the next change: take it before looking at the state, wait on it after."""
        return self._event
