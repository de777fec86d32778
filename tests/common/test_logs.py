"""Logs: JSON lines; logging never blocks, whatever the reader does."""

import json
import logging
import os
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from common import logs
from common.clock import SystemClock

TIME_LIMIT_SECONDS = 5.0


class Reader:
    """The reading end of the pipe; reads only when a test calls it."""

    def __init__(self) -> None:
        self.descriptor, written = os.pipe()
        self.stream = os.fdopen(written, "w")

    def lines(self) -> list[dict[str, Any]]:
        """Everything written so far; the writing end must be closed or quiet."""
        self.stream.close()
        content = b""
        while part := os.read(self.descriptor, 1 << 16):
            content += part
        return [json.loads(line) for line in content.splitlines()]

    def read_until(self, event: str) -> list[dict[str, Any]]:
        """Read until a line of that event has come."""
        content = b""
        while f'"{event}"'.encode() not in content or not content.endswith(b"\n"):
            content += os.read(self.descriptor, 1 << 16)
        return [json.loads(line) for line in content.splitlines()]


@pytest.fixture
def reader() -> Iterator[Reader]:
    """A pipe for the log."""
    made = Reader()
    yield made
    made.stream.close()
    os.close(made.descriptor)


@pytest.fixture
def writer(reader: Reader) -> Iterator[logs.LogWriter]:
    """The log of this process, written to the pipe."""
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    with logs.configure("server", "info", reader.stream) as made:
        yield made
    root.handlers[:] = before
    root.setLevel(level)


def test_an_event_is_one_json_line_with_the_fixed_keys_first(reader: Reader, writer: logs.LogWriter) -> None:
    """Time in UTC, level, process and event; then the bound fields, then the event's own."""
    log = logs.get_logger(model="shapes")
    log.warning("slot_activated", slot="a", load_seconds=1.5)
    writer.close()

    (line,) = reader.lines()
    assert list(line) == ["at", "level", "process", "event", "model", "slot", "load_seconds"]
    assert tuple(line[key] for key in ("level", "process", "event", "model")) == (
        "warning",
        "server",
        "slot_activated",
        "shapes",
    )
    assert line["at"].endswith("Z")
    assert abs((datetime.now(UTC) - datetime.fromisoformat(line["at"])).total_seconds()) < 60


def test_a_level_below_the_configured_one_is_not_written(reader: Reader, writer: logs.LogWriter) -> None:
    """At level info, a debug event is not written."""
    log = logs.get_logger()
    log.debug("batch_composed")
    log.info("batch_answered")
    writer.close()

    assert [line["event"] for line in reader.lines()] == ["batch_answered"]


def test_newlines_and_foreign_values_stay_inside_one_line(reader: Reader, writer: logs.LogWriter) -> None:
    """A value cannot forge a second line; a value that JSON cannot represent becomes its repr."""
    logs.get_logger().info("odd", text='a\n{"event": "forged"}', value={1, 2}.__class__, lone="\ud800", raw=b"\x00")
    writer.close()

    (line,) = reader.lines()
    assert line["text"] == 'a\n{"event": "forged"}'
    assert line["value"] == "<class 'set'>"
    assert line["raw"] == "b'\\x00'"


def test_a_value_that_cannot_be_formatted_costs_only_its_own_line(reader: Reader, writer: logs.LogWriter) -> None:
    """A repr that raises, or a circular list, is reported, and the next line is written."""

    class Hostile:
        def __repr__(self) -> str:
            raise ValueError("no")

    log = logs.get_logger()
    circle: list[object] = []
    circle.append(circle)
    log.info("first", value=Hostile())
    log.info("second", value=circle)
    log.info("third")
    writer.close()

    lines = reader.lines()
    assert [line["event"] for line in lines] == ["log_line_unprintable", "log_line_unprintable", "third"]
    assert [line["was"] for line in lines[:2]] == ["first", "second"]


def test_a_line_that_is_too_long_is_replaced_by_its_fixed_keys(reader: Reader, writer: logs.LogWriter) -> None:
    """One event cannot fill the log."""
    logs.get_logger().info("huge", text="x" * logs.MAX_LINE_BYTES)
    writer.close()

    (line,) = reader.lines()
    assert line["event"] == "huge"
    assert line["too_long_bytes"] > logs.MAX_LINE_BYTES
    assert "text" not in line


def test_an_exception_is_a_field_with_its_traceback(reader: Reader, writer: logs.LogWriter) -> None:
    """The traceback of the raised error is in the line, although the line is formatted later."""
    log = logs.get_logger()
    try:
        dict[str, int]()["slot"]
    except KeyError:
        log.exception("swap_failed")
    writer.close()

    (line,) = reader.lines()
    assert line["level"] == "error"
    assert "KeyError: 'slot'" in line["exception"]


