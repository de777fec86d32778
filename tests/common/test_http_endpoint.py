"""Small HTTP servers: no client keeps another one waiting, however slowly it sends or reads."""

import contextlib
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.address import LOOPBACK
from common.clock import SystemClock
from common.http_endpoint import HttpEndpoint, InMemoryHandler
from common.request_listener import HeldConnection, ListenLimits, choose_surplus
from common.tls import ServerContexts, watch_certificate
from dev.harness.certificates import Authority, ListenerFiles
from tests.common.clock import KeptLog, SimClock

LIMITS = ListenLimits(max_connections=8, max_answers=4, max_head_bytes=100)
LARGE = 8 << 20  # more than a socket takes of a client that does not read


class Handler(InMemoryHandler):
    """Answers `large` with LARGE bytes, and anything else with itself."""

    def handle(self) -> None:
        content: bytes = self.request
        self.wfile.write(bytes(LARGE) if content.startswith(b"large") else content)


@contextlib.contextmanager
def serving(**options: object) -> Iterator[HttpEndpoint]:
    """A listening endpoint with one thread."""
    endpoint = HttpEndpoint("test", Handler, 1, LIMITS, **options)  # type: ignore[arg-type]
    endpoint.start(LOOPBACK)
    try:
        yield endpoint
    finally:
        endpoint.stop()


def ask(endpoint: HttpEndpoint, content: bytes) -> bytes:
    """What comes back until the end."""
    with socket.create_connection(("127.0.0.1", endpoint.port), timeout=20) as client, contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.suppress(ConnectionError))
        client.sendall(content)
        answer = b""
        while part := client.recv(1 << 20):
            answer += part
        return answer
    return b""


def test_a_large_answer_arrives_whole() -> None:
    """In as many pieces as the client takes."""
    with serving() as endpoint:
        assert len(ask(endpoint, b"large\r\n\r\n")) == LARGE


def test_clients_that_do_not_read_their_answer_keep_nobody_waiting() -> None:
    """An answer that nobody reads holds no thread; only so many are kept."""
    # The time of their answers is never over: the next client must not wait for it.
    with serving(clock=SimClock()) as endpoint, contextlib.ExitStack() as stack:
        slow = []
        for _ in range(2 * LIMITS.max_answers):
            slow.append(stack.enter_context(socket.socket()))
            slow[-1].setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            slow[-1].connect(("127.0.0.1", endpoint.port))
            slow[-1].sendall(b"large\r\n\r\n")
        assert ask(endpoint, b"x\r\n\r\n") == b"x\r\n\r\n"


def test_an_answer_that_is_not_read_ends_in_time() -> None:
    """By the clock."""
    clock = SimClock()
    with serving(clock=clock) as endpoint, socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.connect(("127.0.0.1", endpoint.port))
        slow.sendall(b"large\r\n\r\n")
        slow.recv(1)
        clock.advance(LIMITS.answer_seconds)
        slow.settimeout(5)
        read = 0
        with contextlib.suppress(ConnectionError):
            while part := slow.recv(1 << 20):
                read += len(part)
                time.sleep(0)
        assert read < LARGE


def test_a_body_is_waited_for() -> None:
    """As long as the head says."""
    with (
        serving(measure_body=lambda head: int(head[:1])) as endpoint,
        socket.create_connection(("127.0.0.1", endpoint.port), timeout=5) as client,
    ):
        client.sendall(b"3\r\n\r\nab")
        client.sendall(b"c")
        assert client.recv(100) == b"3\r\n\r\nabc"


@pytest.mark.parametrize("head", [b"no number\r\n\r\n", b"x" * 101])
def test_a_head_that_cannot_be_understood_costs_its_own_connection(head: bytes) -> None:
    """The listener goes on."""
    with serving(measure_body=lambda head: int(head[:1])) as endpoint:
        assert ask(endpoint, head) in (b"", head)
        assert ask(endpoint, b"0\r\n\r\n") == b"0\r\n\r\n"


def test_a_handshake_that_does_not_end_keeps_nobody_waiting(tmp_path: Path) -> None:
    """Whether it sends nothing or half a message."""
    authority, listener = Authority(tmp_path / "ca"), tmp_path / "tls"
    files = ListenerFiles(listener, authority.sign("server"), None).files
    contexts = ServerContexts(watch_certificate(files, KeptLog(), SystemClock()))
    with serving(tls=contexts.current) as endpoint, contextlib.ExitStack() as stack:
        for begun in (b"", b"\x16\x03\x01\x02\x00\x01") * LIMITS.max_connections:
            idle = stack.enter_context(socket.create_connection(("127.0.0.1", endpoint.port), timeout=5))
            idle.sendall(begun)
        trusting = ssl.create_default_context(cafile=authority.certificate)
        plain = stack.enter_context(socket.create_connection(("127.0.0.1", endpoint.port), timeout=5))
        client = stack.enter_context(trusting.wrap_socket(plain, server_hostname="127.0.0.1"))
        client.sendall(b"x\r\n\r\n")
        assert client.recv(100) == b"x\r\n\r\n"


def test_the_peer_that_has_most_connections_loses_its_oldest() -> None:
    """One that has few keeps them, however old they are."""
    peers = ["a", "b", "b", "b", "a"]
    held = [HeldConnection(socket.socket(), peer, number, 0.0) for number, peer in enumerate(peers)]
    for connection in held:
        connection.socket.close()
    assert [choose_surplus(held).number, choose_surplus(held[:2]).number, choose_surplus(held[3:]).number] == [1, 0, 3]
