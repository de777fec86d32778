"""Limits of the hub server for any client: connections, bytes and time."""

import http.client
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path

import pytest

from common.tls import ServerContexts, watch_certificate
from dev.harness.certificates import Authority, ListenerFiles
from dev.harness.hub import FILES, MODEL, Hub, hub
from dev.harness.waiting import eventually
from hubserver.http import (
    ANSWER_SECONDS,
    IDLE_SECONDS,
    MAX_BODY_BYTES,
    MAX_HEAD_BYTES,
    MIN_BYTES_PER_SECOND,
    REQUEST_SECONDS,
    ClientConnection,
    OutgoingResponse,
    RequestRejected,
    read_head,
)
from hubserver.server import MAX_TURNED_AWAY, MAX_WAITING, HubServerOptions
from tests.common.clock import KeptLog, SimClock
from tests.no_threads import refuse_threads

API = f"/api/v1/models/any/{MODEL}"


class Ticking:
    """A clock that goes on by so many seconds whenever it is read."""

    def __init__(self, step: float) -> None:
        self.step, self.at = step, 0.0

    def monotonic(self) -> float:
        self.at += self.step
        return self.at

    def now(self) -> datetime:
        return datetime.fromtimestamp(self.at, UTC)


def said(serving: Hub, request: bytes) -> bytes:
    """What the hub says to some bytes before it closes."""
    host, _, port = serving.url.partition("://")[2].rpartition(":")
    with socket.create_connection((host, int(port)), timeout=10) as client:
        client.sendall(request)
        client.shutdown(socket.SHUT_WR)
        content = b""
        while part := client.recv(1 << 16):
            content += part
    return content


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET / HTTP/1.1\r\nX: " + b"x" * MAX_HEAD_BYTES, b"431"),
        (b"hello\r\n\r\n", b"400"),
        (b"GET / HTTP/2\r\n\r\n", b"400"),
        (b"GET http://elsewhere/ HTTP/1.1\r\n\r\n", b"400"),
        (b"GET /\xff HTTP/1.1\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nno colon\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", b"400"),
        (b"PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", b"411"),
        (f"PUT / HTTP/1.1\r\nContent-Length: {MAX_BODY_BYTES + 1}\r\n\r\n".encode(), b"413"),
        (b"GET /?" + b"&".join(b"a=1" for _ in range(99)) + b" HTTP/1.1\r\n\r\n", b"400"),
    ],
)
def test_what_is_no_request_is_refused_unread(serving: Hub, request_: bytes, status: bytes) -> None:
    """And the connection is closed, since what follows cannot be understood."""
    answered = said(serving, request_)
    assert answered.startswith(b"HTTP/1.1 " + status)
    assert b"Connection: close\r\n" in answered


def test_several_requests_go_over_one_connection(serving: Hub) -> None:
    """Also when they come at once; each gets its answer, in order."""
    one = f"GET {API}/repo?Revision=v1.0.0&FilePath=configuration.json HTTP/1.1\r\n\r\n".encode()
    last = one.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    answered = said(serving, one + one + last)
    assert (answered.count(b"HTTP/1.1 200"), answered.count(FILES["configuration.json"])) == (3, 3)


LARGE = {"weights.bin": bytes(8 << 20)}  # more than a socket takes of a client that does not read
WEIGHTS = f"GET {API}/repo?Revision=v1.0.0&FilePath=weights.bin HTTP/1.1\r\n\r\n".encode()


@contextmanager
def downloading(made: Hub, source: str = "127.0.0.1") -> Iterator[socket.socket]:
    """A client that has asked for a large file, and does not read it."""
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.settimeout(10)
        client.bind((source, 0))
        client.connect(("127.0.0.1", int(made.url.rpartition(":")[2])))
        client.sendall(WEIGHTS)
        assert client.recv(12) == b"HTTP/1.1 200"
        yield client


