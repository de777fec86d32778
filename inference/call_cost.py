"""The measured cost of a device call; the server uses it for deadlines, the runner for the size of calls. Pure."""

import math
from dataclasses import dataclass

_SMOOTHING = 0.2  # weight of the newest call of its size; forgets a cold start within about ten calls
_BEST_SMOOTHING = 0.05  # weight of a call that is slower than the best: a busy hour must not look like the best
_BEST_AFTER_RISE = 0.5  # the lowest cost, as a share of the mean, after the cost has risen by a jump
_HALF_LIFE_CALLS = 64  # calls of other sizes after which a size counts half
_OVERHEAD_DOUBT = 1e-4  # keeps the overhead at 0 while calls of one size only were measured
_JUMP = 2.0  # two calls in a row off by more than this factor, in one direction, replace what was measured before


@dataclass(slots=True)
class _Size:
    """Calls of about one size: a power of two of rows."""

    rows: float  # mean
    seconds: float  # mean
    last_call: int  # number of the latest call


class CallCost:
    """Expected seconds of a device call, overhead + rows × seconds of a row, fitted to the measured calls.

    The mean decides when a call has taken too long and how long the queue is. The lowest decides which requests are
    refused because they cannot meet their deadline: a mean that was measured while the machine was busy, as at every
    load, would refuse too many.
    """

    def __init__(self, row_seconds: float = 0.0) -> None:
        self.overhead_seconds = 0.0
        self.row_seconds = row_seconds
        self._best_factor = 1.0
        self._sizes: dict[int, _Size] = {}
        self._calls = 0
        self._jumped: tuple[int, float, int] | None = None  # the latest call, if it was off: direction, seconds, rows
        if row_seconds > 0:
            self._add(row_seconds, 1)

    @property
    def is_known(self) -> bool:
        """Whether a call was measured."""
        return bool(self._sizes)

    def learn(self, seconds: float, rows: int) -> None:
        """Add the measurement of one finished call."""
        if rows <= 0 or seconds < 0:
            return
        best_seconds = self._best_after(seconds, rows)
        direction, before = self._jump_of(seconds, rows), self._jumped
        self._jumped = None
        if before is not None and direction == before[0]:
            self._restart(before[1], before[2])
            best_seconds, direction = self.at_best(rows), 0
        elif before is not None:
            self._add(before[1], before[2])
        if direction:
            self._jumped = direction, seconds, rows  # counts when the next call tells whether it was a jump
        else:
            self._add(seconds, rows)
        expected = self.expected(rows)
        self._best_factor = min(1.0, best_seconds / expected) if expected > 0 else 1.0

    def expected(self, rows: float) -> float:
        """Expected seconds of a call of `rows` rows; 0 if nothing was measured yet, or for no rows."""
        return self.overhead_seconds + rows * self.row_seconds if rows > 0 else 0.0

    def expected_work(self, rows: float, call_rows: int) -> float:
        """Expected seconds of `rows` rows in calls of at most `call_rows` rows."""
        return math.ceil(rows / max(1, call_rows)) * self.overhead_seconds + rows * self.row_seconds

    def at_best(self, rows: float) -> float:
        """Seconds of a call of `rows` rows at the lowest cost measured lately; 0 if nothing was measured yet."""
        return self._best_factor * (self.overhead_seconds + rows * self.row_seconds) if rows > 0 else 0.0

    @property
    def best_share(self) -> float:
        """The lowest cost measured lately, as a share of the mean."""
        return self._best_factor

    def _jump_of(self, seconds: float, rows: int) -> int:
        """1 if a call was slower than any cost model allows after the nearest size, -1 if it was faster, else 0.

        A call of more rows costs at least as much, and at most as much more as it has more rows.
        """
        if not self._sizes:
            return 0
        near, distance = None, math.inf
        for size in self._sizes.values():
            ratio = size.rows / rows
            if near is None or max(ratio, 1 / ratio) < distance:
                near, distance = size, max(ratio, 1 / ratio)
        if near is None:
            return 0
        scaled = near.seconds * rows / near.rows
        if seconds > _JUMP * max(near.seconds, scaled):
            return 1
        return -1 if seconds * _JUMP < min(near.seconds, scaled) else 0

    def _restart(self, seconds: float, rows: int) -> None:
        """Forget what was measured before the cost changed; if it rose, the machine may only be busy for a while."""
        has_risen = seconds > self.expected(rows)
        self._sizes.clear()
        self._add(seconds, rows)
        self._best_factor = _BEST_AFTER_RISE if has_risen else 1.0

    def _best_after(self, seconds: float, rows: int) -> float:
        """The lowest cost of a call of `rows` rows, with this measurement."""
        best = self.at_best(rows) if self.is_known else seconds
        return seconds if seconds < best else best + _BEST_SMOOTHING * (seconds - best)

    def _add(self, seconds: float, rows: int) -> None:
        self._calls += 1
        key = (rows - 1).bit_length()
        size = self._sizes.get(key)
        if size is None:
            self._sizes[key] = _Size(rows, seconds, self._calls)
        else:
            size.rows += _SMOOTHING * (rows - size.rows)
            size.seconds += _SMOOTHING * (seconds - size.seconds)
            size.last_call = self._calls
        self._fit()

    def _fit(self) -> None:
        """Fit seconds ÷ rows = row_seconds + overhead_seconds ÷ rows, by least squares: all sizes count alike."""
        weights = inverses = costs = squares = products = 0.0
        for size in self._sizes.values():
            weight = 0.5 ** ((self._calls - size.last_call) / _HALF_LIFE_CALLS)
            inverse, cost = 1 / size.rows, size.seconds / size.rows
            weights += weight
            inverses += weight * inverse
            costs += weight * cost
            squares += weight * inverse * inverse
            products += weight * inverse * cost
        determinant = weights * (squares + _OVERHEAD_DOUBT * weights) - inverses * inverses
        overhead = (weights * products - inverses * costs) / determinant
        row = (costs - overhead * inverses) / weights
        if overhead < 0:
            overhead, row = 0.0, costs / weights
        elif row < 0:
            overhead, row = products / squares, 0.0
        self.overhead_seconds, self.row_seconds = overhead, row
