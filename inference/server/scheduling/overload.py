"""The overload rule: when more is offered than served for long, the queue is kept short. Pure; time is an argument."""

from dataclasses import dataclass

MIN_QUEUED_SECONDS = 0.25  # of work that may wait in overload, at least
QUEUED_REQUESTS = 2  # typical requests that may wait in overload, beside those that the runner holds
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


@dataclass(slots=True)
class _Window:
    """What happened since `begun_at`."""

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
