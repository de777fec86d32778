"""What goes wrong between us and a hub, and what it means for what comes next.

Nothing that a hub says is quoted: its words may hold our token, or whatever a stranger wants to have logged.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from modelscope_hub import errors

from updater.core.ports import EffectFailed, LinkBroken
from updater.core.results import Failed, FaultKind
from updater.http.client import HttpFailed, HttpFailure, parse_retry_after

MAX_RETRY_AFTER_SECONDS = 86400.0
_CLIENT_ERROR = 400
_TRANSIENT, _DENIED = FaultKind.TRANSIENT, FaultKind.DENIED
_MEANINGS = {
    HttpFailure.ADDRESS_REFUSED: (
        _DENIED,
        "ADDRESS_REFUSED",
        "{host} has a private address; if that is meant, name it in updater.hub_private_hosts",
    ),
    HttpFailure.PROXY_UNSUPPORTED: (
        _DENIED,
        "PROXY_UNSUPPORTED",
        "the environment names a proxy that is not at http://…",
    ),
    HttpFailure.UNRESOLVED: (_TRANSIENT, "HUB_UNRESOLVED", "the name {host} cannot be resolved"),
    HttpFailure.OUT_OF_TIME: (_TRANSIENT, "HUB_SLOW", "{host} did not answer in the time there was"),
    HttpFailure.TLS_FAILED: (_TRANSIENT, "TLS_FAILED", "no trusted connection to {host}: {detail}"),
    HttpFailure.CONNECT_TIMEOUT: (_TRANSIENT, "HUB_UNREACHABLE", "{host} did not take the connection in time"),
    HttpFailure.UNREACHABLE: (_TRANSIENT, "HUB_UNREACHABLE", "{host} cannot be reached: {detail}"),
    HttpFailure.STALLED: (_TRANSIENT, "HUB_STALLED", "{host} fell silent"),
    HttpFailure.BROKE_OFF: (_TRANSIENT, "HUB_BROKE_OFF", "{host} broke the connection off"),
    HttpFailure.RESPONSE_TRUNCATED: (_TRANSIENT, "HUB_BROKE_OFF", "{host} broke the answer off"),
    HttpFailure.NOT_HTTP: (_TRANSIENT, "HUB_NOT_UNDERSTOOD", "{host} does not speak HTTP as we know it"),
}
_IN_THE_MIDDLE = frozenset({HttpFailure.STALLED, HttpFailure.BROKE_OFF, HttpFailure.RESPONSE_TRUNCATED})


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


def effect_of(error: HttpFailed, host: str) -> EffectFailed:
    """What it means that a response of a hub, or the rest of it, does not come."""
    kind, reason, sentence = _MEANINGS[error.failure]
    failed = Failed(kind, reason, sentence.format(host=host, detail=error.detail))
    return LinkBroken(failed) if error.failure in _IN_THE_MIDDLE else EffectFailed(failed)


def refusal_of(refusal: Refusal, now: datetime, *, is_home: bool) -> EffectFailed:  # noqa: PLR0911  one line a class
    """What an error of a hub means, by the classes of its own client: it knows the codes behind a status.

    Args:
        refusal: the answer; one with status 200 that says "not successful" counts as a bad request.
        now: for a Retry-After that is a date.
        is_home: the endpoint itself has answered, not a storage that it sent us to.
    """
    status = refusal.status_code
    wait = parse_retry_after(refusal.headers.get("retry-after", ""), now, MAX_RETRY_AFTER_SECONDS)
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


def _as_response(refusal: Refusal) -> Any:  # noqa: ANN401  a response of a library that is not used otherwise
    return refusal
