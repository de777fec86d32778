"""A child process that is awaited on its pidfd, not by one of asyncio's child watchers."""

import asyncio
import os
import signal
import subprocess
from collections.abc import Callable

from inference.server.runner_client.fork_server import ForkedProcess


class Child:
    """A child process, until it is reaped. Loop thread only.

    Args:
        process: was started by this process, with exec, or is being forked by the fork server.
        on_exit: called once, with the exit code, or the negative signal number.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        process: subprocess.Popen[bytes] | ForkedProcess,
        on_exit: Callable[[int], None],
    ) -> None:
        self._loop = loop
        self._on_exit = on_exit
        self._process = process
        self._pidfd = -1
        self.has_ended = False  # it has been reaped
        if isinstance(process, ForkedProcess):
            process.call_when_answered(self._attach)
        else:
            self._attach()

    @property
    def pid(self) -> int:
        """Process id, 0 if it is not known yet; the system may reuse it once this process is reaped."""
        return self._process.pid

    @property
    def failure(self) -> str:
        """Why there was no process; empty if there was one."""
        return self._process.failure if isinstance(self._process, ForkedProcess) else ""

    def kill(self) -> None:
        """Send SIGKILL, by descriptor: never to another process with a reused id."""
        if self._pidfd >= 0:
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        elif not self.has_ended:
            self._process.kill()  # as soon as its id is known

    def _attach(self) -> None:
        """Await the process's end from now on."""
        if not self._process.pid:
            self._end(self._process.wait())
            return
        try:
            self._pidfd = os.pidfd_open(self._process.pid)
        except OSError:
            if not isinstance(self._process, ForkedProcess):
                raise
            self._process.kill()  # no descriptor is left to await it with; it is reaped with the orphans
            self._process.returncode = -signal.SIGKILL
            self._end(-signal.SIGKILL)
            return
        self._loop.add_reader(self._pidfd, self._reap)

    def _reap(self) -> None:
        ended = os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOHANG)
        if ended is None:
            return
        code = ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status
        self._process.returncode = code  # or the finaliser of Popen would wait for a reaped process
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._pidfd = -1
        self._end(code)

    def _end(self, code: int) -> None:
        self.has_ended = True
        self._on_exit(code)


def describe_exit(code: int, oom_kills: int = 0) -> str:
    """An exit code as text: "exit code 70", "signal SIGKILL"; of the latter with what the kernel ended meanwhile.

    Args:
        code: of the process; a negative signal number.
        oom_kills: processes of the control group that the kernel has ended since the start, because memory ran out.
    """
    if code == -signal.SIGKILL and oom_kills > 0:
        return f"signal SIGKILL, out of memory: the kernel has ended {oom_kills} of the control group since its start"
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"signal {signal.Signals(-code).name}"
    except ValueError:
        return f"signal {-code}"
