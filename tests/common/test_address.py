"""Every listener takes the same spellings of addresses, and says in one sentence why one cannot be used."""

import contextlib
import os
import socket
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from common.address import ListenAddress, ListenFailed, add_port, find_fault, open_listener, parse_address
from common.request_listener import ListenLimits, RequestListener
from tests.common.users import without_rights

LIMIT_SECONDS = 10.0
ANY = "0.0.0.0"  # noqa: S104  each test binds it for a moment, on a free port
pytestmark = pytest.mark.fault("L21")


@pytest.mark.parametrize(
    ("host", "shown", "client"),
    [
        ("127.0.0.1", "127.0.0.1:50051", "127.0.0.1:50051"),
        (ANY, "0.0.0.0:50051", "127.0.0.1:50051"),
        ("::", "[::]:50051", "127.0.0.1:50051"),
        ("[::]", "[::]:50051", "127.0.0.1:50051"),
        ("::1", "[::1]:50051", "[::1]:50051"),
        ("[::1]", "[::1]:50051", "[::1]:50051"),
        ("0:0:0:0:0:0:0:1", "[::1]:50051", "[::1]:50051"),
        ("fd00:10:244::17", "[fd00:10:244::17]:50051", "[fd00:10:244::17]:50051"),
        ("localhost", "localhost:50051", "localhost:50051"),
        ("node-1.example.org", "node-1.example.org:50051", "node-1.example.org:50051"),
        ("unix:/run/a.sock", "unix:/run/a.sock", "unix:/run/a.sock"),
        ("unix:///run/a.sock", "unix:/run/a.sock", "unix:/run/a.sock"),
        ("unix:/run/a#%41 b.sock", "unix:/run/a#%41 b.sock", "unix:/run/a%23%2541%20b.sock"),
    ],
)
def test_spellings(host: str, shown: str, client: str) -> None:
    """How an address is shown, and where a client on this machine finds it."""
    address = parse_address(host, 50051)

    assert (str(address), address.client_target()) == (shown, client)


@pytest.mark.parametrize(
    "host",
    ["", " ", "127.0.0.1:50051", "[::1]:1", "[localhost]", "300.1.2.3", "http://a", "a b", "-a", "a/b", "unix:", ":::"],
)
def test_wrong_spellings(host: str) -> None:
    """They are mistakes of the settings, not failures at the start."""
    with pytest.raises(ValueError, match=r"is neither|has no path"):
        parse_address(host, 50051)


class _Health(health_pb2_grpc.HealthServicer):
    def Check(self, _request: object, _context: object) -> health_pb2.HealthCheckResponse:  # noqa: N802  gRPC's name
        return health_pb2.HealthCheckResponse(status=1)


@contextlib.contextmanager
def grpc_server(address: ListenAddress) -> Iterator[int]:
    """A gRPC server on an address; its port."""
    server = grpc.server(futures.ThreadPoolExecutor(1))
    health_pb2_grpc.add_HealthServicer_to_server(_Health(), server)
    port = add_port(server, address)
    server.start()
    try:
        yield port
    finally:
        server.stop(None).wait()


def answers(target: str) -> bool:
    """Whether a gRPC server answers there."""
    with grpc.insecure_channel(target) as channel:
        response = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=LIMIT_SECONDS)
    return bool(response.status == health_pb2.HealthCheckResponse.SERVING)


@pytest.mark.parametrize(
    ("host", "reached"),
    [
        ("127.0.0.1", ["127.0.0.1"]),
        ("::1", ["[::1]"]),
        ("[::1]", ["[::1]"]),
        ("::", ["127.0.0.1", "[::1]"]),
        ("localhost", ["127.0.0.1"]),
    ],
)
def test_grpc_and_other_listeners_take_the_same_hosts(host: str, reached: list[str]) -> None:
    """A bare IPv6 address too, which gRPC alone does not take; "::" is reached over IPv4 and IPv6."""
    address = parse_address(host, 0)
    with grpc_server(address) as port:
        assert answers(address.client_target(port))
        assert all(answers(f"{client}:{port}") for client in reached)

    listener = RequestListener("test", lambda held: held.socket.close(), ListenLimits())
    listener.start(address)
    for client in reached:
        socket.create_connection((client.strip("[]"), listener.port), LIMIT_SECONDS).close()
    listener.stop(LIMIT_SECONDS)


@pytest.mark.parametrize("name", ["a.sock", "a#b.sock", "a%41b.sock", "a b.sock"])
def test_unix_sockets_in_any_folder(tmp_path: Path, name: str) -> None:
    """The path is taken literally; a socket that a killed process has left is replaced."""
    path = tmp_path / name
    address = parse_address(f"unix:{path}", 0)
    open_listener(address, 1).close()
    with grpc_server(address):
        assert path.is_socket()
        assert answers(address.client_target())


@contextlib.contextmanager
def refused(address: ListenAddress) -> Iterator[list[str]]:
    """The sentences with which both kinds of listeners refuse an address."""
    sentences: list[str] = []
    for listen in (lambda: open_listener(address, 1), lambda: grpc_server(address).__enter__()):
        with pytest.raises(ListenFailed) as error:
            listen()
        sentences.append(str(error.value))
    yield sentences


def test_an_address_in_use_names_the_process() -> None:
    """If this user may see it."""
    with open_listener(parse_address("127.0.0.1", 0), 1) as taken:
        port = taken.getsockname()[1]
        me = f"in use by {Path('/proc/self/comm').read_text().strip()} (process {os.getpid()})"
        for host, shown in (("127.0.0.1", "127.0.0.1"), (ANY, ANY), ("::", "[::]")):
            with refused(parse_address(host, port)) as sentences:
                assert sentences == [f"cannot listen on {shown}:{port}: {me}"] * 2


def test_a_unix_socket_in_use_is_kept(tmp_path: Path) -> None:
    """Alone gRPC would remove it."""
    address = parse_address(f"unix:{tmp_path / 'a.sock'}", 0)
    with grpc_server(address):
        with refused(address) as sentences:
            assert all(f"{address}: in use by" in sentence for sentence in sentences)
        assert answers(address.client_target())
    file = tmp_path / "file"
    file.write_text("kept")
    with refused(parse_address(f"unix:{file}", 0)) as sentences:
        assert sentences == [f"cannot listen on unix:{file}: exists and is no socket"] * 2


@pytest.mark.parametrize(
    ("host", "reason"),
    [
        ("192.0.2.1", "cannot listen on 192.0.2.1:0: 192.0.2.1 is not this machine's address"),
        ("2001:db8::1", "cannot listen on [2001:db8::1]:0: 2001:db8::1 is not this machine's address"),
        ("no-such-host.invalid", "cannot listen on no-such-host.invalid:0: no-such-host.invalid is an unknown name"),
    ],
)
def test_an_address_that_is_not_ours(host: str, reason: str) -> None:
    """`hotslot config check` says the same."""
    with refused(parse_address(host, 0)) as sentences:
        assert sentences == [reason, reason]
    assert find_fault(parse_address(host, 0)) == reason


def test_a_folder_without_permission(tmp_path: Path) -> None:
    """Another user's."""
    address = parse_address(f"unix:{tmp_path}/a.sock", 0)
    tmp_path.chmod(0o500)
    with without_rights(), pytest.raises(ListenFailed, match=f"cannot listen on {address}: permission denied"):
        open_listener(address, 1)
