"""A clock that only a test advances."""

from datetime import UTC, datetime


class StoppedClock:
    """Implements `common.clock.Clock`."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def monotonic(self) -> float:
        return self.seconds

    def now(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC)
