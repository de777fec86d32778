"""Logs: one JSON line for each event on standard output; logging never blocks the caller.

A caller appends to a bounded queue; a writer thread formats and writes the lines. If the reader of the output stops
reading (a full pipe), lines are dropped and counted.
"""

import atexit
import contextlib
import json
import logging
import os
import select
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Mapping, MutableMapping
from datetime import datetime
from types import TracebackType
from typing import NoReturn, Self, TextIO, cast

from common.clock import Clock, SystemClock
from common.without import missing

# For lines in colours, which no process of ours writes, structlog would import rich and pygments: a fifth of the start.
with missing("rich"):
    import structlog
    from structlog.typing import FilteringBoundLogger

Logger = FilteringBoundLogger

LEVELS: Mapping[str, int] = {"debug": 10, "info": 20, "warning": 30, "error": 40}
MAX_QUEUED_LINES = 8192
MAX_LINE_BYTES = 32 * 1024
GATHER_SECONDS = 0.01  # lines of this time are written together; a line is at most so late
CLOSE_SECONDS = 2.0
_FIXED = ("at", "level", "process", "event")
_ATOMIC_BYTES = 4096  # PIPE_BUF: a pipe does not split a write of at most so many bytes


_Event = dict[str, object]
_ENCODER = json.JSONEncoder(ensure_ascii=False, default=repr)  # made once: json.dumps makes one for each line


def configure(process: str, level: str, stream: TextIO | None = None) -> "LogWriter":
    """Send this process's events, including those of `logging` and `warnings`, to a stream.

    Args:
        process: name of this process; appears in every line.
        level: lowest level written, a key of LEVELS. For libraries it is at least warning, unless it is debug.
        stream: must have a file descriptor. Default: standard output.

    Returns:
        The writer, a context manager; closing it writes what is queued. It closes itself when the process exits.
    """
    target = stream or sys.stdout
    target.flush()
    bridge = _LoggingBridge()
    writer = LogWriter(process, target.fileno(), SystemClock(), on_close=lambda: _disconnect(bridge))
    _connected.writer, _connected.level = writer, LEVELS[level]
    root = logging.getLogger()
    root.handlers[:] = [bridge]
    root.setLevel(LEVELS[level] if level == "debug" else max(LEVELS[level], logging.WARNING))
    logging.captureWarnings(capture=True)
    atexit.register(writer.close)
    return writer


def get_logger(**bound: object) -> Logger:
    """A logger that adds `bound` to its events; it writes to standard error while no log is configured."""
    wrapper = structlog.make_filtering_bound_logger(_connected.level)
    return cast("Logger", structlog.wrap_logger(None, (_queue_event,), wrapper, dict).bind(**bound))


def put_info(event: "_Event") -> None:
    """Write an event of level info, as a logger without bound fields does, at a fraction of its cost.

    Args:
        event: `event` and the fields. It is formatted later, so it must not be used any more.
    """
    if _connected.level <= LEVELS["info"]:
        event["level"] = "info"
        _put(event)


def count_dropped_lines() -> int:
    """The number of lines that this process has dropped since its log was configured."""
    return _connected.writer.count_dropped_lines() if _connected.writer else 0


