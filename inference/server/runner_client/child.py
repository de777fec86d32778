"""A child process that is awaited on its pidfd, not by one of asyncio's child watchers."""

import asyncio
import os
import signal
import subprocess
from collections.abc import Callable


class Child:
    """A child process, until it is reaped. Loop thread only.

    Args:
        process: was started by this process, with exec.
        on_exit: called once, with the exit code, or the negative signal number.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        process: subprocess.Popen[bytes],
        on_exit: Callable[[int], None],
    ) -> None:
        self._loop = loop
        self._on_exit = on_exit
        self._process = process
        self._pidfd = os.pidfd_open(self._process.pid)
        loop.add_reader(self._pidfd, self._reap)

    @property
    def pid(self) -> int:
        """Process id; the system may reuse it once this process is reaped."""
        return self._process.pid

    @property
    def has_ended(self) -> bool:
        """Whether the process has been reaped."""
        return self._pidfd < 0

    def kill(self) -> None:
        """Send SIGKILL, by descriptor: never to another process with a reused id."""
        if not self.has_ended:
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def _reap(self) -> None:
        ended = os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOHANG)
        if ended is None:
            return
        code = ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status
        self._process.returncode = code  # or the finaliser of Popen would wait for a reaped process
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._pidfd = -1
        self._on_exit(code)


def describe_exit(code: int) -> str:
    """An exit code as text: "exit code 70", "signal SIGKILL"."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"signal {signal.Signals(-code).name}"
    except ValueError:
        return f"signal {-code}"