def test_one_request_too_many_is_told_to_come_back(tmp_path: Path) -> None:
    """At once, without a thread; when another one is answered, the next is."""
    with hub(tmp_path, HubServerOptions(max_connections=1)) as made:
        made.publish("v1.0.0", LARGE)
        with downloading(made):
            threads = set(threading.enumerate())
            refused = made.get("/")
            assert (refused.status, refused.headers["retry-after"]) == (503, "1")
            # However many there are.
            assert {made.get("/").status for _ in range(2 * MAX_TURNED_AWAY)} == {503}
            assert set(threading.enumerate()) <= threads
        eventually(lambda: made.get(f"{API}/revisions").status == 200, 10.0, "the next is served")


def test_connections_without_a_request_take_no_thread(tmp_path: Path) -> None:
    """Whether nothing was asked on them, half a request, or one before; an updater is served beside them."""
    with hub(tmp_path, HubServerOptions(max_connections=4)) as made, ExitStack() as stack:
        made.publish("v1.0.0")
        place = ("127.0.0.1", int(made.url.rpartition(":")[2]))
        for sent in (b"", b"GET / HT", b"GET / HTTP/1.1\r\n\r\n") * MAX_WAITING:
            idle = stack.enter_context(socket.create_connection(place, timeout=10))
            idle.sendall(sent)
            if sent.endswith(b"\r\n\r\n"):
                assert idle.recv(12) == b"HTTP/1.1 200"
        assert {made.get(f"{API}/revisions").status for _ in range(10)} == {200}


def test_a_peer_that_takes_all_places_leaves_one_to_another(tmp_path: Path) -> None:
    """Its newest download is cut off, which a client resumes."""
    with hub(tmp_path, HubServerOptions(max_connections=3)) as made, ExitStack() as stack:
        made.publish("v1.0.0", LARGE)
        for _ in range(3):
            stack.enter_context(downloading(made))
        stack.enter_context(downloading(made, "127.0.0.2"))
        assert made.get("/").status == 503


