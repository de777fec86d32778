"""What the stack writes is copied to its reader; one that stalls holds nobody up."""

import json
import os
import threading
from datetime import UTC, datetime

import pytest

from common.clock import SystemClock
from hotslot_watchdog.copier import WRITE_BYTES, LineBuffer, copy_output

NOW = datetime(2026, 1, 2, tzinfo=UTC)
pytestmark = pytest.mark.fault("L17")


def taken(buffer: LineBuffer) -> bytes:
    """Everything that waits."""
    return b"".join(iter(lambda: buffer.take() if len(buffer) else b"", b""))


def test_a_full_buffer_drops_whole_lines_and_reports_them() -> None:
    """The report stands where the lines are missing."""
    buffer = LineBuffer(max_bytes=20)
    buffer.add(b"first line\nsecond", NOW)
    buffer.add(b" line that is long\nthird\nfour", NOW)
    buffer.add(b"th\n", NOW)
    buffer.finish(NOW)
    first, report, third, last = taken(buffer).splitlines()

    row = {"at": json.loads(report)["at"], "level": "error", "process": "stack", "event": "output_dropped", "lines": 1}
    assert (first, third) == (b"first line", b"third")
    assert [json.loads(report), json.loads(last)] == [row, row]


def test_a_reader_that_stalls_holds_nobody_up() -> None:
    """The writer writes far more than all pipes hold; the reader later gets the first lines, and how many are lost."""
    ours, theirs = os.pipe(), os.pipe()
    copier = threading.Thread(target=copy_output, args=(ours[0], theirs[1], 10.0, SystemClock()))
    copier.start()
    line = b"x" * 9_999 + b"\n"
    for _ in range(1000):  # 10 MB
        os.write(ours[1], line)
    os.close(ours[1])
    received = b""
    with os.fdopen(theirs[0], "rb") as reader:
        while b"output_dropped" not in received:
            received += os.read(reader.fileno(), 1 << 20)
        copier.join(10)
    os.close(theirs[1])
    os.close(ours[0])

    *lines, report = received.splitlines()
    assert set(lines) == {line.strip()}
    assert len(lines) + int(json.loads(report)["lines"]) == 1000


def test_a_closed_reader_ends_nothing() -> None:
    """The output is read and dropped, so that the writers never wait."""
    ours, theirs = os.pipe(), os.pipe()
    os.close(theirs[0])
    copier = threading.Thread(target=copy_output, args=(ours[0], theirs[1], 10.0, SystemClock()))
    copier.start()
    for _ in range(100):
        os.write(ours[1], bytes(10_000))
    os.close(ours[1])
    copier.join(10)
    for descriptor in (theirs[1], ours[0]):
        os.close(descriptor)

    assert not copier.is_alive()


def test_what_is_written_at_once_fits_a_pipe() -> None:
    """A pipe that takes something takes this much without blocking."""
    buffer = LineBuffer()
    buffer.add(b"x" * 10_000 + b"\n", NOW)

    assert len(buffer.take()) == WRITE_BYTES
