"""A process started by exec and awaited on its pidfd: no fork in a process full of threads, no child watcher."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from common.settings import inherit_environment

# How long a thread of a device call turns before it sleeps until the others come: about 0.1 ms in all, where GNU's
# OpenMP, which torch brings, takes milliseconds. A large model's call has its threads wait for each other a thousand
# times, and one that turns keeps the CPU that the late one needs: on 2 CPUs beside one busy process an answer of 0.5 s
# took more than 3.3 s, and takes 1.4 s so. Alone it costs 7 %.
_SPINNING = {"GOMP_SPINCOUNT": "10000"}


class Child:
    """A process of ours, from its start until it is reaped. Loop thread only.

    The parent-death signal that a child may ask for is bound to the *thread* that started it, which
    is why that must be the loop's.

    Args:
        argv: what to execute.
        pass_fds: descriptors it inherits; all others are closed in it.
        on_exit: called once, with the exit code, or with the negative number of the signal.

    Raises:
        OSError: it could not be started.
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
        self._process = subprocess.Popen(  # our own interpreter, arguments from settings
            argv, stdin=subprocess.DEVNULL, close_fds=True, pass_fds=pass_fds, env=runner_environment()
        )
        self._pidfd = os.pidfd_open(self._process.pid)
        loop.add_reader(self._pidfd, self._reap)

    @property
    def pid(self) -> int:
        """Process id; it may be another process's once this one is reaped."""
        return self._process.pid

    @property
    def has_ended(self) -> bool:
        """Whether it is reaped."""
        return self._pidfd < 0

    def kill(self) -> None:
        """SIGKILL, by descriptor: never another process that was given the same id."""
        if not self.has_ended:
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def _reap(self) -> None:
        ended = os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOHANG)
        if ended is None:
            return
        code = ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status
        self._process.returncode = code  # or its finaliser would wait for what is reaped
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._pidfd = -1
        self._on_exit(code)


def describe_exit(code: int) -> str:
    """An exit code for people: "exit code 70", "signal SIGKILL"."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"signal {signal.Signals(-code).name}"
    except ValueError:
        return f"signal {-code}"


def runner_environment() -> dict[str, str]:
    """What a runner is given: this process's environment, where it finds this very build, and how its threads wait."""
    build = os.pathsep.join(folder or str(Path.cwd()) for folder in sys.path)
    return {**_SPINNING, **inherit_environment(), "PYTHONPATH": build}
