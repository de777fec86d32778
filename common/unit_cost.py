"""The measured cost of a unit of work on a device: the server plans with it, the runner sizes its calls by it. Pure."""

_SMOOTHING = 0.2  # weight of the newest sample; forgets a cold start within about ten batches
_BEST_SMOOTHING = 0.05  # weight of a sample that is slower than the best: a busy hour must not look like the best


class UnitCost:
    """Device seconds of one unit on one device: an exponentially weighted mean of what was measured, and the best.

    The mean says when a call has taken too long. The best says what cannot be done in time: a cost that was measured
    while the machine was busy, as it is at every load, must not turn away what it could have answered.
    """

    def __init__(self, unit_seconds: float = 0.0) -> None:
        self.unit_seconds = unit_seconds
        self._best_seconds = unit_seconds

    def learn(self, seconds: float, units: int) -> None:
        """Take in one finished batch."""
        if units <= 0 or seconds < 0:
            return
        sample = seconds / units
        if self.unit_seconds == 0.0:
            self.unit_seconds = self._best_seconds = sample
            return
        self.unit_seconds += _SMOOTHING * (sample - self.unit_seconds)
        slower = sample - self._best_seconds
        self._best_seconds += slower if slower < 0 else _BEST_SMOOTHING * slower

    def expected(self, units: int) -> float:
        """Expected seconds of so many units; 0 if nothing was measured yet."""
        return self.unit_seconds * units

    def at_best(self, units: int) -> float:
        """Seconds that so many units take on a good day; 0 if nothing was measured yet."""
        return self._best_seconds * units
