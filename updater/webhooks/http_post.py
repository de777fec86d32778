"""Posts one event to one receiver over HTTP, within a time limit. Only status and headers of the response are read.

Security rules:
 1. The request goes to the configured host only: no redirects, no proxies. Private addresses are allowed, since the
    operator configured the host.
 2. TLS certificates are checked against the system's.
 3. The token is read for each delivery, sent in a header of that one request, and never logged or put into a message.
 4. The time limit covers everything from the DNS look-up on; a peer that sends byte by byte is cut off.
"""

import re
from pathlib import Path

from common.clock import Clock
from common.durable import read_bounded
from updater.http.client import (
    HttpFailed,
    HttpFailure,
    HttpLimits,
    HttpRequest,
    allow_any_address,
    open_response,
    parse_retry_after,
)
from updater.http.endpoint import parse_endpoint
from updater.webhooks.delivery import MAX_RETRY_AFTER_SECONDS, PostFailed, Receiver, ReceiverResponse

MAX_TOKEN_BYTES = 4096
_TOKEN = re.compile(r"[\x21-\x7e]+")
_REASONS = {
    HttpFailure.OUT_OF_TIME: "TIMEOUT",
    HttpFailure.CONNECT_TIMEOUT: "TIMEOUT",
    HttpFailure.STALLED: "TIMEOUT",
    HttpFailure.TLS_FAILED: "TLS_FAILED",
    HttpFailure.NOT_HTTP: "ANSWER_BROKEN",
}


def http_post(receiver: Receiver, event: str, event_id: str, body: bytes, clock: Clock) -> ReceiverResponse:
    """Send one event on the calling thread; returns the receiver's response.

    Args:
        receiver: destination.
        event: name, for a header.
        event_id: the same for every delivery of the event, for a header.
        body: JSON.
        clock: measures time, and converts HTTP dates of Retry-After.

    Raises:
        PostFailed: no valid HTTP response came in time.
    """
    headers = {
        "Content-Type": "application/json",
        "X-Hotslot-Event": event,
        "X-Hotslot-Event-Id": event_id,
        "Idempotency-Key": event_id,
        **_authorization(receiver.token_file),
    }
    request = HttpRequest("POST", parse_endpoint(receiver.url), headers, body)
    seconds = receiver.timeout_seconds
    limits = HttpLimits(total_seconds=seconds, connect_seconds=seconds, stall_seconds=seconds)
    try:
        with open_response(request, limits, clock, may_reach=allow_any_address) as response:
            status, retry_after = response.status, response.headers.get("retry-after", "")
    except HttpFailed as error:
        raise PostFailed(_REASONS.get(error.failure, "UNREACHABLE")) from error
    return ReceiverResponse(status, parse_retry_after(retry_after, clock.now(), MAX_RETRY_AFTER_SECONDS))


def _authorization(token_file: Path | None) -> dict[str, str]:
    if token_file is None:
        return {}
    try:
        token = read_bounded(token_file, MAX_TOKEN_BYTES).decode("ascii").strip()
    except (OSError, ValueError) as error:
        raise PostFailed("TOKEN_UNREADABLE") from error
    if not _TOKEN.fullmatch(token):
        raise PostFailed("TOKEN_UNREADABLE")
    return {"Authorization": f"Bearer {token}"}
