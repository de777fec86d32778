"""What goes wrong between us and a hub, and what it means for what comes next.

Nothing that a hub says is quoted: its words may hold our token, or whatever a stranger wants to have logged.
"""

import http.client
import math
import re
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import urllib3.exceptions
from modelscope_hub import errors

from updater.hub.connection import AddressRefused, ProxyUnsupported
from updater.ports import EffectFailed, LinkBroken
from updater.results import Failed, FaultKind

MAX_RETRY_AFTER_SECONDS = 86400.0
_CLIENT_ERROR = 400
_DIGITS = re.compile(r"\s*\d{1,9}(\.\d{1,9})?\s*")


@dataclass(frozen=True, slots=True)
class Refusal:
    """An answer that is an error, in the shape in which the hub's own client reads one."""

    status_code: int
    headers: Mapping[str, str]
    row: object  # the body, if it is JSON
    text: str = ""
    url: str = ""
    request: None = None

    def json(self) -> object:
        """The body.

        Raises:
            ValueError: it is no JSON.
        """
        if self.row is None:
            raise ValueError("no JSON")
        return self.row


def transient(reason: str, message: str, retry_after_seconds: float = 0.0) -> EffectFailed:
    """The same may succeed later."""
    return EffectFailed(Failed(FaultKind.TRANSIENT, reason, message, retry_after_seconds))


def denied(reason: str, message: str) -> EffectFailed:
    """Somebody must change a setting, here or there."""
    return EffectFailed(Failed(FaultKind.DENIED, reason, message))


def not_understood(message: str) -> EffectFailed:
    """What answers is not a hub that we know: a login page, a proxy, a newer protocol."""
    return transient("HUB_NOT_UNDERSTOOD", message)


def unreached(error: Exception, host: str, *, is_over: bool) -> EffectFailed:  # noqa: PLR0911  one line a cause
    """Why there is no connection."""
    match error:
        case AddressRefused():
            sentence = f"{host} has a private address; if that is meant, name it in updater.hub_private_hosts"
            return denied("ADDRESS_REFUSED", sentence)
        case ProxyUnsupported():
            return denied("PROXY_UNSUPPORTED", "the environment names a proxy that is not at http://…")
        case socket.gaierror() | UnicodeError():
            return transient("HUB_UNRESOLVED", f"the name {host} cannot be resolved")
        case _ if is_over:
            return transient("HUB_SLOW", f"{host} did not answer in the time there was")
        case ssl.SSLError() | urllib3.exceptions.SSLError():
            why = getattr(error, "verify_message", "") or getattr(error, "reason", "") or "the handshake failed"
            return transient("TLS_FAILED", f"no trusted connection to {host}: {str(why)[:200]}")
        case TimeoutError():
            return transient("HUB_UNREACHABLE", f"{host} did not take the connection in time")
        case _:
            why = getattr(error, "strerror", None) or "the connection failed"
            return transient("HUB_UNREACHABLE", f"{host} cannot be reached: {str(why)[:200].lower()}")


def broken_off(error: Exception, host: str, *, is_over: bool) -> EffectFailed:
    """Why an answer, or the rest of it, does not come."""
    if is_over:
        return transient("HUB_SLOW", f"{host} did not answer in the time there was")
    match error:
        case TimeoutError() | urllib3.exceptions.ReadTimeoutError():
            return LinkBroken(Failed(FaultKind.TRANSIENT, "HUB_STALLED", f"{host} fell silent"))
        case OSError() | urllib3.exceptions.ProtocolError() | urllib3.exceptions.SSLError():
            return LinkBroken(Failed(FaultKind.TRANSIENT, "HUB_BROKE_OFF", f"{host} broke the connection off"))
        case http.client.IncompleteRead():
            return LinkBroken(Failed(FaultKind.TRANSIENT, "HUB_BROKE_OFF", f"{host} broke the answer off"))
        case _:
            return not_understood(f"{host} does not speak HTTP as we know it")


def refusal_of(refusal: Refusal, now: datetime, *, is_home: bool) -> EffectFailed:  # noqa: PLR0911  one line a class
    """What an error of a hub means, by the classes of its own client: it knows the codes behind a status.

    Args:
        refusal: the answer; one with status 200 that says "not successful" counts as a bad request.
        now: for a Retry-After that is a date.
        is_home: the endpoint itself has answered, not a storage that it sent us to.
    """
    status, wait = refusal.status_code, retry_after(refusal.headers.get("retry-after", ""), now)
    told = refusal if status >= _CLIENT_ERROR else Refusal(_CLIENT_ERROR, refusal.headers, refusal.row)
    try:
        errors.raise_for_status(_as_response(told))
    except (errors.AuthenticationError, errors.PermissionDeniedError):
        if is_home:
            return denied(
                "HUB_DENIED", f"the hub denies it ({status}); a private model needs a token: updater.hub_token_…"
            )
        return transient("STORAGE_DENIED", f"the hub's storage denies it ({status})", wait)
    except errors.NotExistError:
        return EffectFailed(Failed(FaultKind.NOT_READY, "NOT_THERE", f"the hub does not have it ({status})"))
    except (errors.RateLimitError, errors.QuotaExceededError):
        return transient("RATE_LIMITED", f"the hub asks for patience ({status})", wait)
    except errors.ServerError:
        return transient("HUB_FAILED", f"the hub failed ({status})", wait)
    except errors.HubError:
        return transient("HUB_REFUSED", f"the hub refuses the question ({status})", wait)
    return not_understood(f"the hub answers with status {status}")


def retry_after(value: str, now: datetime) -> float:
    """Seconds that the other side asks to wait, as seconds or as a date; 0 if it does not."""
    if _DIGITS.fullmatch(value):
        return min(float(value), MAX_RETRY_AFTER_SECONDS)
    try:
        when = parsedate_to_datetime(value)
    except ValueError:
        return 0.0
    seconds = ((when if when.tzinfo else when.replace(tzinfo=UTC)) - now).total_seconds()
    return min(max(0.0, seconds), MAX_RETRY_AFTER_SECONDS) if math.isfinite(seconds) else 0.0


def _as_response(refusal: Refusal) -> Any:  # noqa: ANN401  a response of a library that is not used otherwise
    return refusal
