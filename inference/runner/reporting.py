"""The pulse: the device thread counts its own progress, a helper thread only reports the count."""

import json
import os
import queue
import socket
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path

from common.clock import Clock
from hotslot.runner.v1 import runner_pb2
from inference.wire import write_frame


class Pulse:
    """What the device thread is doing. It alone writes; reading needs no lock, each value stands for itself."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._step_since: float | None = None
        self.progress = 0
        self.batch_id = 0
        self.device_used_bytes = 0
        self.device_total_bytes = 0

    def begin(self, batch_id: int) -> None:
        """A batch, or with 0 a load, is begun."""
        self.batch_id = batch_id
        self._step_since = self._clock.monotonic()

    def step(self) -> None:
        """A device call, or a step of a load, has ended."""
        self.progress += 1
        self._step_since = self._clock.monotonic()

    def rest(self) -> None:
        """There is nothing to do."""
        self._step_since = None
        self.batch_id = 0

    def read(self) -> runner_pb2.Heartbeat:
        """What a heartbeat says now."""
        since = self._step_since
        return runner_pb2.Heartbeat(
            progress=self.progress,
            batch_id=self.batch_id,
            seconds_on_step=0.0 if since is None else max(0.0, self._clock.monotonic() - since),
            device_used_bytes=self.device_used_bytes,
            device_total_bytes=self.device_total_bytes,
        )


def start_heartbeat(pulse: Pulse, seconds: float, say: Callable[[runner_pb2.RunnerReply], None]) -> None:
    """Report the pulse for ever, from a thread of its own."""
    never = threading.Event()

    def beat() -> None:
        while True:
            say(runner_pb2.RunnerReply(heartbeat=pulse.read()))
            never.wait(seconds)

    threading.Thread(target=beat, name="heartbeat", daemon=True).start()


class Outlet:
    """One way to the server. Any thread; blocks while the server does not read.

    Args:
        on_gone: called when the server is gone; must not return.
    """

    def __init__(self, way: socket.socket, on_gone: Callable[[], None]) -> None:
        self._way = way
        self._on_gone = on_gone
        self._lock = threading.Lock()

    def say(self, reply: runner_pb2.RunnerReply) -> None:
        """Send one message."""
        payload = reply.SerializeToString()
        try:
            with self._lock:
                write_frame(self._way, payload)
        except OSError:
            self._on_gone()


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