class LogWriter:
    """A bounded queue of events and the thread that writes them."""

    def __init__(
        self,
        process: str,
        descriptor: int,
        clock: Clock,
        max_queued: int = MAX_QUEUED_LINES,
        on_close: Callable[[], None] | None = None,
    ) -> None:
        """Start the thread.

        Args:
            process: name of this process; appears in every line.
            descriptor: to write to; it is duplicated, since it may be closed and its number reused while the thread
                still waits for a reader.
            clock: for the time of each line.
            max_queued: longest queue; further lines are dropped and counted.
            on_close: called before the last lines are written.
        """
        self._process = process
        self._descriptor = os.dup(descriptor)
        self._clock = clock
        self._max_queued = max_queued
        self._on_close = on_close
        self._queue: deque[_Event] = deque()
        self._dropped = 0
        self._reported = 0
        self._drop_lock = threading.Lock()
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._write_until_closed, name="log-writer", daemon=True)
        self._thread.start()

    def put(self, event: _Event) -> None:
        """Queue one event, or drop it if the queue is full; from any thread, never blocks.

        Args:
            event: `event`, `level` and the fields. It is formatted later, so its values must not change.
        """
        if len(self._queue) >= self._max_queued:
            self._count_dropped(1)
            return
        event["at"] = self._clock.now()
        self._queue.append(event)
        if not self._wake.is_set():
            self._wake.set()

    def count_dropped_lines(self) -> int:
        """The number of lines dropped since the start, because the queue was full or the output was closed."""
        return self._dropped

    def close(self, seconds: float = CLOSE_SECONDS) -> None:
        """Write what is queued, for at most `seconds`; may be repeated."""
        if self._on_close and not self._closing.is_set():
            self._on_close()
        self._closing.set()
        self._wake.set()
        self._thread.join(seconds)

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close."""
        self.close()

    def _count_dropped(self, lines: int) -> None:
        with self._drop_lock:
            self._dropped += lines

    def _write_until_closed(self) -> None:
        while not self._closing.is_set():
            self._wake.wait()
            self._closing.wait(GATHER_SECONDS)
            self._wake.clear()  # before the queue is emptied, so that an event that arrives now sets it again
            self._write_queued()
        self._write_queued()
        os.close(self._descriptor)

    def _write_queued(self) -> None:
        chunk, lines = bytearray(), 0
        while self._queue:
            line = self._line_of(self._queue.popleft())
            if chunk and len(chunk) + len(line) > _ATOMIC_BYTES:
                self._write(chunk, lines)
                chunk, lines = bytearray(), 0
            chunk += line
            lines += 1
        if chunk:
            self._write(chunk, lines)
        if self._dropped > self._reported:
            self._report_dropped()

    def _report_dropped(self) -> None:
        total = self._dropped
        fields: _Event = {"event": "log_lines_dropped", "level": "warning", "at": self._clock.now()}
        line = self._line_of({**fields, "lines": total - self._reported, "total": total})
        if self._write(line, 0):
            self._reported = total

    def _line_of(self, event: _Event) -> bytes:
        try:
            return format_line(self._process, event)
        except Exception as error:  # noqa: BLE001  a value whose repr fails must not end the thread
            failure: _Event = {"event": "log_line_unprintable", "level": "error", "at": event["at"]}
            return format_line(
                self._process, {**failure, "was": str(event.get("event")), "error": type(error).__name__}
            )

    def _write(self, content: bytes | bytearray, lines: int) -> bool:
        rest = memoryview(content)
        try:
            while rest:
                try:
                    rest = rest[os.write(self._descriptor, rest) :]
                except BlockingIOError:  # another process that shares the descriptor made it non-blocking
                    select.select((), (self._descriptor,), (), 1.0)
        except (OSError, ValueError):
            self._count_dropped(lines)
            return False
        return True


def format_line(process: str, event: Mapping[str, object]) -> bytes:
    """One event as a JSON object and a newline: `at`, `level`, `process`, `event`, then the fields in their order.

    A value that JSON cannot represent becomes its `repr`. A line over MAX_LINE_BYTES is replaced by its fixed keys and
    `too_long_bytes`.
    """
    at = cast("datetime", event["at"]).isoformat(timespec="microseconds").replace("+00:00", "Z")
    row: _Event = {"at": at, "level": event.get("level"), "process": process, "event": event.get("event")}
    row.update(event)
    row["at"], row["process"] = at, process
    failure = row.pop("exc_info", None)
    if isinstance(failure, BaseException):
        row["exception"] = _traceback_of(failure)
    line = _to_json(row)
    if len(line) > MAX_LINE_BYTES:
        line = _to_json({**{key: row[key] for key in _FIXED}, "too_long_bytes": len(line)})
    return line


class _Connected:
    """What `get_logger` writes to: the writer of the configured log, if any."""

    writer: LogWriter | None = None
    level: int = LEVELS["info"]


_connected = _Connected()
_LEVEL_NAMES = {"warn": "warning", "exception": "error", "critical": "error", "fatal": "error"}


def _queue_event(_logger: object, method: str, event: MutableMapping[str, object]) -> NoReturn:
    """The last structlog processor: queues the event; the writer's thread does the rest."""
    event["level"] = _LEVEL_NAMES.get(method, method)
    failure = event.get("exc_info")
    if failure and not isinstance(failure, BaseException):
        event["exc_info"] = sys.exc_info()[1]  # not available in the writer's thread
    _put(cast("_Event", event))
    raise structlog.DropEvent


def _put(event: _Event) -> None:
    if _connected.writer:
        _connected.writer.put(event)
    else:
        event["at"] = SystemClock().now()
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write(format_line("unconfigured", event).decode())


def _disconnect(bridge: logging.Handler) -> None:
    _connected.writer = None
    logging.captureWarnings(capture=False)
    logging.getLogger().removeHandler(bridge)


class _LoggingBridge(logging.Handler):
    """Turns the records of `logging` into events."""

    def emit(self, record: logging.LogRecord) -> None:
        """Queue one record as the event `library_logged`."""
        level = next((name for name, number in reversed(list(LEVELS.items())) if record.levelno >= number), "debug")
        try:
            message = record.getMessage()
        except Exception:  # noqa: BLE001  a wrong format string of a library must not raise here
            message = str(record.msg)
        event: _Event = {"event": "library_logged", "level": level, "library": record.name, "message": message}
        if record.exc_info:
            event["exc_info"] = record.exc_info[1]
        _put(event)


def _traceback_of(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))


def _to_json(row: Mapping[str, object]) -> bytes:
    return _ENCODER.encode(row).encode(errors="replace") + b"\n"
