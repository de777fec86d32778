"""The only place that reads a clock; everyone else is given one."""

import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """What the rest of the code may ask about time."""

    def monotonic(self) -> float:
        """Seconds since some fixed moment; never goes back."""
        ...

    def now(self) -> datetime:
        """The wall clock's time, in UTC; may jump."""
        ...


class SystemClock:
    """The machine's clocks."""

    def monotonic(self) -> float:
        """Seconds since some fixed moment; never goes back."""
        return time.monotonic()

    def now(self) -> datetime:
        """The wall clock's time, in UTC; may jump."""
        return datetime.now(UTC)


def read_cpu_seconds() -> float:
    """CPU seconds that this process has used, all threads, user and system."""
    return time.process_time()
