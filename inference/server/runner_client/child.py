"""A child process, started by exec and awaited on its pidfd: no fork with threads, no asyncio child watcher."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from common.settings import inherit_environment

# How long an OpenMP thread spins before it sleeps: about 0.1 ms here; the default of GNU OpenMP (in torch) is
# milliseconds. The threads of a large model's call wait for each other about a thousand times, and a spinning thread
# takes the CPU that the late one needs. On 2 CPUs beside one busy process a prediction of 0.5 s took more than 3.3 s
# with the default and takes 1.4 s with this value. On an idle machine it costs 7 %.
_OPENMP_SPIN = {"GOMP_SPINCOUNT": "10000"}


class Child:
    """A child process, from its start until it is reaped. Loop thread only.

    A parent-death signal follows the *thread* that started the child, so it must be started on the loop's thread.

    Args:
        argv: what to execute.
        pass_fds: descriptors that it inherits; all others are closed.
        on_exit: called once, with the exit code, or the negative signal number.

    Raises:
        OSError: the process cannot be started.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        argv: Sequence[str],
        pass_fds: Sequence[int],
        on_exit: Callable[[int], None],
    ) -> None:
        self._loop = loop
        self._on_exit = on_exit
        self._process = subprocess.Popen(  # this interpreter, arguments from settings
            argv, stdin=subprocess.DEVNULL, close_fds=True, pass_fds=pass_fds, env=runner_environment()
        )
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


def runner_environment() -> dict[str, str]:
    """The environment of a runner: this process's own, the path of this build, and the OpenMP setting."""
    build = os.pathsep.join(folder or str(Path.cwd()) for folder in sys.path)
    return {**_OPENMP_SPIN, **inherit_environment(), "PYTHONPATH": build}
