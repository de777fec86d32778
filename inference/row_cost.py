"""The measured cost of a row of work on a device: the server plans with it, the runner sizes its calls by it. Pure."""

_SMOOTHING = 0.2  # weight of the newest sample; forgets a cold start within about ten batches
_BEST_SMOOTHING = 0.05  # weight of a sample that is slower than the best: a busy hour must not look like the best


class RowCost:
    """Device seconds of one row on one device: an exponentially weighted mean of what was measured, and the best.

    The mean says when a call has taken too long. The best says what cannot be done in time: a cost that was measured
    while the machine was busy, as it is at every load, must not turn away what it could have answered.
    """

    def __init__(self, row_seconds: float = 0.0) -> None:
        self.row_seconds = row_seconds
        self._best_seconds = row_seconds

    def learn(self, seconds: float, rows: int) -> None:
        """Take in one finished batch."""
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
        """Expected seconds of so many rows; 0 if nothing was measured yet."""
        return self.row_seconds * rows

    def at_best(self, rows: int) -> float:
        """Seconds that so many rows take on a good day; 0 if nothing was measured yet."""
        return self._best_seconds * rows
