"""Admission control: refuses a request at once if it exceeds a limit or cannot meet its deadline; and the drain."""

import asyncio
from dataclasses import dataclass

from common.errors import DeadlineMissed, HotslotError, NotReady, Overloaded


@dataclass(frozen=True, slots=True)
class Capacity:
    """Limits of the accepted, unanswered requests of one model."""

    max_requests: int
    max_bytes: int


@dataclass(frozen=True, slots=True)
class AdmissionRequest:
    """The facts about a request that admission decides by."""

    size_bytes: int
    seconds_left: float  # until the caller's deadline
    expected_seconds: float  # its own device time at best; 0 if unknown


def check_admission(
    waiting_requests: int, waiting_bytes: int, capacity: Capacity, request: AdmissionRequest
) -> HotslotError | None:
    """The error to refuse a request with; None admits it."""
    if request.seconds_left <= 0:
        return DeadlineMissed("the deadline had passed on arrival", reason="DEADLINE_EXPIRED")
    if request.seconds_left < request.expected_seconds:
        return DeadlineMissed(
            f"the deadline leaves {request.seconds_left:.3f} s, the model needs about {request.expected_seconds:.3f} s",
            reason="DEADLINE_TOO_SHORT",
        )
    if waiting_requests >= capacity.max_requests:
        return Overloaded(
            f"{waiting_requests} accepted requests are unanswered, limit {capacity.max_requests}",
            retry_after_seconds=0.5,
        )
    if waiting_bytes + request.size_bytes > capacity.max_bytes and waiting_requests:
        return Overloaded(
            f"accepted, unanswered requests hold {waiting_bytes} bytes, limit {capacity.max_bytes}",
            retry_after_seconds=0.5,
        )
    return None


class AdmissionController:
    """Counts the accepted, unanswered requests of one model and refuses those over its limits."""

    def __init__(self, capacity: Capacity) -> None:
        self.capacity = capacity
        self.requests = 0
        self.size_bytes = 0

    def admit(self, request: AdmissionRequest) -> None:
        """Admit a request; `release` must follow.

        Raises:
            HotslotError: refused; nothing was counted.
        """
        error = check_admission(self.requests, self.size_bytes, self.capacity, request)
        if error is not None:
            raise error
        self.requests += 1
        self.size_bytes += request.size_bytes

    def release(self, size_bytes: int) -> None:
        """Subtract an admitted request that is done."""
        self.requests -= 1
        self.size_bytes -= size_bytes


class Drain:
    """The drain of the server, shared by all its parts."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.is_leaving = False  # health reports NOT_SERVING; requests are accepted until the drain begins

    @property
    def is_draining(self) -> bool:
        """Whether new requests are refused and streams end."""
        return self.begun.is_set()


def draining_error() -> NotReady:
    """The error for requests during a drain: retry on another server."""
    return NotReady("this server is draining; retry on another one", reason="DRAINING", retry_after_seconds=1.0)
