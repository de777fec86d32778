"""Runs a command with limits, and kills its process group when the parent ends. Run by path, with the library alone.

Arguments: process id of the parent, limit of CPU seconds, limit of a file's bytes, the command. A parent-death signal
reaches only the process that asks for it, and a compiler starts others. So this one gets it, and kills all of them.
"""

import ctypes
import os
import resource
import signal
import sys
from types import FrameType

PR_SET_PDEATHSIG = 1


def main(parent: str, cpu_seconds: str, file_bytes: str, *command: str) -> int:
    """Run the command; returns its exit code, or 128 and the signal that ended it."""
    signal.signal(signal.SIGTERM, _kill_group)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
    if os.getppid() != int(parent):  # checked after the signal is set: a parent that died earlier sends none
        return 1
    _limit(resource.RLIMIT_CPU, int(cpu_seconds))
    _limit(resource.RLIMIT_FSIZE, int(file_bytes))
    _limit(resource.RLIMIT_CORE, 0)
    child = os.fork()
    if not child:
        _execute(command)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return code if code >= 0 else 128 - code


def _execute(command: tuple[str, ...]) -> None:
    """Become the command. Does not return."""
    try:
        for ignored in (signal.SIGPIPE, signal.SIGXFSZ):  # by Python
            signal.signal(ignored, signal.SIG_DFL)
        os.execv(command[0], command)  # noqa: S606  no shell: absolute path and arguments of the build
    except OSError as error:
        os.write(2, str(error.strerror).encode())
    finally:
        os._exit(127)


def _kill_group(_number: int, _frame: FrameType | None) -> None:
    os.killpg(0, signal.SIGKILL)


def _limit(kind: int, value: int) -> None:
    hard = resource.getrlimit(kind)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (value, value))


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
