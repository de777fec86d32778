"""The metrics endpoint: one page; connections, time and size are limited."""

import contextlib
import socket
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Counter
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from common.metrics_endpoint import MAX_CONNECTIONS, MAX_REQUEST_BYTES, REQUEST_SECONDS, MetricsEndpoint
from common.tls import ServerContexts, watch_certificate
from dev.harness.certificates import Authority, ListenerFiles
from tests.common.clock import KeptLog, SimClock
from tests.no_threads import refuse_threads


class TickingClock:
    """Implements `common.clock.Clock`; each reading is a third of the time limit later than the one before."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def monotonic(self) -> float:
        self.seconds += REQUEST_SECONDS / 3
        return self.seconds

    def now(self) -> datetime:
        return datetime.fromtimestamp(self.seconds, UTC)


@pytest.fixture
def registry() -> CollectorRegistry:
    """A registry with one counter."""
    made = CollectorRegistry()
    Counter("hotslot_answers", "Answers.", registry=made).inc(3)
    return made


@pytest.fixture
def endpoint(registry: CollectorRegistry) -> Iterator[MetricsEndpoint]:
    """A listening endpoint."""
    made = MetricsEndpoint(registry)
    made.start()
    yield made
    made.stop()


def send(endpoint: MetricsEndpoint, request: bytes) -> tuple[str, bytes]:
    """Send a request; returns the status line and the content of the answer."""
    with socket.create_connection(("127.0.0.1", endpoint.port), timeout=20) as connection:
        connection.sendall(request)
        with contextlib.suppress(OSError):  # answered and closed already
            connection.shutdown(socket.SHUT_WR)
        answer = b""
        while part := connection.recv(1 << 16):
            answer += part
    head, _, content = answer.partition(b"\r\n\r\n")
    return head.split(b"\r\n")[0].decode(), content


def test_metrics_over_tls_take_a_new_certificate(
    registry: CollectorRegistry, authority: Authority, tmp_path: Path
) -> None:
    """A scrape that trusts it and shows its own is answered; in the clear nothing is, and other scrapes go on."""
    clock, mine = SimClock(), authority.sign("prometheus")
    listener = ListenerFiles(tmp_path / "tls", authority.sign("server"), authority.certificate)
    contexts = ServerContexts(watch_certificate(listener.files, KeptLog(), clock))
    endpoint = MetricsEndpoint(registry, tls=contexts.current)
    endpoint.start()

    def scrape(ca: Path) -> str:
        context = ssl.create_default_context(cafile=ca)
        context.load_cert_chain(mine.certificate, mine.key)
        url = f"https://127.0.0.1:{endpoint.port}/metrics"
        with urllib.request.urlopen(url, context=context, timeout=10) as answer:
            return str(answer.read().decode())

    assert "hotslot_answers_total 3.0" in scrape(authority.certificate)
    with contextlib.suppress(OSError):
        assert send(endpoint, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")[1] == b""
    new = Authority(tmp_path / "new")
    listener.use(new.sign("server"))
    clock.advance(1.0)
    assert "hotslot_answers_total 3.0" in scrape(new.certificate)
    with pytest.raises(urllib.error.URLError, match="CERTIFICATE_VERIFY_FAILED"):
        scrape(authority.certificate)
    endpoint.stop()


def test_metrics_are_served_as_text(endpoint: MetricsEndpoint) -> None:
    """`GET /metrics` returns the registry in Prometheus's text format."""
    status, content = send(endpoint, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
    assert status == "HTTP/1.0 200 OK"
    assert b"hotslot_answers_total 3.0\n" in content


def test_answers_do_not_name_the_python_version(endpoint: MetricsEndpoint) -> None:
    """The Server header is hotslot's alone."""
    with socket.create_connection(("127.0.0.1", endpoint.port), timeout=5) as connection:
        connection.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        head = connection.recv(1 << 16)
    assert b"\r\nServer: hotslot \r\n" in head


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "404 Not Found"),
        (b"POST /metrics HTTP/1.1\r\n\r\n", "501 Unsupported method ('POST')"),
        (b"hello\r\n\r\n", "400 Bad request syntax ('hello')"),
        (b"GET /metrics HTTP/1.1\r\n", "400 Bad Request"),
        (b"GET /metrics HTTP/1.1\r\nX: ".ljust(MAX_REQUEST_BYTES + 1, b"x"), "431 Request Header Fields Too Large"),
    ],
)
def test_other_requests_are_refused(endpoint: MetricsEndpoint, request_bytes: bytes, status: str) -> None:
    """One page, one method, and a head of limited size."""
    assert send(endpoint, request_bytes)[0] == f"HTTP/1.0 {status}"


