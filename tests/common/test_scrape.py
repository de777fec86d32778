"""The scrape endpoint: one page, small limits."""

import contextlib
import socket
from collections.abc import Iterator

import pytest
from prometheus_client import CollectorRegistry, Counter

from common.scrape import MAX_CONNECTIONS, MAX_REQUEST_BYTES, Scrape


@pytest.fixture
def scrape() -> Iterator[Scrape]:
    """An endpoint with one counter in it."""
    registry = CollectorRegistry()
    Counter("hotslot_answers", "Answers.", registry=registry).inc(3)
    made = Scrape(registry)
    made.start()
    yield made
    made.stop()


def ask(scrape: Scrape, request: bytes) -> tuple[str, bytes]:
    """Status line and content of the answer."""
    with socket.create_connection(("127.0.0.1", scrape.port), timeout=5) as connection:
        connection.sendall(request)
        with contextlib.suppress(OSError):  # answered and closed already
            connection.shutdown(socket.SHUT_WR)
        answer = b""
        while part := connection.recv(1 << 16):
            answer += part
    head, _, content = answer.partition(b"\r\n\r\n")
    return head.split(b"\r\n")[0].decode(), content


def test_metrics_are_told_as_text(scrape: Scrape) -> None:
    """`GET /metrics` is the registry in Prometheus's text form."""
    status, content = ask(scrape, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
    assert status == "HTTP/1.1 200 OK"
    assert b"hotslot_answers_total 3.0\n" in content


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "404 Not Found"),
        (b"POST /metrics HTTP/1.1\r\n\r\n", "405 Method Not Allowed"),
        (b"hello\r\n\r\n", "400 Bad Request"),
        (b"GET /metrics HTTP/1.1\r\n", "400 Bad Request"),
        (b"GET /metrics HTTP/1.1\r\nX: ".ljust(MAX_REQUEST_BYTES + 1, b"x"), "431 Request Header Fields Too Large"),
    ],
)
def test_anything_else_is_refused(scrape: Scrape, request_bytes: bytes, status: str) -> None:
    """One page, one method, a bounded head."""
    assert ask(scrape, request_bytes)[0] == f"HTTP/1.1 {status}"


def test_idle_connections_are_bounded(scrape: Scrape) -> None:
    """Connections over the limit are closed at once, and a freed place is used again."""
    idle = [socket.create_connection(("127.0.0.1", scrape.port), timeout=5) for _ in range(MAX_CONNECTIONS)]
    with socket.create_connection(("127.0.0.1", scrape.port), timeout=5) as refused:
        assert refused.recv(1) == b""
    for connection in idle:
        connection.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        while connection.recv(1 << 16):
            pass
        connection.close()
    while True:  # a place is free once the answering thread has ended
        status, _ = ask(scrape, b"GET /metrics HTTP/1.1\r\n\r\n")
        if status:
            break
    assert status == "HTTP/1.1 200 OK"


def test_a_stopped_endpoint_listens_no_more(scrape: Scrape) -> None:
    """After `stop` the port is free."""
    port = scrape.port
    scrape.stop()
    scrape.stop()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=5)
