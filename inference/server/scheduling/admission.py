"""Who is let in: a request is refused at once if it would be answered too late; in overload the queue is kept short.

Also the drain. Pure; time is an argument.
"""

import asyncio
from dataclasses import dataclass

from common import reasons
from common.errors import DeadlineMissed, HotslotError, NotReady, Overloaded
from common.records import record
from inference.call_cost import CallCost
from inference.server.scheduling.in_flight import Estimate

WAIT_MARGIN = 1.1  # on the expected wait: a request at the limit must not be computed for a caller that has gone
MAX_LATENESS_SHARE = 0.25  # of the time left, that is kept for answers coming later than expected
_LATENESS_RISE, _LATENESS_FALL = 0.25, 0.01  # weights of a later and of an earlier answer: about every 25th is later
MIN_RETRY_SECONDS = 0.02
NO_ESTIMATE = Estimate()

# In overload.
MIN_QUEUED_SECONDS = 0.25  # of work that may wait in overload, at least
QUEUED_REQUESTS = 2  # typical requests that may wait in overload, beside those that the runner holds
FIRST_SHARE = 0.5  # of its time left, that a request may wait in overload if nothing else of its flow waits
QUEUED_CALLS = 2  # device calls of an efficient size that may wait in overload
EFFICIENT_SHARE = 0.95  # of the time of a call that computes rows, in a call of an efficient size

WINDOW_SECONDS = 1.0  # at least; two windows in a row decide
WINDOW_REQUESTS = 8  # typical requests that are served in a window, at least
_GROWTH_SHARE = 0.05  # of the rows served in a window, by which more must be offered
PROBE_WINDOWS = 3  # a probe: a longer queue is admitted, and the last window decides
PROBE_FACTOR = 8  # of the queue that is admitted in overload, during a probe
PROBE_PAUSE_WINDOWS = 15  # before the first probe; doubles with each that finds the overload still there
MAX_PROBE_PAUSE_WINDOWS = 120
_TYPICAL_SMOOTHING = 0.1  # weight of the newest request
_MAX_RETRY_SECONDS = 10.0  # beyond what the present queue requires


@dataclass(frozen=True, slots=True)
class Capacity:
    """Limits of the accepted, unanswered unary requests of one model."""

    max_requests: int
    max_bytes: int


@record
class AdmissionRequest:
    """The facts about a request that admission decides by."""

    rows: int
    size_bytes: int
    seconds_left: float  # until the caller's deadline
    estimate: Estimate = NO_ESTIMATE
    quota_seconds: float = 0.0  # until it is within its caller's quota
    is_stream_item: bool = False  # streams are held back, not refused


