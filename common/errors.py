"""Error families: the class says whose fault it is and what to do, the reason says it to machines."""

from collections.abc import Mapping
from enum import IntEnum
from typing import ClassVar


class HotslotError(Exception):
    """Something that is told to whoever asked; never holds a path or a traceback.

    Attributes:
        reason: UPPER_SNAKE, at most 63 characters, stable.
        field: path of the caller's field that is wrong, for example "image.content"; empty if none is.
        retry_after_seconds: when the same call may succeed; None if time alone does not help.
        resource: type and name of what was not found, for example ("model", "ofa-large").
        metadata: facts about it for machines, for example {"needed_bytes": "1024"}.
    """

    default_reason: ClassVar[str] = "INTERNAL"

    def __init__(
        self,
        message: str,
        *,
        reason: str = "",
        field: str = "",
        retry_after_seconds: float | None = None,
        resource: tuple[str, str] | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.reason = reason or self.default_reason
        self.field = field
        self.retry_after_seconds = retry_after_seconds
        self.resource = resource
        self.metadata = dict(metadata or {})


class InputRefused(HotslotError):
    """What the caller sent is wrong; it will be wrong again."""

    default_reason = "MESSAGE_MALFORMED"


class NotFound(HotslotError):
    """What the caller named is not here."""

    default_reason = "MODEL_UNKNOWN"


class Overloaded(HotslotError):
    """The entrance is full; the same request may succeed later."""

    default_reason = "QUEUE_FULL"


class NotReady(HotslotError):
    """Nothing can answer now; another server can, or this one soon."""

    default_reason = "NOT_READY"


class DeadlineMissed(HotslotError):
    """The caller's time is not enough, or is over."""

    default_reason = "DEADLINE_EXPIRED"


class Conflict(HotslotError):
    """The world is not as the caller believed."""

    default_reason = "GENERATION_CONFLICT"


class Interrupted(HotslotError):
    """What was asked for was begun and given up; it may be asked for again."""

    default_reason = "LOAD_FAILED"


class NotBuilt(HotslotError):
    """This build cannot do it."""

    default_reason = "ENGINE_NOT_AVAILABLE"


class Failed(HotslotError):
    """Our fault: the engine, the runner or a bug."""

    default_reason = "INTERNAL"


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


def with_signal(code: int) -> int:
    """The exit code of a child as `subprocess` gives it, in a shell's form: 128 + the signal that ended it."""
    return code if code >= 0 else SIGNAL_BASE - code