def test_a_request_that_arrives_too_slowly_gets_no_answer(registry: CollectorRegistry) -> None:
    """The limit counts from the first byte; further bytes do not extend it."""
    endpoint = MetricsEndpoint(registry, clock=TickingClock())
    endpoint.start()
    try:
        with socket.create_connection(("127.0.0.1", endpoint.port), timeout=5) as connection:
            answer = b""
            with contextlib.suppress(ConnectionError):
                for byte in b"GET ":
                    connection.sendall(bytes([byte]))
                answer = connection.recv(1)
            assert answer == b""
    finally:
        endpoint.stop()


def test_clients_that_send_nothing_do_not_keep_a_scrape_waiting(registry: CollectorRegistry) -> None:
    """However many: the oldest are closed, no thread is started for them, and each scrape is answered at once."""
    endpoint = MetricsEndpoint(registry, clock=SimClock())  # their time is never over: a scrape must not wait for it
    endpoint.start()
    threads = set(threading.enumerate())
    idle = []
    try:
        for _ in range(8 * MAX_CONNECTIONS):
            idle.append(socket.create_connection(("127.0.0.1", endpoint.port), timeout=20))
            if len(idle) % MAX_CONNECTIONS == 0:
                assert send(endpoint, b"GET /metrics HTTP/1.1\r\n\r\n")[0] == "HTTP/1.0 200 OK"
        started = set(threading.enumerate()) - threads
        closed = sum(is_closed(connection) for connection in idle)
    finally:
        for connection in idle:
            connection.close()
        endpoint.stop()
    assert (closed >= 7 * MAX_CONNECTIONS, started) == (True, set())


def is_closed(connection: socket.socket) -> bool:
    """Whether the other side has closed a connection on which nothing was sent."""
    connection.setblocking(False)
    try:
        return connection.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


def test_a_scrape_goes_on_while_another_clients_connections_come(endpoint: MetricsEndpoint) -> None:
    """A connection of which half a request has arrived is not closed before those that came earlier."""
    with socket.create_connection(("127.0.0.1", endpoint.port), timeout=5) as scrape, contextlib.ExitStack() as stack:
        scrape.sendall(b"GET /metrics HTTP/1.1\r\n")
        for _ in range(MAX_CONNECTIONS - 1):
            stack.enter_context(socket.create_connection(("127.0.0.1", endpoint.port), timeout=5))
        scrape.sendall(b"\r\n")
        assert scrape.recv(15) == b"HTTP/1.0 200 OK"


def test_a_stopped_endpoint_does_not_listen(endpoint: MetricsEndpoint) -> None:
    """After `stop`, which may be repeated, the port is free."""
    port = endpoint.port
    endpoint.stop()
    endpoint.stop()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=5)


@pytest.mark.parametrize("target", ["http://[", "http://[::1"])
def test_a_target_with_an_open_bracket_is_a_bad_request(
    endpoint: MetricsEndpoint, target: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """It gets a status line, and no traceback is printed."""
    status, _ = send(endpoint, f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    assert " 400 " in status
    assert capsys.readouterr().err == ""


def test_a_system_without_threads_is_no_reason_not_to_answer(
    endpoint: MetricsEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All threads are started with the endpoint."""
    refuse_threads(monkeypatch, 2)
    assert [send(endpoint, b"GET /metrics HTTP/1.1\r\n\r\n")[0] for _ in range(4)] == ["HTTP/1.0 200 OK"] * 4


def test_a_collector_that_fails_costs_its_own_scrape_alone(
    registry: CollectorRegistry, endpoint: MetricsEndpoint
) -> None:
    """The threads that answer go on."""

    class Failing(Collector):
        def describe(self) -> Iterator[Metric]:
            return iter(())

        def collect(self) -> Iterator[Metric]:
            raise RuntimeError("of a collector")

    failing = Failing()
    registry.register(failing)
    failed = [send(endpoint, b"GET /metrics HTTP/1.1\r\n\r\n")[0].split()[1] for _ in range(4)]
    registry.unregister(failing)
    assert (failed, send(endpoint, b"GET /metrics HTTP/1.1\r\n\r\n")[0].split()[1]) == (["500"] * 4, "200")