@record
class Load:
    """The present load of one model."""

    requests: int  # unary ones, accepted, unanswered: items of streams take none of their places
    size_bytes: int  # of these requests
    lateness_seconds: float  # by which few answers come later than expected
    max_queued_seconds: float | None  # of work that may be before a request in the queue; None: up to the deadline


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request is refused."""

    error: type[HotslotError]
    reason: str
    message: str
    excess_seconds: float = 0.0  # for Overloaded: until the request itself would be admitted

    @property
    def is_for_load(self) -> bool:
        """Whether the same request would be admitted by a model with less to do."""
        return self.reason == "QUEUE_FULL"


def check_admission(load: Load, capacity: Capacity, request: AdmissionRequest) -> Refusal | None:
    """Why a request is refused; None admits it."""
    refusal = _check_own(request)
    if refusal is not None or request.is_stream_item:
        return refusal
    return _check_bytes(load, capacity, request) or _check_limits(load, capacity, request) or _check_wait(load, request)


def _check_own(request: AdmissionRequest) -> Refusal | None:
    """Whether an idle server could answer it."""
    left, own = request.seconds_left, request.estimate.own
    if left <= 0:
        return Refusal(DeadlineMissed, reasons.DEADLINE_EXPIRED, "the deadline had passed on arrival")
    if left < own:
        text = f"the deadline leaves {left:.3f} s, the model needs about {own:.3f} s"
        return Refusal(DeadlineMissed, reasons.DEADLINE_TOO_SHORT, text)
    return None


def _check_bytes(load: Load, capacity: Capacity, request: AdmissionRequest) -> Refusal | None:
    if load.requests and load.size_bytes + request.size_bytes > capacity.max_bytes:
        text = f"accepted, unanswered unary requests hold {load.size_bytes} bytes, limit {capacity.max_bytes}"
        return Refusal(Overloaded, "QUEUE_FULL", text, request.estimate.queued)
    return None


def _check_limits(load: Load, capacity: Capacity, request: AdmissionRequest) -> Refusal | None:
    if request.quota_seconds > 0:
        return Refusal(Overloaded, "QUOTA_EXCEEDED", "the caller's quota is used up", request.quota_seconds)
    if load.requests >= capacity.max_requests:
        text = f"{load.requests} accepted unary requests are unanswered, limit {capacity.max_requests}"
        return Refusal(Overloaded, "QUEUE_FULL", text, request.estimate.in_flight)
    return None


def _check_wait(load: Load, request: AdmissionRequest) -> Refusal | None:
    """Whether it would be answered in time, behind the work that is before it."""
    left, limit, expected = request.seconds_left, load.max_queued_seconds, request.estimate
    wait, queued = expected.in_flight + expected.queued, expected.queued
    if wait <= 0 and limit is None:
        return None
    lateness = min(load.lateness_seconds, MAX_LATENESS_SHARE * left)
    total = WAIT_MARGIN * wait + max(expected.own, expected.shared_call) + lateness
    if wait > 0 and total > left:
        text = f"it would be answered in about {total:.3f} s, the deadline leaves {left:.3f} s"
        return Refusal(Overloaded, "QUEUE_FULL", text, total - left)
    if limit is not None and expected.is_first:
        limit = max(limit, FIRST_SHARE * left)
    if limit is not None and queued > limit:
        text = f"overloaded: {queued:.3f} s of work are queued before this request, limit {limit:.3f} s"
        return Refusal(Overloaded, "QUEUE_FULL", text, queued - limit)
    return None


class AdmissionController:
    """Admits the requests of one model, counts those that are unanswered, and keeps the queue short in overload."""

    def __init__(self, capacity: Capacity, now: float) -> None:
        self.capacity = capacity
        self.requests = 0  # with the items of streams
        self.size_bytes = 0
        self.stream_items = 0  # of `requests`
        self.stream_bytes = 0
        self.lateness_seconds = 0.0
        self.overload = OverloadRule(now)
        self._retries = RetrySchedule()

    def admit(self, request: AdmissionRequest, cost: CallCost, now: float) -> None:
        """Admit a request; `release` must follow.

        Args:
            request: to admit.
            cost: of the slot that it would go to.
            now: the clock, seconds.

        Raises:
            HotslotError: refused; nothing was counted but the demand.
        """
        overload = self.overload
        limit = None
        if overload.is_overloaded:
            limit = overload.max_queued_seconds(cost.expected(overload.typical_rows), cost.overhead_seconds)
        unary_requests, unary_bytes = self.requests - self.stream_items, self.size_bytes - self.stream_bytes
        load = Load(unary_requests, unary_bytes, self.lateness_seconds, limit)
        refusal = check_admission(load, self.capacity, request)
        if refusal is None or refusal.is_for_load:
            overload.on_offered(request.rows)
        if refusal is not None:
            raise self._error(refusal, cost.expected(request.rows), now)
        self.requests += 1
        self.size_bytes += request.size_bytes
        if request.is_stream_item:
            self.stream_items += 1
            self.stream_bytes += request.size_bytes

    def release(self, size_bytes: int, served_rows: int, *, is_stream_item: bool = False) -> None:
        """Subtract an admitted request that is done; `served_rows` is 0 if it was not computed."""
        self.requests -= 1
        self.size_bytes -= size_bytes
        if is_stream_item:
            self.stream_items -= 1
            self.stream_bytes -= size_bytes
        self.overload.on_served(served_rows)

    def learn_lateness(self, seconds: float) -> None:
        """Add an answer that came so much later than expected when its request was admitted; negative if earlier.

        The way to the runner and back, decoding, and a busy machine are in no estimate.
        """
        above = (seconds if seconds > 0 else 0.0) - self.lateness_seconds
        self.lateness_seconds += (_LATENESS_RISE if above > 0 else _LATENESS_FALL) * above

    def update(self, cost: CallCost, *, is_idle: bool, now: float) -> bool:
        """Judge the load; called about every 50 ms. Returns whether the overload has begun or ended."""
        if is_idle:
            self.overload.on_idle()
        return self.overload.update(cost.expected(self.overload.typical_rows), now)

    def _error(self, refusal: Refusal, own_seconds: float, now: float) -> HotslotError:
        retry: float | None = None
        if refusal.is_for_load:
            retry = max(MIN_RETRY_SECONDS, self._retries.reserve(refusal.excess_seconds, own_seconds, now))
        elif refusal.error is Overloaded:
            retry = max(MIN_RETRY_SECONDS, refusal.excess_seconds)
        return refusal.error(refusal.message, reason=refusal.reason, retry_after_seconds=retry)


class Drain:
    """The drain of the server, shared by all its parts."""

    def __init__(self) -> None:
        self.is_leaving = False  # health reports NOT_SERVING; requests are accepted until the drain begins
        self.is_draining = False  # new requests are refused, and streams end
        self.begun = asyncio.Event()  # set with it

    def begin(self) -> None:
        """Refuse new requests, and end streams, from now on."""
        self.is_draining = True
        self.begun.set()


def draining_error() -> NotReady:
    """The error for requests during a drain: retry on another server."""
    return NotReady("this server is draining; retry on another one", reason="DRAINING", retry_after_seconds=1.0)


@dataclass(slots=True)
class _Window:
    """Counts since `begun_at`."""

    begun_at: float
    offered: int = 0  # rows, refused ones included
    served: int = 0  # rows
    was_idle: bool = False

    @property
    def growth(self) -> int:
        """Rows offered beyond those served."""
        return self.offered - self.served


class OverloadRule:
    """Decides whether a model is offered more than it serves, by rates and not by the length of its queue.

    Callers that wait for their answers before they send the next request offer what is served, however many they are:
    they may fill the queue, and none of them is refused. Once some of them were refused, in somebody else's overload,
    their further attempts look like more demand; a probe, in which they are let in, tells that the overload is over.
    """

    def __init__(self, now: float) -> None:
        self.is_overloaded = False
        self.typical_rows = 1.0  # of a request
        self._window = _Window(now, was_idle=True)
        self._grew_before = False
        self._is_probing = False
        self._windows_left = 0  # of the probe, or before the next
        self._pause_windows = PROBE_PAUSE_WINDOWS

    def on_offered(self, rows: int) -> None:
        """Count a request, admitted or refused for load."""
        self._window.offered += rows
        self.typical_rows += _TYPICAL_SMOOTHING * (rows - self.typical_rows)

    def on_served(self, rows: int) -> None:
        """Count a request that was computed."""
        self._window.served += rows

    def on_idle(self) -> None:
        """Record that nothing waits and nothing is computed."""
        self._window.was_idle = True

    def update(self, typical_seconds: float, now: float) -> bool:
        """Judge the window that has ended, if one has.

        Args:
            typical_seconds: expected device seconds of a typical request.
            now: the clock, seconds.

        Returns:
            Whether `is_overloaded` has changed.
        """
        window, before = self._window, self.is_overloaded
        if now - window.begun_at < max(WINDOW_SECONDS, WINDOW_REQUESTS * typical_seconds):
            return False
        threshold = max(self.typical_rows, _GROWTH_SHARE * window.served) / (2 if before else 1)
        grew = not window.was_idle and window.growth >= threshold
        self.is_overloaded = grew and (self._grew_before or before)
        self._grew_before = grew
        self._window = _Window(now)
        if self.is_overloaded and before:
            self._advance_probe()
        elif self.is_overloaded != before:
            self._is_probing = False
            self._windows_left = self._pause_windows = PROBE_PAUSE_WINDOWS
        return self.is_overloaded != before

    def max_queued_seconds(self, typical_seconds: float, overhead_seconds: float) -> float | None:
        """Seconds of work that may be before a request in the queue now; None: up to the deadline.

        Args:
            typical_seconds: expected device seconds of a typical request.
            overhead_seconds: device seconds of a call beside those of its rows.
        """
        if not self.is_overloaded:
            return None
        return (PROBE_FACTOR if self._is_probing else 1) * short_queue(typical_seconds, overhead_seconds)

    def _advance_probe(self) -> None:
        """Begin or end a probe, one window further into the overload."""
        self._windows_left -= 1
        if self._windows_left > 0:
            return
        if self._is_probing:
            self._pause_windows = min(MAX_PROBE_PAUSE_WINDOWS, 2 * self._pause_windows)
        self._is_probing = not self._is_probing
        self._windows_left = PROBE_WINDOWS if self._is_probing else self._pause_windows


def short_queue(typical_seconds: float, overhead_seconds: float) -> float:
    """Seconds of work that may be before a request in the queue in overload.

    Args:
        typical_seconds: expected device seconds of a typical request.
        overhead_seconds: device seconds of a call beside those of its rows.
    """
    efficient_call = overhead_seconds / (1 - EFFICIENT_SHARE)
    return max(MIN_QUEUED_SECONDS, QUEUED_REQUESTS * typical_seconds, QUEUED_CALLS * efficient_call)


class RetrySchedule:
    """Tells refused callers when to come back: one after the other, as fast as they can be served."""

    def __init__(self) -> None:
        self._next_at = 0.0

    def reserve(self, excess_seconds: float, own_seconds: float, now: float) -> float:
        """Seconds after which a refused request has room.

        Args:
            excess_seconds: by which the present queue is too long for it.
            own_seconds: expected device seconds of the request.
            now: the clock, seconds.
        """
        room_at = now + max(0.0, excess_seconds)
        self._next_at = min(max(room_at, self._next_at), room_at + _MAX_RETRY_SECONDS)
        retry_at = self._next_at
        self._next_at += own_seconds
        return retry_at - now