def test_connections_without_a_thread_are_closed_and_the_next_one_is_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The accepting thread goes on, and no place of a connection is lost."""
    with hub(tmp_path, HubServerOptions(max_connections=1)) as made:
        made.publish("v1.0.0")
        refuse_threads(monkeypatch, 3, "hub-answer")
        host, _, port = made.url.partition("://")[2].rpartition(":")
        for _ in range(3):
            with socket.create_connection((host, int(port)), timeout=10) as closed:
                closed.sendall(WEIGHTS)
                assert closed.recv(100) == b""
        assert made.get(f"{API}/revisions").status == 200


def test_a_client_that_has_no_more_to_ask_is_let_go() -> None:
    """Its connection is then available to another client."""
    here, there = socket.socketpair()
    with here, there:
        assert ClientConnection(here, Ticking(IDLE_SECONDS)).receive_head() is None


def test_a_head_that_never_ends_is_not_waited_for() -> None:
    """A byte now and then does not extend the limit: it counts from the first."""
    here, there = socket.socketpair()
    clock = Ticking(REQUEST_SECONDS / 4)
    with there, _Trickle(here, there) as trickle:
        there.sendall(b"GET / HTTP/1.1\r\nX-Slow: ")
        assert ClientConnection(trickle, clock).receive_head() is None
    assert clock.at < 3 * REQUEST_SECONDS


class _Trickle(socket.socket):
    """A socket to which one byte more comes whenever it is read."""

    def __init__(self, here: socket.socket, there: socket.socket) -> None:
        super().__init__(fileno=here.detach())
        self._there = there

    def recv(self, size: int, flags: int = 0) -> bytes:
        got = super().recv(size, flags)
        self._there.sendall(b"x")
        return got


def test_a_client_that_takes_too_little_is_let_go() -> None:
    """A client that reads steadily but below the minimum average speed is disconnected."""
    size = MIN_BYTES_PER_SECOND * 100
    here, there = socket.socketpair()
    with here, there:
        taking = threading.Thread(target=_take_all, args=(there,))
        taking.start()
        connection = ClientConnection(here, Ticking(ANSWER_SECONDS + 50))
        parts = tuple(bytes(size // 4) for _ in range(4))
        with pytest.raises(TimeoutError, match="too long"):
            connection.send(OutgoingResponse(HTTPStatus.OK, {}, parts), keeps_alive=False, with_body=True)
        here.close()
        taking.join(10)
    assert 0 < connection.sent_bytes < size


def _take_all(there: socket.socket) -> None:
    while there.recv(1 << 20):
        pass


def test_a_header_cannot_begin_another() -> None:
    """No answer and no log line is split by what a client has sent."""
    head = b"GET / HTTP/1.1\r\nX-Request-ID: a\nb"
    with pytest.raises(RequestRejected):
        read_head(head)


def fetch(port: int, trusting: ssl.SSLContext) -> bytes:
    """One file, over a new connection."""
    client = http.client.HTTPSConnection("127.0.0.1", port, timeout=10, context=trusting)
    try:
        client.request("GET", f"{API}/repo?Revision=v1.0.0&FilePath=weights.bin")
        return client.getresponse().read()
    finally:
        client.close()


def test_a_hub_speaks_tls(tmp_path: Path) -> None:
    """Who trusts its certificate and shows one is served; it ends at once, whatever connection is open."""
    authority, clock, threads = Authority(tmp_path / "ca"), SimClock(), set(threading.enumerate())
    mine, listener = authority.sign("me"), ListenerFiles(tmp_path / "tls", authority.sign("hub"), authority.certificate)
    contexts = ServerContexts(watch_certificate(listener.files, KeptLog(), clock))
    trusting = ssl.create_default_context(cafile=authority.certificate)
    with hub(tmp_path, HubServerOptions(tls=contexts.current)) as made:
        made.publish("v1.0.0")
        port = int(made.url.rpartition(":")[2])
        assert made.url.startswith("https://")
        with pytest.raises(OSError, match=r"certificate required|reset|EOF"):
            fetch(port, trusting)
        trusting.load_cert_chain(mine.certificate, mine.key)
        assert fetch(port, trusting) == FILES["weights.bin"]
        with socket.create_connection(("127.0.0.1", port), timeout=10) as wary, pytest.raises(ssl.SSLError):
            ssl.create_default_context().wrap_socket(wary, server_hostname="127.0.0.1")

        listener.use(Authority(tmp_path / "other").sign("hub"))
        clock.advance(1.0)
        with pytest.raises(ssl.SSLCertVerificationError):
            fetch(port, trusting)
        trusting.load_verify_locations(tmp_path / "other" / "ca.crt")
        assert fetch(port, trusting) == FILES["weights.bin"]

        with socket.create_connection(("127.0.0.1", port), timeout=10) as idle:
            assert fetch(port, trusting) == FILES["weights.bin"]  # accepted after the idle one
            began = time.monotonic()
            made.server.stop()
            assert time.monotonic() - began < 5.0
            assert "hub-listener" not in {thread.name for thread in set(threading.enumerate()) - threads}
            assert idle.fileno() >= 0


def test_a_response_is_aborted_without_plain_text(tmp_path: Path) -> None:
    """`SSLSocket.shutdown` first forgets the encryption: what the response's thread sends next would be readable."""
    authority = Authority(tmp_path / "ca")
    listener = ListenerFiles(tmp_path / "tls", authority.sign("hub"))
    contexts = ServerContexts(watch_certificate(listener.files, KeptLog(), SimClock()))
    forgotten = list[int]()

    class Recorded(ssl.SSLSocket):
        def shutdown(self, how: int) -> None:
            forgotten.append(how)
            super().shutdown(how)

    def make_context() -> ssl.SSLContext:
        context = contexts.current()
        context.sslsocket_class = Recorded
        return context

    trusting = ssl.create_default_context(cafile=authority.certificate)
    with hub(tmp_path, HubServerOptions(tls=make_context)) as made, ExitStack() as stack:
        made.publish("v1.0.0", {"weights.bin": bytes(24 << 20)})
        plain = stack.enter_context(socket.create_connection(("127.0.0.1", int(made.url.rpartition(":")[2])), 10))
        client = stack.enter_context(trusting.wrap_socket(plain, server_hostname="127.0.0.1"))
        client.sendall(f"GET {API}/repo?Revision=v1.0.0&FilePath=weights.bin HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        began = client.recv(15)
        made.server.stop()
        with suppress(OSError):
            while client.recv(1 << 20):
                pass
    assert (began, forgotten) == (b"HTTP/1.1 200 OK", [])
