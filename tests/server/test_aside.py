"""Reads that a broken disk holds: neither who awaits them nor the end of the process waits with them."""

import asyncio
import subprocess
import sys
import threading

import pytest

from inference.server.aside import read_aside

PATIENCE_SECONDS = 20.0


async def test_a_read_that_is_awaited_no_longer_goes_on() -> None:
    """Its result is nobody's; what fails is raised where it is awaited."""
    held, ended = threading.Event(), threading.Event()

    def read() -> str:
        held.wait(PATIENCE_SECONDS)
        ended.set()
        return "late"

    reading = asyncio.ensure_future(read_aside(read, "held"))
    await asyncio.sleep(0)
    reading.cancel()
    await asyncio.wait({reading})
    held.set()

    assert reading.cancelled()
    assert ended.wait(PATIENCE_SECONDS)
    with pytest.raises(OSError, match="the disk"):
        await read_aside(_fail, "broken")


def test_a_process_ends_although_a_read_does_not() -> None:
    """`asyncio.run` waits for the threads of its pool, without limit."""
    program = """
import asyncio, time
from inference.server.aside import read_aside

async def main():
    reading = asyncio.ensure_future(read_aside(lambda: time.sleep(600), "held"))
    await asyncio.sleep(0.05)
    reading.cancel()

asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60, check=False)

    assert (done.returncode, done.stderr) == (0, b"")


def _fail() -> str:
    raise OSError("the disk")
