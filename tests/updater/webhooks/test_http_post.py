"""One event over real HTTP: what is sent, and what a receiver can do about it."""

import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import pytest

from common.clock import SystemClock
from tests.updater.core.world import ManualClock
from tests.updater.webhooks.receiver import LocalReceiver, receiving
from updater.webhooks.delivery import DeliveryVerdict, PostFailed, Receiver, judge_response
from updater.webhooks.http_post import http_post

SECONDS = 10.0
SHORT = 0.3


@pytest.fixture
def receiver() -> Iterator[LocalReceiver]:
    """One that takes everything."""
    with receiving() as made:
        yield made


def send(url: str, seconds: float = SECONDS, token_file: Path | None = None) -> DeliveryVerdict:
    """Send an event."""
    return judge_response(
        http_post(Receiver("ops", url, seconds, token_file), "update_committed", "id-1", b'{"a":1}', SystemClock())
    )


def failure(url: str, seconds: float = SECONDS, token_file: Path | None = None) -> str:
    """Why no answer came."""
    with pytest.raises(PostFailed) as caught:
        send(url, seconds, token_file)
    return caught.value.reason


def test_an_event_is_posted_with_its_id(receiver: LocalReceiver) -> None:
    """To the configured path and query, with the headers that identify duplicates."""
    assert DeliveryVerdict.DELIVERED is send(receiver.url("/a/b?c=d"))
    (request,) = receiver.requests
    assert (request.line, request.body) == ("POST /a/b?c=d HTTP/1.1", b'{"a":1}')
    assert (
        request.headers["Content-Type"],
        request.headers["X-Hotslot-Event"],
    ) == ("application/json", "update_committed")
    assert request.headers["Idempotency-Key"] == request.headers["X-Hotslot-Event-Id"] == "id-1"
    assert "Authorization" not in request.headers


def test_a_token_is_read_for_each_delivery(receiver: LocalReceiver, tmp_path: Path) -> None:
    """So that it can be replaced without a restart."""
    for token in ("first", "second"):
        (tmp_path / "token").write_text(f"{token}\n")
        send(receiver.url(), token_file=tmp_path / "token")
    assert [row.headers["Authorization"] for row in receiver.requests] == ["Bearer first", "Bearer second"]


@pytest.mark.parametrize("content", [None, b"", b"two\nlines", b"a b", b"\xff", b"x" * 5000])
def test_nothing_is_sent_without_the_configured_token(
    receiver: LocalReceiver, tmp_path: Path, content: bytes | None
) -> None:
    """While the token file is missing or malformed the event waits."""
    if content is not None:
        (tmp_path / "token").write_bytes(content)
    assert failure(receiver.url(), token_file=tmp_path / "token") == "TOKEN_UNREADABLE"
    assert receiver.requests == []


def test_a_redirect_is_not_followed(receiver: LocalReceiver) -> None:
    """Neither event nor token is sent to another host."""
    with receiving() as other:
        receiver.answers[:] = [f"HTTP/1.1 307 T\r\nLocation: {other.url()}\r\n\r\n".encode()]
        assert DeliveryVerdict.REFUSED is send(receiver.url())
        assert other.requests == []


@pytest.mark.parametrize(("status", "verdict"), [(200, "delivered"), (500, "later"), (429, "later"), (404, "refused")])
def test_only_the_status_decides(receiver: LocalReceiver, status: int, verdict: str) -> None:
    """The body of the response is ignored."""
    receiver.answers[:] = [f"HTTP/1.1 {status} X\r\nContent-Length: 1000000000000\r\n\r\n".encode()]
    assert DeliveryVerdict(verdict) is send(receiver.url())


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("7", 7.0),
        ("Fri, 02 Jan 2026 03:05:05 GMT", 60.0),
        ("Fri, 31 Dec 1999 23:59:59 GMT", 0.0),
        ("999999", 3600.0),
        ("-1", 0.0),
    ],
)
def test_retry_after_sets_the_pause(receiver: LocalReceiver, value: str, seconds: float) -> None:
    """In seconds or as a date, up to an hour; invalid values are ignored."""
    receiver.answers[:] = [f"HTTP/1.1 503 X\r\nRetry-After: {value}\r\n\r\n".encode()]
    clock = ManualClock()
    clock.wall = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    response = http_post(Receiver("ops", receiver.url(), SECONDS), "e", "i", b"{}", clock)
    assert response.retry_after_seconds == seconds


def test_proxies_of_the_environment_are_not_used(receiver: LocalReceiver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Events go only to the configured host."""
    with receiving() as proxy:
        monkeypatch.setenv("http_proxy", proxy.url())
        monkeypatch.setenv("all_proxy", proxy.url())
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        assert send(receiver.url()) is DeliveryVerdict.DELIVERED
        assert len(receiver.requests) == 1
        assert proxy.requests == []


def hold(connection: socket.socket) -> None:
    """Say nothing until the other side is gone."""
    with suppress(OSError):
        connection.recv(1)


def drip(connection: socket.socket) -> None:
    """One byte of an endless header after the other, each well within any limit of a single read."""
    with suppress(OSError):
        connection.sendall(b"HTTP/1.1 200 OK\r\nX: ")
        connection.settimeout(0.02)
        while True:
            connection.sendall(b"x")
            with suppress(TimeoutError):
                if not connection.recv(1):
                    return


@pytest.mark.parametrize("how", [hold, drip])
def test_a_slow_receiver_is_cut_off(receiver: LocalReceiver, how: Callable[[socket.socket], None]) -> None:
    """Whether it sends nothing, or one byte at a time."""
    receiver.answers[:] = [how]
    assert failure(receiver.url(), SHORT) == "TIMEOUT"


def test_a_refused_connection_is_unreachable() -> None:
    """The port is closed."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    assert failure(f"http://127.0.0.1:{port}/") == "UNREACHABLE"


def test_an_unresolvable_host_is_unreachable() -> None:
    """The name has no address."""
    assert failure("http://nobody.invalid/") == "UNREACHABLE"


@pytest.mark.parametrize("answer", [b"hello\r\n\r\n", b"", b"HTTP/1.1 2x0 OK\r\n\r\n"])
def test_an_invalid_http_response_fails(receiver: LocalReceiver, answer: bytes) -> None:
    """Also if the connection is closed without a response."""
    receiver.answers[:] = [answer]
    assert failure(receiver.url()) in ("ANSWER_BROKEN", "UNREACHABLE")


def test_a_peer_without_tls_fails(receiver: LocalReceiver) -> None:
    """Nothing is sent to it unencrypted."""
    receiver.greeting = b"HTTP/1.1 400 X\r\n\r\n"
    assert failure(receiver.url().replace("http:", "https:")) == "TLS_FAILED"
