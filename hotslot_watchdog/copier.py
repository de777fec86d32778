"""Copies the stack's output to a reader that may stop reading, without ever making the writers wait."""

import os
import select
from collections import deque
from datetime import datetime

from common.clock import Clock
from common.logs import format_line

MAX_WAITING_BYTES = 4 << 20
READ_BYTES = 1 << 16
WRITE_BYTES = select.PIPE_BUF  # a pipe that poll() reports as writable takes this many without blocking


class LineBuffer:
    """Whole lines that wait to be written; when it is full, further lines are dropped and counted."""

    def __init__(self, max_bytes: int = MAX_WAITING_BYTES) -> None:
        self._max_bytes = max_bytes
        self._lines: deque[bytes] = deque()
        self._partial = b""  # a line whose end has not been read
        self._size = 0
        self._dropped = 0

    def __len__(self) -> int:
        """Bytes that wait to be written."""
        return self._size

    def add(self, content: bytes, now: datetime) -> None:
        """Add what was read; `now` is the time of the line that reports lost ones."""
        *lines, self._partial = (self._partial + content).split(b"\n")
        for line in lines:
            self._append(line + b"\n", now)
        if len(self._partial) > READ_BYTES:  # not a log line
            self._append(self._partial, now)
            self._partial = b""

    def finish(self, now: datetime) -> None:
        """Add what is left at the end: a line without an end, and how many lines were lost."""
        if self._partial:
            self._append(self._partial, now)
            self._partial = b""
        self._report_dropped(now)

    def take(self) -> bytes:
        """Remove and return the next bytes, at most WRITE_BYTES; there must be some."""
        line = self._lines.popleft()
        if len(line) > WRITE_BYTES:
            self._lines.appendleft(line[WRITE_BYTES:])
            line = line[:WRITE_BYTES]
        self._size -= len(line)
        return line

    def put_back(self, content: bytes) -> None:
        """Return bytes that were taken and not written."""
        self._lines.appendleft(content)
        self._size += len(content)

    def _append(self, line: bytes, now: datetime) -> None:
        if self._size + len(line) > self._max_bytes:
            self._dropped += 1
            return
        self._report_dropped(now)
        self._put(line)

    def _report_dropped(self, now: datetime) -> None:
        if self._dropped:
            row = {"at": now, "level": "error", "event": "output_dropped", "lines": self._dropped}
            self._dropped = 0
            self._put(format_line("stack", row))

    def _put(self, line: bytes) -> None:
        self._lines.append(line)
        self._size += len(line)


def copy_output(source: int, sink: int, last_seconds: float, clock: Clock) -> None:
    """Copy until the source ends; then what still waits for at most `last_seconds`.

    If the sink does not take it, lines are dropped: a writer that waits is supervisord, which then neither restarts a
    process nor obeys a signal. If the sink is closed, everything is dropped.
    """
    buffer, is_open, has_ended = LineBuffer(), True, False
    while not has_ended or (len(buffer) and is_open):
        poller = select.poll()
        if not has_ended:
            poller.register(source, select.POLLIN)
        if len(buffer) and is_open:
            poller.register(sink, select.POLLOUT)
        ready = dict(poller.poll(last_seconds * 1000 if has_ended else None))
        if has_ended and not ready:
            return
        if source in ready and not has_ended:
            content = os.read(source, READ_BYTES)
            has_ended = not content
            buffer.add(content, clock.now()) if content else buffer.finish(clock.now())
        if sink in ready and is_open:
            is_open = _write(buffer, sink)


def _write(buffer: LineBuffer, sink: int) -> bool:
    """Write a little; false if the sink is closed."""
    content = buffer.take()
    try:
        written = os.write(sink, content)
    except BlockingIOError:
        written = 0
    except OSError:
        return False
    if written < len(content):
        buffer.put_back(content[written:])
    return True
