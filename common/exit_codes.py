"""Exit codes of all processes."""

from enum import IntEnum

SIGNAL_BASE = 128  # plus the number of the signal that ended a child


class ExitCode(IntEnum):
    """How a process ended; from 64 on they are those of sysexits.h."""

    DONE = 0
    FAILED = 1  # a command: the server, the model or the machine did not do it
    WRONG_USE = 2  # the command line or the settings
    CONVERSION_REFUSED = 3  # the conversion: one JSON line on standard error says why
    PROTOCOL_ERROR = 65  # a runner: it received what is no frame or no message
    PARENT_GONE = 69  # a runner or a conversion: the process that started it has ended
    INTERNAL_ERROR = 70  # a runner: a bug of ours; the stack: the server died again and again
    DEVICE_LOST = 74  # a runner: the device's context is broken, nothing on it will succeed again
    BUSY = 75  # another process has the lock or the port; the same may succeed later
    ENGINE_MISSING = 78  # a runner: the engine cannot be imported
    INTERRUPTED = 130  # a command: Ctrl-C


def to_shell_code(code: int) -> int:
    """The exit code of a child as `subprocess` gives it, in a shell's form: 128 + the signal that ended it."""
    return code if code >= 0 else SIGNAL_BASE - code
