"""Signals that ask a process to stop, caught without a lock."""

import contextlib
import os
import select
import signal
from collections.abc import Callable, Iterable
from types import FrameType, TracebackType
from typing import Self


class RepeatedSignal:
    """Catches a signal from its creation on, each time that it comes; without a lock, as StopSignals."""

    def __init__(self, number: signal.Signals) -> None:
        """Install the handler; in the main thread only."""
        self._read_end, self._write_end = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._write_end, False)
        signal.signal(number, self._handle)

    def wait(self) -> None:
        """Wait until the signal has come since the last wait. From one thread."""
        os.read(self._read_end, 1 << 16)

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        with contextlib.suppress(BlockingIOError):
            os.write(self._write_end, b"\0")


class StopSignals:
    """Catches signals from its creation on; the first and each further one calls `on_signal`.

    A handler runs between any two instructions of the main thread, also within another handler or within a wait. A
    `threading.Event` would take its own lock a second time there, for ever. So the handler only sets a flag and writes
    a byte to a pipe that is never read: it stays readable, for the waits of all threads.
    """

    def __init__(self, numbers: Iterable[signal.Signals], on_signal: Callable[[], None] | None = None) -> None:
        """Install the handlers; in the main thread only.

        Args:
            numbers: the signals.
            on_signal: called by the handler; must take no lock and may run while it runs.
        """
        self._on_signal = on_signal
        self._read_end, self._write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self.is_requested = False
        self._before = {number: signal.signal(number, self._handle) for number in numbers}

    def wait(self, seconds: float | None = None) -> bool:
        """Wait for the first signal, at most so long; returns whether one has come. From any thread."""
        if not self.is_requested:
            poller = select.poll()
            poller.register(self._read_end, select.POLLIN)
            poller.poll(None if seconds is None else max(0.0, seconds) * 1000)
        return self.is_requested

    def close(self) -> None:
        """Restore the handlers that were there before; no thread may wait any more."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        os.close(self._read_end)
        os.close(self._write_end)

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        self.is_requested = True
        with contextlib.suppress(BlockingIOError):  # full: as many signals as a pipe has bytes
            os.write(self._write_end, b"\0")
        if self._on_signal is not None:
            self._on_signal()
