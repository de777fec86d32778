"""What the kernel knows of the server's connections: bytes received, and since when nothing has come."""

import contextlib
import ipaddress
import os
import socket
import struct
import urllib.parse
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from inference.server.scheduling.uploads import Traffic

FAT_BYTES = 1 << 20  # received; gRPC's buffer of a connection grows with what it reads at once
QUIET_SECONDS = 4.0
_FOLDER = Path("/proc/self/fd")
# struct tcp_info of linux/tcp.h
_INFO_BYTES = 136
_LAST_DATA_RECEIVED = 52  # offset; milliseconds ago, 32 bits
_BYTES_RECEIVED = 128  # offset; 64 bits

_Address = tuple[str, int]


class TcpConnections:
    """The connections to one port of this process, found by their addresses: gRPC does not show its sockets."""

    def __init__(self) -> None:
        self.port = 0  # of the server, once it listens
        self._failure: OSError | None = None  # of the last look

    def read_traffic(self, names: Collection[str]) -> Mapping[str, Traffic]:
        """The traffic of connections by gRPC's names of their peers; without those that are not TCP, or are gone."""
        wanted = {address: name for name in names if (address := parse_peer(name)) is not None}
        if not wanted:
            return {}
        return {wanted[peer]: traffic for peer, traffic, _ in self._connections() if peer in wanted}

    def close_idle(self, in_use: Collection[str]) -> None:
        """Close connections without calls that have received much; their clients connect again with the next call."""
        kept = {parse_peer(name) for name in in_use}
        for peer, traffic, connection in self._connections():
            if peer not in kept and _is_fat(traffic):
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def _connections(self) -> Iterator[tuple[_Address, Traffic, socket.socket]]:
        """Peers, their traffic, and sockets; a socket object is closed when the next one is taken."""
        for entry in self._list_descriptors():
            with contextlib.suppress(OSError), contextlib.ExitStack() as opened:
                if not entry.readlink().name.startswith("socket:"):
                    continue
                connection = opened.enter_context(_duplicate(int(entry.name)))
                is_tcp = connection.family in (socket.AF_INET, socket.AF_INET6)
                if is_tcp and connection.getsockname()[1] == self.port:
                    yield _normalise(*connection.getpeername()[:2]), _read_info(connection), connection

    def _list_descriptors(self) -> list[Path]:
        """Empty if the folder cannot be read, as without a free descriptor: then nothing is known of connections."""
        try:
            found = list(_FOLDER.iterdir())
        except OSError as error:
            self._failure = error
            return []
        self._failure = None
        return found

    def check(self) -> None:
        """Nothing, if the last look worked.

        Raises:
            OSError: the connections cannot be listed; none was known to the last caller.
        """
        if self._failure is not None:
            raise self._failure


def parse_peer(name: str) -> _Address | None:
    """Host and port of gRPC's name of a peer, such as "ipv4:127.0.0.1:50051"; None for others than TCP."""
    kind, _, address = urllib.parse.unquote(name).partition(":")
    host, _, port = address.rpartition(":")
    if kind not in ("ipv4", "ipv6") or not port.isdigit():
        return None
    return _normalise(host.strip("[]"), int(port))


def _duplicate(descriptor: int) -> socket.socket:
    """A socket object of its own: gRPC may close its descriptor at any time."""
    own = os.dup(descriptor)
    try:
        return socket.socket(fileno=own)
    except OSError:
        os.close(own)
        raise


def _normalise(host: str, port: int) -> _Address:
    address = ipaddress.ip_address(host.partition("%")[0])
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address), port


def _read_info(connection: socket.socket) -> Traffic:
    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO_BYTES)
    (milliseconds,) = struct.unpack_from("=I", info, _LAST_DATA_RECEIVED)
    (received,) = struct.unpack_from("=Q", info, _BYTES_RECEIVED)
    return Traffic(received, milliseconds / 1000)


def _is_fat(traffic: Traffic) -> bool:
    return traffic.received_bytes >= FAT_BYTES and traffic.quiet_seconds >= QUIET_SECONDS
