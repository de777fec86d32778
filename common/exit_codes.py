"""Exit codes of all processes."""

from enum import IntEnum

SIGNAL_BASE = 128


class ExitCode(IntEnum):
    """Exit codes; from 64 on with their meaning in sysexits.h."""

    DONE = 0
    FAILED = 1  # a command: the server, the model or the system refused or failed
    WRONG_USE = 2  # wrong command line or wrong settings
    CONVERSION_REFUSED = 3  # a conversion: a JSON line on standard error has the reason
    PROTOCOL_ERROR = 65  # a runner: it received a malformed frame or message
    PARENT_GONE = 69  # a runner or a conversion: the process that started it has ended
    INTERNAL_ERROR = (
        70  # a runner: a bug; the server: it accepted no calls any more; the stack: the server was given up
    )
    DEVICE_LOST = 74  # a runner: the device's context is broken, and no later call on it succeeds
    BUSY = 75  # another process holds the lock or the port; a later attempt may succeed
    ENGINE_MISSING = (
        78  # a runner: the engine cannot be imported; any program: another package hides hotslot's, or it is not Linux
    )
    INTERRUPTED = 130  # a command: Ctrl-C


def to_shell_code(code: int) -> int:
    """The exit code that a shell reports for a child: `subprocess` gives -N, a shell 128 + N, if signal N ended it."""
    return code if code >= 0 else SIGNAL_BASE - code
