"""The measured cost of a row on a device; the server uses it for deadlines, the runner for the size of calls. Pure."""

_SMOOTHING = 0.2  # weight of the newest sample; forgets a cold start within about ten batches
_BEST_SMOOTHING = 0.05  # weight of a sample that is slower than the best: a busy hour must not look like the best


class RowCost:
    """Device seconds of one row on one device: the exponentially weighted mean of the measurements, and the lowest one.

    The mean decides when a call has taken too long. The lowest decides which requests are refused because they cannot
    meet their deadline: a mean that was measured while the machine was busy, as at every load, would refuse too many.
    """

    def __init__(self, row_seconds: float = 0.0) -> None:
        self.row_seconds = row_seconds
        self._best_seconds = row_seconds

    def learn(self, seconds: float, rows: int) -> None:
        """Add the measurement of one finished batch."""
        if rows <= 0 or seconds < 0:
            return
        sample = seconds / rows
        if self.row_seconds == 0.0:
            self.row_seconds = self._best_seconds = sample
            return
        self.row_seconds += _SMOOTHING * (sample - self.row_seconds)
        slower = sample - self._best_seconds
        self._best_seconds += slower if slower < 0 else _BEST_SMOOTHING * slower

    def expected(self, rows: int) -> float:
        """Expected seconds for `rows` rows; 0 if nothing was measured yet."""
        return self.row_seconds * rows

    def at_best(self, rows: int) -> float:
        """Seconds for `rows` rows at the lowest measured cost; 0 if nothing was measured yet."""
        return self._best_seconds * rows
