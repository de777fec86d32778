"""Runs the commands of a build: bounded in time, CPU, output and files, and gone when this process is."""

import contextlib
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from common.clock import SystemClock

BUILD_SECONDS = 20.0  # of each command of a build, which takes one second
MAX_BYTES = 1 << 24  # of each file that a command writes, and of its messages
_WAIT_SECONDS = 0.25  # between two progress reports
_MAX_SHOWN = 300  # characters of a message
_GUARD = Path(__file__).with_name("guard.py")
_CLOCK = SystemClock()


def run_command(
    command: Sequence[str], text: bytes, environment: Mapping[str, str], progress: Callable[[float], None]
) -> None:
    """Run a command in a session of its own, of which nothing is left after the limit, nor after this process.

    Args:
        command: absolute path and arguments.
        text: its standard input.
        environment: all of it.
        progress: takes the share of the time limit.

    Raises:
        subprocess.SubprocessError: it failed or did not end in time; `stderr` has the end of its messages.
        OSError: it cannot be started.
    """
    limits = (str(os.getpid()), str(int(BUILD_SECONDS) + 1), str(MAX_BYTES))
    with _memory_file(text) as source, _memory_file() as messages:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(_GUARD), *limits, *command],
            env=dict(environment),
            stdin=source,
            stdout=subprocess.DEVNULL,
            stderr=messages,
            start_new_session=True,
        )
        try:
            _wait_end(process.pid, progress)
        finally:
            # Also after its end, and before it is reaped: a command may leave processes behind.
            os.killpg(process.pid, signal.SIGKILL)
            code = process.wait()
        if code:
            raise subprocess.CalledProcessError(code, command[:1], stderr=_read_end(messages))


def _wait_end(pid: int, progress: Callable[[float], None]) -> None:
    """Wait for the end of a child, which is not reaped.

    Raises:
        subprocess.TimeoutExpired: it did not end in time.
    """
    ends, poll = _CLOCK.monotonic() + BUILD_SECONDS, select.poll()
    descriptor = os.pidfd_open(pid)
    try:
        poll.register(descriptor, select.POLLIN)
        while True:
            left = ends - _CLOCK.monotonic()
            progress(min(1.0, 1 - left / BUILD_SECONDS))
            if left <= 0:
                raise subprocess.TimeoutExpired("a build", BUILD_SECONDS)
            if poll.poll(1000 * min(_WAIT_SECONDS, left)):
                return
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _memory_file(content: bytes = b"") -> Iterator[int]:
    descriptor = os.memfd_create("hotslot-build")
    try:
        view = memoryview(content)
        while view:
            view = view[os.write(descriptor, view) :]
        os.lseek(descriptor, 0, os.SEEK_SET)
        yield descriptor
    finally:
        os.close(descriptor)


def _read_end(descriptor: int) -> bytes:
    return os.pread(descriptor, _MAX_SHOWN, max(0, os.fstat(descriptor).st_size - _MAX_SHOWN))


def describe(error: Exception) -> str:
    """What failed, in one line without a path."""
    if isinstance(error, subprocess.CalledProcessError):
        text = error.stderr.decode(errors="replace")
        shown = " ".join("".join(one if one.isprintable() else " " for one in text).split())
        return f"a command ended with status {error.returncode}: {shown}"
    if isinstance(error, subprocess.TimeoutExpired):
        return f"a command took more than {BUILD_SECONDS:g} s"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) if isinstance(error, ValueError) else type(error).__name__
