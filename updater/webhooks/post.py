"""One event over HTTP to one receiver: bounded in time, nothing of the answer read but its status.

Rules of trust:
 1. It goes to the configured host only: redirects are not followed, proxies are not asked.
 2. TLS certificates are checked against the system's.
 3. The token is read for each delivery, goes into a header of that one request, and never into a sentence or a log.
 4. All of it, from the name's look-up on, ends within the limit; a peer that answers byte by byte is cut off.
"""

import contextlib
import http.client
import re
import socket
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from common.durable import read_bounded
from updater.webhooks.verdict import Answer

MAX_TOKEN_BYTES = 4096
_TOKEN = re.compile(r"[\x21-\x7e]+")
_SECONDS = re.compile(r"[0-9]{1,7}")
USER_AGENT = "hotslot"


class PostFailed(Exception):
    """No answer came.

    Attributes:
        reason: for machines and logs: "TIMEOUT", "UNREACHABLE", "TLS_FAILED", "ANSWER_BROKEN", "TOKEN_UNREADABLE".
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Receiver:
    """Where events go."""

    name: str
    url: str
    timeout_seconds: float
    token_file: Path | None = None


def post(receiver: Receiver, event: str, event_id: str, body: bytes) -> Answer:
    """Send one event, on the calling thread.

    Args:
        receiver: where to.
        event: its name, for a header.
        event_id: the same however often it is sent, for a header.
        body: JSON.

    Raises:
        PostFailed: nobody answered in time, or not in HTTP.
    """
    headers = {
        "Content-Type": "application/json",
        "User-Agent": USER_AGENT,
        "X-Hotslot-Event": event,
        "X-Hotslot-Event-Id": event_id,
        "Idempotency-Key": event_id,
        "Connection": "close",
        **_authorization(receiver.token_file),
    }
    parts = urlsplit(receiver.url)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    with contextlib.closing(_connection(receiver)) as connection, _cut_off(connection, receiver.timeout_seconds) as cut:
        try:
            connection.request("POST", target, body, headers)
            with connection.getresponse() as answer:
                status, wish = answer.status, answer.getheader("Retry-After")
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise PostFailed("TIMEOUT" if cut.is_set() else _reason_of(error)) from error
        if cut.is_set():  # headers that were cut off read as if they had ended
            raise PostFailed("TIMEOUT")
        return Answer(status, _retry_after(wish))


def _connection(receiver: Receiver) -> http.client.HTTPConnection:
    parts = urlsplit(receiver.url)
    host, limit = parts.hostname or "", receiver.timeout_seconds
    if parts.scheme == "http":
        return http.client.HTTPConnection(host, parts.port, timeout=limit)
    return http.client.HTTPSConnection(host, parts.port, timeout=limit, context=ssl.create_default_context())


@contextlib.contextmanager
def _cut_off(connection: http.client.HTTPConnection, seconds: float) -> Iterator[threading.Event]:
    """Shut the socket when the time is over: limits of single reads do not bound all of them together (rule 4)."""
    cut = threading.Event()

    def shut() -> None:
        cut.set()
        with contextlib.suppress(OSError):
            if connection.sock is not None:
                connection.sock.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(seconds, shut)
    timer.daemon = True
    timer.start()
    try:
        yield cut
    finally:
        timer.cancel()


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


def _reason_of(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return "TLS_FAILED"
    if isinstance(error, TimeoutError):
        return "TIMEOUT"
    return "UNREACHABLE" if isinstance(error, OSError) else "ANSWER_BROKEN"


def _retry_after(text: str | None) -> float:
    """Seconds; a date, or what cannot be read, is no wish."""
    return float(text) if text is not None and _SECONDS.fullmatch(text.strip()) else 0.0
