"""Posts one event to one receiver over HTTP: bounded in time, nothing of the response read but its head.

Rules of trust:
 1. It goes to the configured host only: redirects are not followed, proxies are not asked. Its address may be private:
    the operator has named it.
 2. TLS certificates are checked against the system's.
 3. The token is read for each delivery, goes into a header of that one request, and never into a sentence or a log.
 4. All of it, from the name's look-up on, ends within the limit; a peer that answers byte by byte is cut off.
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
    """Send one event, on the calling thread; returns what the receiver said.

    Args:
        receiver: where to.
        event: its name, for a header.
        event_id: the same however often it is sent, for a header.
        body: JSON.
        clock: measures, and tells how far away a date in Retry-After is.

    Raises:
        PostFailed: there is no response in time, or none in HTTP.
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
            status, wish = response.status, response.headers.get("retry-after", "")
    except HttpFailed as error:
        raise PostFailed(_REASONS.get(error.failure, "UNREACHABLE")) from error
    return ReceiverResponse(status, parse_retry_after(wish, clock.now(), MAX_RETRY_AFTER_SECONDS))


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
