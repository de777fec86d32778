"""Decides how long a free device waits for rows of callers who were just answered and ask again. Pure."""

from dataclasses import dataclass

from inference.call_cost import CallCost

MARGIN = 1.1  # by which the gain must exceed the wait
MIN_RETURNED = 0.7  # of the rows that a call has answered, as many as must have come back, on average
OBSERVED_OVERHEADS = 2.0  # how long after a call returning rows are observed, in overheads of a call
_SMOOTHING = 0.1  # weight of the newest observation


@dataclass(slots=True)
class _Epoch:
    """The time since a device call has ended."""

    freed_at: float = 0.0  # clock.monotonic()
    answered: int = 0  # rows of the call; 0: none was observed
    ready: int = 0  # rows that were there when it ended
    arrived: int = 0  # rows since, within the time that is observed
    first_rows: int = 0  # that arrived first
    first: float = 0.0  # seconds until these
    last: float = 0.0  # until the last one

    def add(self, ready_at: float, rows: int, seconds: float) -> None:
        """Record rows that were ready at a time, if that is in the first seconds after the call."""
        after = ready_at - self.freed_at
        if 0 < after <= seconds:
            if not self.arrived:
                self.first, self.first_rows = after, rows
            self.last = max(self.last, after)
            self.arrived += rows


class Gathering:
    """Whether, and how long, the device waits for further rows. Device thread only.

    Callers in a closed loop ask again as soon as they are answered. If fewer call than two calls take rows, they form
    two groups, which are computed in turn: each cycle costs the overhead of two calls. A device that waits until the
    rows of its last call are back computes all in one. That pays if they are back in less than what is saved.
    Where callers ask whenever they want, rows do not come back in this time, and the device never waits. Nor does it
    while another model has rows to compute on it: it would get the device meanwhile, and the calls measured here
    include the time that they spent waiting for it, which looks like an overhead.
    """

    def __init__(self) -> None:
        self.is_device_contended = False  # another model has rows to compute on the device
        self._epoch = _Epoch()
        self._before = _Epoch()  # rows that were ready during the call that ended it are told after that call
        self._returned = 0.0  # means: share of the answered rows that were back in time
        self._first_seconds = 0.0  # from the end of a call until the first row is back
        self._row_seconds = 0.0  # between two rows

    def end_call(self, now: float, rows: int, ready: int) -> None:
        """Record that a call of `rows` rows has ended, and that `ready` further rows are there."""
        self._learn()
        self._before, self._epoch = self._epoch, _Epoch(now, rows, ready)

    def add(self, ready_at: float, rows: int, cost: CallCost) -> None:
        """Record rows that were ready at a time."""
        is_new = ready_at > self._epoch.freed_at
        (self._epoch if is_new else self._before).add(ready_at, rows, OBSERVED_OVERHEADS * cost.overhead_seconds)
        if not is_new:
            self._epoch.ready += rows

    def choose_wait(self, now: float, rows: int, call_rows: int, cost: CallCost) -> float:
        """Seconds for which the next call waits for further rows; not above 0 if it should begin.

        Args:
            now: clock.monotonic().
            rows: that are there.
            call_rows: most rows of a call.
            cost: of a call, measured.
        """
        self._learn()
        if self.is_device_contended:
            return 0.0
        epoch = self._epoch
        callers = epoch.ready + epoch.answered  # rows that are computed again and again
        target = min(callers, call_rows)
        if not epoch.answered or rows >= target or self._returned < MIN_RETURNED:
            return 0.0
        # Without a wait two calls compute these rows; with one, the overhead of a call is shared by `target` rows.
        longest = cost.overhead_seconds * (2 * target / callers / MARGIN - 1)
        expected = self._first_seconds + (2 * target - callers - 1) * self._row_seconds
        return epoch.freed_at + longest - now if expected < longest else 0.0

    def _learn(self) -> None:
        epoch, self._before = self._before, _Epoch()
        if not epoch.answered:
            return
        self._returned += _SMOOTHING * (min(1.0, epoch.arrived / epoch.answered) - self._returned)
        if not epoch.arrived:
            return
        self._first_seconds += _SMOOTHING * (epoch.first - self._first_seconds)
        if epoch.arrived > epoch.first_rows:
            row_seconds = (epoch.last - epoch.first) / (epoch.arrived - epoch.first_rows)
            self._row_seconds += _SMOOTHING * (row_seconds - self._row_seconds)
