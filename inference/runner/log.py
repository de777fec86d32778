"""One JSON line an event on standard output, written by a thread of its own: a full pipe never stops the device.

The keys are those of `common.logs`, whose library would double the time that a runner needs to stand.
"""

import json
import os
import queue
import sys
import threading
import traceback
from pathlib import Path

from common.clock import Clock

MAX_WAITING = 256  # lines; more are dropped and counted
FLUSH_SECONDS = 0.2


class EventLog:
    """Where a runner tells what happened. Any thread."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lines: queue.Queue[dict[str, object]] = queue.Queue(MAX_WAITING)
        self._dropped = 0
        self._writer = threading.Thread(target=self._write, name="log", daemon=True)
        self._writer.start()

    def event(self, name: str, level: str = "info", **fields: object) -> None:
        """Tell that something happened: a stable name in the past tense, and what belongs to it."""
        at = self._clock.now().isoformat(timespec="microseconds").replace("+00:00", "Z")
        fixed = {"at": at, "level": level, "process": "runner", "event": name, "pid": os.getpid()}
        try:
            self._lines.put_nowait({**fixed, **fields})
        except queue.Full:
            self._dropped += 1

    def flush(self) -> None:
        """Give the writer a short time to write what waits, before the process ends."""
        is_written = threading.Event()
        self.event("runner_log_ended", written=is_written)
        is_written.wait(FLUSH_SECONDS)

    def _write(self) -> None:
        while True:
            line = self._lines.get()
            ended = line.pop("written", None)
            if isinstance(ended, threading.Event):
                ended.set()
                continue
            if self._dropped:
                line["dropped_before"], self._dropped = self._dropped, 0
            try:
                os.write(sys.stdout.fileno(), json.dumps(line, default=str).encode() + b"\n")
            except OSError:
                self._dropped += 1


def describe(error: BaseException) -> str:
    """An error for the log: its class and where it was raised. Its text may hold what a caller sent."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return type(error).__name__ + where
