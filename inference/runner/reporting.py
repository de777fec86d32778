"""The runner's heartbeats and log lines, and the writer of frames that both sockets use."""

import json
import os
import queue
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from common.clock import Clock, ThreadCpuClock
from hotslot.runner.v1 import runner_pb2
from inference.call_record import CallRecord
from inference.wire import write_frame

AWAKE_SHARE = 0.01  # of a CPU between two samples: a thread that used less, and is not ready to run, sleeps


class ThreadMeter:
    """CPU seconds and scheduling state of one thread of this process. Any thread may read."""

    def __init__(self) -> None:
        """Measure the calling thread."""
        self._cpu = ThreadCpuClock()
        self._stat = Path(f"/proc/self/task/{threading.get_native_id()}/stat")

    def read_cpu_seconds(self) -> float:
        """CPU seconds that the thread has used."""
        return self._cpu.read_seconds()

    def is_runnable(self) -> bool:
        """Whether the thread computes, or would if it were given a CPU."""
        try:
            # "tid (name) state …"; the name may contain anything.
            return self._stat.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[0] == "R"
        except (OSError, IndexError):
            return True  # unknown: the longer limit applies


class Meter(Protocol):
    """CPU seconds and scheduling state of the device thread."""

    def read_cpu_seconds(self) -> float:
        """CPU seconds used."""
        ...

    def is_runnable(self) -> bool:
        """Whether the thread computes, or would if it were given a CPU."""
        ...


class SleepWatch:
    """Measures for how long the device thread has slept in a device call, from regular samples. One thread."""

    def __init__(self) -> None:
        self._step = -1
        self._awake_at = 0.0
        self._sampled_at = 0.0
        self._cpu_seconds = 0.0

    def sample(self, step: int, now: float, cpu_seconds: float, *, is_runnable: bool) -> float:
        """Add a sample of the device call `step`; returns the seconds for which the thread has slept."""
        used, elapsed = cpu_seconds - self._cpu_seconds, now - self._sampled_at
        if step != self._step or is_runnable or used > AWAKE_SHARE * elapsed:
            self._awake_at = now
        self._step, self._sampled_at, self._cpu_seconds = step, now, cpu_seconds
        return now - self._awake_at


class DeviceProgress:
    """Progress of the device thread, for heartbeats.

    Only the device thread writes. Reads need no lock, because the values need not be consistent with each other.

    Args:
        record: receives the items of each device call.
    """

    def __init__(self, clock: Clock, record: CallRecord | None = None) -> None:
        self._clock = clock
        self._record = record
        self._meter: Meter | None = None
        self._sleep = SleepWatch()
        self._step_start: float | None = None
        self._step_cpu = 0.0  # CPU seconds of the thread when the step began
        self._rows = 0
        self.steps = 0
        self.device_used_bytes = 0
        self.device_total_bytes = 0

    def use_meter(self, meter: Meter) -> None:
        """Measure the device thread with this meter."""
        self._meter = meter

    def begin(self, rows: int, item_ids: Sequence[int] = ()) -> None:
        """Record the start of a device call, or of a load with 0."""
        if self._record is not None:
            self._record.write(item_ids)
        self._step_cpu = self._meter.read_cpu_seconds() if self._meter else 0.0
        self._rows = rows
        self._step_start = self._clock.monotonic()

    def advance(self) -> None:
        """Record the end of a step of a load."""
        self.steps += 1
        self._step_start = self._clock.monotonic()

    def end(self) -> None:
        """Record the end of a device call or of a load."""
        self.steps += 1
        self._step_start = None
        self._rows = 0
        if self._record is not None:
            self._record.write(())

    def make_heartbeat(self) -> runner_pb2.Heartbeat:
        """Return the current values. One thread at regular intervals."""
        start, rows, step = self._step_start, self._rows, self.steps
        now = self._clock.monotonic()
        heartbeat = runner_pb2.Heartbeat(
            progress=step,
            rows_on_step=rows,
            seconds_on_step=0.0 if start is None else max(0.0, now - start),
            device_used_bytes=self.device_used_bytes,
            device_total_bytes=self.device_total_bytes,
        )
        if rows and self._meter is not None:
            cpu_seconds = self._meter.read_cpu_seconds()
            heartbeat.cpu_seconds_on_step = max(0.0, cpu_seconds - self._step_cpu)
            is_runnable = self._meter.is_runnable()
            heartbeat.seconds_asleep = self._sleep.sample(step, now, cpu_seconds, is_runnable=is_runnable)
        return heartbeat


def start_heartbeat(
    make_heartbeat: Callable[[], runner_pb2.Heartbeat], seconds: float, send: Callable[[runner_pb2.RunnerReply], None]
) -> None:
    """Send a heartbeat every `seconds` from a daemon thread."""
    never = threading.Event()

    def send_heartbeats() -> None:
        while True:
            send(runner_pb2.RunnerReply(heartbeat=make_heartbeat()))
            never.wait(seconds)

    threading.Thread(target=send_heartbeats, name="heartbeat", daemon=True).start()


class FrameWriter:
    """Writes frames to one socket of the server. Any thread; blocks while the server does not read.

    Args:
        on_disconnect: called when the server has closed the socket; must not return.
    """

    def __init__(self, connection: socket.socket, on_disconnect: Callable[[], None]) -> None:
        self._connection = connection
        self._on_disconnect = on_disconnect
        self._lock = threading.Lock()

    def send(self, reply: runner_pb2.RunnerReply) -> None:
        """Send one message."""
        payload = reply.SerializeToString()
        try:
            with self._lock:
                write_frame(self._connection, payload)
        except OSError:
            self._on_disconnect()


MAX_QUEUED_LINES = 256  # further lines are dropped and counted
FLUSH_SECONDS = 0.2


class EventLog:
    """Writes log lines to stdout from a thread of its own, so that no caller blocks on the pipe. Any thread."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lines: queue.Queue[dict[str, object]] = queue.Queue(MAX_QUEUED_LINES)
        self._dropped = 0
        self._writer = threading.Thread(target=self._write, name="log", daemon=True)
        self._writer.start()

    def event(self, name: str, level: str = "info", **fields: object) -> None:
        """Log an event: a stable name in the past tense, and its fields."""
        at = self._clock.now().isoformat(timespec="microseconds").replace("+00:00", "Z")
        fixed = {"at": at, "level": level, "process": "runner", "event": name, "pid": os.getpid()}
        try:
            self._lines.put_nowait({**fixed, **fields})
        except queue.Full:
            self._dropped += 1

    def flush(self) -> None:
        """Wait until queued lines are written, at most `FLUSH_SECONDS`."""
        is_written = threading.Event()
        self.event("runner_log_flushed", written=is_written)
        is_written.wait(FLUSH_SECONDS)

    def _write(self) -> None:
        while True:
            line = self._lines.get()
            flushed = line.pop("written", None)
            if isinstance(flushed, threading.Event):
                flushed.set()
                continue
            if self._dropped:
                line["dropped_before"], self._dropped = self._dropped, 0
            try:
                os.write(sys.stdout.fileno(), json.dumps(line, default=str).encode() + b"\n")
            except OSError:
                self._dropped += 1


def describe_error(error: BaseException) -> str:
    """Return an error's class and the line that raised it, for logs. Its message may contain a caller's data."""
    frames = traceback.extract_tb(error.__traceback__)
    location = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return type(error).__name__ + location
