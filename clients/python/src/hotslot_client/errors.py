"""What a call can raise. The class says whose fault it is and what to do, `reason` says why, for programs.

docs/error-reasons.md of hotslot lists every reason with what to do.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

RETRYABLE_CODES = frozenset({"UNAVAILABLE", "RESOURCE_EXHAUSTED"})


class HotslotError(Exception):
    """A call, or an item of a stream, has no answer.

    Attributes:
        message: sentence for people.
        code: gRPC's name of the status, for example "INVALID_ARGUMENT".
        reason: stable name for programs, for example "IMAGE_UNREADABLE". Empty if the error is not of the server
            itself: of the connection, or of a proxy.
        field: path of the wrong field, for example "statements[1]". Empty if none is.
        retry_after_seconds: when the server expects the same call to succeed. None: it does not say.
        resource: type and name of what was not found, for example ("model", "shapes"). None: the error is another one.
        request_id: by which the server's log names the call. Empty if it never got there.
        metadata: further facts of the server.
    """

    default_code: ClassVar[str] = "UNKNOWN"

    def __init__(
        self,
        message: str,
        *,
        code: str = "",
        reason: str = "",
        field: str = "",
        retry_after_seconds: float | None = None,
        resource: tuple[str, str] | None = None,
        request_id: str = "",
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or self.default_code
        self.reason = reason
        self.field = field
        self.retry_after_seconds = retry_after_seconds
        self.resource = resource
        self.request_id = request_id
        self.metadata = dict(metadata or {})

    @property
    def is_retryable(self) -> bool:
        """Whether the same request may succeed later, or on another server."""
        return self.code in RETRYABLE_CODES

    def __str__(self) -> str:
        """Message, code and reason."""
        return f"{self.message} ({', '.join(filter(None, (self.code, self.reason, self.field)))})"

    def __reduce__(self) -> tuple[Any, ...]:
        """Errors are sent between processes, by multiprocessing, Ray and Spark."""
        facts = {name: value for name, value in self.__dict__.items() if name != "message"}
        return _restore, (type(self), self.message, facts)


class InvalidRequest(HotslotError):
    """The request is wrong: sending it again does not help. `field` names what to correct."""

    default_code = "INVALID_ARGUMENT"


class NotFound(HotslotError):
    """The server has no such model."""

    default_code = "NOT_FOUND"


class Unauthenticated(HotslotError):
    """The server wants a token, or knows this one no more."""

    default_code = "UNAUTHENTICATED"


class Overloaded(HotslotError):
    """The server, or this caller's quota, has no room now. The client has tried again as often as it may."""

    default_code = "RESOURCE_EXHAUSTED"


class Unavailable(HotslotError):
    """No server answers, or none is ready. The client has tried again as often as it may."""

    default_code = "UNAVAILABLE"


class DeadlineExceeded(HotslotError):
    """There was no answer in time."""

    default_code = "DEADLINE_EXCEEDED"


class Cancelled(HotslotError):
    """The call was cancelled."""

    default_code = "CANCELLED"


class ServerFailed(HotslotError):
    """The server could not compute this input, or has a fault. Its log has the request id."""

    default_code = "INTERNAL"


class ClientClosed(HotslotError):
    """The client was closed, before the call or while it ran."""

    default_code = "CANCELLED"


CLASSES: Mapping[str, type[HotslotError]] = {
    "INVALID_ARGUMENT": InvalidRequest,
    "NOT_FOUND": NotFound,
    "UNAUTHENTICATED": Unauthenticated,
    "PERMISSION_DENIED": Unauthenticated,
    "RESOURCE_EXHAUSTED": Overloaded,
    "UNAVAILABLE": Unavailable,
    "DEADLINE_EXCEEDED": DeadlineExceeded,
    "CANCELLED": Cancelled,
}


def _restore(kind: type[HotslotError], message: str, facts: dict[str, Any]) -> HotslotError:
    error = kind(message)
    error.__dict__.update(facts)
    return error
