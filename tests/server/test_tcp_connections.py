"""The server's connections as the kernel knows them: counted, and closed, a few at a time."""

import contextlib
import socket
from collections.abc import Iterator

import pytest

from inference.server import connections
from inference.server.connections import SLICE, TcpConnections, parse_peer

pytestmark = pytest.mark.fault("L19")
COUNT = 2 * SLICE


class Port:
    """A listener with connections; both ends are in this process."""

    def __init__(self, hold: contextlib.ExitStack, seen: TcpConnections) -> None:
        self._hold = hold
        self._listener = hold.enter_context(socket.create_server(("127.0.0.1", 0), backlog=COUNT))
        self.seen = seen
        self.seen.port = self._listener.getsockname()[1]
        self.clients: list[socket.socket] = []

    def connect(self, count: int) -> None:
        """Further connections."""
        for _ in range(count):
            self.clients.append(self._hold.enter_context(socket.create_connection(self._listener.getsockname())))
            self._hold.enter_context(self._listener.accept()[0])

    def name(self, number: int) -> str:
        """The name that gRPC has for a client."""
        host, port = self.clients[number].getsockname()
        return f"ipv4:{host}:{port}"

    def look(self, most: int = COUNT, in_use: tuple[str, ...] = ()) -> int:
        """A whole round; returns how many looks it took."""
        looks = 0
        while looks == 0 or self.seen.is_looking:
            self.seen.look(in_use, most=most, closes_large=False)
            looks += 1
        return looks

    def closed(self) -> list[int]:
        """The clients whose connections the server has closed."""
        found = []
        for number, client in enumerate(self.clients):
            client.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                client.recv(1)
                found.append(number)
        return found


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[Port]:
    """Any connection is quiet."""
    monkeypatch.setattr(connections, "CROWDED_SECONDS", 0.0)
    with contextlib.ExitStack() as hold:
        yield Port(hold, TcpConnections())


def test_a_look_takes_a_slice(port: Port) -> None:
    """However many are open: half of the descriptors here are the other ends."""
    port.connect(COUNT)

    looks = port.look()

    assert looks >= 2 * COUNT // SLICE
    assert (port.seen.count, port.closed()) == (COUNT, [])


def test_those_without_a_call_beyond_the_limit_are_closed(port: Port) -> None:
    """The older ones stay, and those with calls."""
    port.connect(20)

    port.look(most=15, in_use=(port.name(18),))

    assert port.closed() == [15, 16, 17, 19]
    assert port.seen.count == 16


def test_only_what_is_wanted_is_read_of_known_connections(port: Port, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder is not listed for them; it is for one that has come since."""
    port.connect(2)
    port.look()
    port.clients[0].sendall(b"12345")
    with monkeypatch.context() as patch:
        patch.setattr(port.seen, "_list_descriptors", pytest.fail)
        assert port.seen.read_traffic([port.name(0)])[port.name(0)].received_bytes == 5

    port.connect(1)
    assert set(port.seen.read_traffic([port.name(2), "unix:path"])) == {port.name(2)}


def test_a_descriptor_of_another_socket_is_not_taken_for_the_one_before(port: Port) -> None:
    """Its number is used again as soon as gRPC has closed it."""
    seen = TcpConnections()
    counts = []
    for count in (3, 2):
        with contextlib.ExitStack() as hold:
            one = Port(hold, seen)
            one.connect(count)
            one.look()
            counts.append(seen.count)
    port.look()

    assert (counts, port.seen.count) == ([3, 2], 0)


def test_the_names_of_calls_are_not_read_again_and_again(port: Port) -> None:
    """A look at a few of ten thousand connections takes no longer than at a few of ten; none is closed, or each may."""
    port.connect(2)
    names = tuple(f"ipv4:10.0.{number >> 8}.{number & 255}:50000" for number in range(10_000))
    parse_peer.cache_clear()

    port.look(in_use=names)
    read_without_need = parse_peer.cache_info().misses
    for _ in range(2):
        port.look(most=0, in_use=names)

    assert read_without_need == 0
    assert parse_peer.cache_info().misses == len(names)


@pytest.mark.fault("L26")
def test_those_of_peers_are_closed(port: Port) -> None:
    """Also before the first look; others stay, and a peer that is gone or no TCP connection is passed over."""
    port.connect(3)
    port.seen.close([port.name(1), "ipv4:127.0.0.1:1", "unix:"])

    assert port.closed() == [1]
    assert [port.seen.can_close(name) for name in (port.name(1), "ipv4:127.0.0.1:1", "unix:")] == [True, True, False]
