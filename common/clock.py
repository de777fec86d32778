"""The clocks; all other code receives a `Clock` as an argument."""

import threading
import time
from datetime import UTC, datetime
from typing import Protocol

_PROCESS_CLOCK = 2  # CPUCLOCK_SCHED of the kernel's posix-timers.h


class Clock(Protocol):
    """Time, as the rest of the code sees it; tests pass a simulated one."""

    def monotonic(self) -> float:
        """Seconds since an arbitrary moment; never decreases."""
        ...

    def now(self) -> datetime:
        """The wall-clock time in UTC; may jump."""
        ...


class SystemClock:
    """The system's clocks."""

    monotonic = staticmethod(time.monotonic)

    def now(self) -> datetime:
        """The wall-clock time in UTC; may jump."""
        return datetime.now(UTC)


def read_cpu_seconds() -> float:
    """CPU seconds that this process has used, all threads, user and system."""
    return time.process_time()


class ThreadCpuClock:
    """CPU seconds of the thread that creates it, user and system. Any thread may read it while that thread lives."""

    def __init__(self) -> None:
        self._clock_id = time.pthread_getcpuclockid(threading.get_ident())

    def read_seconds(self) -> float:
        """CPU seconds that the thread has used."""
        return time.clock_gettime(self._clock_id)


def read_cpu_seconds_of(pid: int) -> float:
    """CPU seconds that another process has used; 0 if it has ended or the system does not tell."""
    try:
        return time.clock_gettime((~pid << 3) | _PROCESS_CLOCK)  # as clock_getcpuclockid(3) computes it on Linux
    except OSError:
        return 0.0