def test_messages_of_libraries_become_events(reader: Reader, writer: logs.LogWriter) -> None:
    """Records of `logging` and warnings are written, from level warning on."""
    logging.getLogger("grpc").error("channel %s broke", "x")
    logging.getLogger("grpc").info("connected")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(capture=False)
        logging.captureWarnings(capture=True)  # again, since pytest has hooked itself in between
        warnings.warn("old", DeprecationWarning, stacklevel=1)
    writer.close()

    lines = reader.lines()
    assert [line["event"] for line in lines] == ["library_logged"] * 2
    assert tuple(lines[0][key] for key in ("library", "message", "level")) == ("grpc", "channel x broke", "error")
    assert "DeprecationWarning" in lines[1]["message"]


def test_a_library_message_with_a_wrong_format_is_written_unformatted(reader: Reader, writer: logs.LogWriter) -> None:
    """It does not raise in our code."""
    (bridge,) = (handler for handler in logging.getLogger().handlers if type(handler).__module__ == "common.logs")
    bridge.handle(logging.LogRecord("odd", logging.ERROR, __file__, 1, "wrong %d", ("format",), None))
    writer.close()

    assert [line["message"] for line in reader.lines()] == ["wrong %d"]


def test_a_reader_that_stops_reading_never_blocks_and_dropped_lines_are_reported(reader: Reader) -> None:
    """With a full pipe, callers continue at once; lines are dropped, counted, and reported once the pipe is read."""
    clock = SystemClock()
    with logs.LogWriter("server", reader.stream.fileno(), clock, max_queued=100) as writer:
        started = time.monotonic()
        for number in range(5000):
            writer.put({"event": "call_answered", "level": "info", "number": number, "pad": "x" * 500})
            if number % 1000 == 0:
                threading.Event().wait(0.03)  # lets the writer run into the full pipe
        took = time.monotonic() - started
        assert took < TIME_LIMIT_SECONDS
        assert writer.count_dropped_lines() > 1000

        lines = reader.read_until("log_lines_dropped")
        report = lines[-1]
        assert report["event"] == "log_lines_dropped"
        assert report["total"] == writer.count_dropped_lines()
        assert len(lines) - 1 + report["total"] == 5000


def test_closing_does_not_wait_for_a_reader_that_stops_reading(reader: Reader) -> None:
    """A process can exit although nothing reads its log."""
    writer = logs.LogWriter("server", reader.stream.fileno(), SystemClock())
    for _ in range(1000):
        writer.put({"event": "call_answered", "level": "info", "pad": "x" * 500})
    started = time.monotonic()
    writer.close(seconds=0.05)
    assert time.monotonic() - started < TIME_LIMIT_SECONDS


def test_a_closed_writer_never_writes_to_another_file(reader: Reader) -> None:
    """The number of its descriptor may belong to another file by then; the lines go to the old file or are lost."""
    writer = logs.LogWriter("server", reader.stream.fileno(), SystemClock())
    for _ in range(1000):
        writer.put({"event": "call_answered", "level": "info", "pad": "x" * 500})
    writer.close(seconds=0.05)
    number = reader.stream.fileno()
    other, written = os.pipe()
    reader.stream.close()
    os.dup2(written, number)

    assert len(reader.lines()) == 1000
    os.set_blocking(other, False)
    with pytest.raises(BlockingIOError):
        os.read(other, 1)
    for descriptor in (other, written, number):
        os.close(descriptor)


def test_a_closed_pipe_costs_only_lines() -> None:
    """They are counted, and the writer's thread continues."""
    descriptor, written = os.pipe()
    os.close(descriptor)
    with os.fdopen(written, "w") as stream, logs.LogWriter("server", stream.fileno(), SystemClock()) as writer:
        writer.put({"event": "one", "level": "info"})
        writer.put({"event": "two", "level": "info"})
        writer.close()
        assert writer.count_dropped_lines() == 2


def test_without_a_writer_events_go_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    """Before the log is configured and after it is closed, no event is lost."""
    logs.get_logger().error("settings_refused", key="server.port")
    line = json.loads(capsys.readouterr().err)
    assert (line["event"], line["key"]) == ("settings_refused", "server.port")
    assert logs.count_dropped_lines() == 0


def test_a_process_that_logs_does_not_import_what_colours_lines() -> None:
    """It is a fifth of the time in which a server's processes start."""
    code = "import sys, common.logs; print([name for name in ('rich', 'pygments') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
