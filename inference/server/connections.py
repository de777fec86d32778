"""What the kernel knows of the server's connections: bytes received, and since when nothing has come; closes them."""

import contextlib
import ipaddress
import os
import socket
import stat
import struct
import urllib.parse
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

from inference.server.scheduling.uploads import Traffic

FAT_BYTES = 1 << 20  # received; gRPC's buffer of a connection grows with what it reads at once
QUIET_SECONDS = 4.0
CROWDED_SECONDS = 0.5  # the same for a connection beyond the limit
SLICE = 128  # descriptors that are looked at in one go: about a millisecond
MAX_CLOSED = 16  # connections that are closed in one go; clients notice each at once
_STATUS = Path("/proc/self/status")  # listing /proc/self/fd takes ten times as long as a status of each descriptor
# struct tcp_info of linux/tcp.h
_INFO_BYTES = 136
_LAST_DATA_RECEIVED = 52  # offset; milliseconds ago, 32 bits
_BYTES_RECEIVED = 128  # offset; 64 bits

_Address = tuple[str, int]
_Result = TypeVar("_Result")


class TcpConnections:
    """The connections to one port of this process, found by their addresses: gRPC does not show its sockets.

    A look at one descriptor takes several system calls, and thousands may be open: a round looks at a slice of them at
    a time, and what a descriptor is for is remembered as long as it is the same socket.
    """

    def __init__(self) -> None:
        self.port = 0  # of the server, once it listens
        self._failure: OSError | None = None  # of the last look
        self._kinds: dict[int, tuple[int, _Address | None]] = {}  # inode and peer by descriptor; None: another socket
        self._pending: deque[int] = deque()  # descriptors of the round that are to come
        self._round: dict[_Address, int] = {}  # connections that the round has found, with their descriptors
        self._peers: dict[_Address, int] = {}  # those of the last whole round

    @property
    def count(self) -> int:
        """Connections, as far as the last round has found them."""
        return max(len(self._peers), len(self._round))

    @property
    def is_looking(self) -> bool:
        """Whether a round has begun and not ended."""
        return bool(self._pending)

    def read_traffic(self, names: Collection[str]) -> Mapping[str, Traffic]:
        """The traffic of connections by gRPC's names of their peers; without those that are not TCP, or are gone."""
        return self._use(names, _read_info)

    def can_close(self, name: str) -> bool:
        """Whether it is one of TCP; all callers of a Unix socket have the same name."""
        return parse_peer(name) is not None

    def close(self, names: Collection[str]) -> None:
        """Close the connections of these peers, by gRPC's names; gRPC then ends all their calls."""
        self._use(names, lambda connection: connection.shutdown(socket.SHUT_RDWR))

    def _use(self, names: Collection[str], use: Callable[[socket.socket], _Result]) -> dict[str, _Result]:
        """What `use` returns for the connections of these peers; without those that are not TCP, or are gone."""
        wanted = {address: name for name in names if (address := parse_peer(name)) is not None}
        known = {**self._peers, **self._round}
        if any(address not in known for address in wanted):
            known = self._peers = dict(self._find(self._list_descriptors()))
        found = {}
        for address, name in wanted.items():
            with contextlib.suppress(OSError, KeyError), _duplicate(known[address]) as connection:
                if self._peer_of(connection) == address:
                    found[name] = use(connection)
        return found

    def look(self, in_use: Collection[str], *, most: int, closes_large: bool) -> None:
        """Look at a slice of the descriptors; a call after the last one begins another round.

        Connections without calls that are quiet are closed: those that have received much, if `closes_large`, and those
        beyond `most`. Their clients connect again with the next call.

        Args:
            in_use: gRPC's names of the peers that have calls.
            most: connections that may stay.
            closes_large: gRPC's buffers of those that have received much are needed.
        """
        if not self._pending:
            self._round = {}
            self._pending.extend(self._list_descriptors())
        # The peers of thousands of calls take milliseconds, so only if something may be closed.
        may_close = closes_large or len(self._round) + SLICE > most
        kept = {parse_peer(name) for name in in_use} if may_close else set()
        part = [self._pending.popleft() for _ in range(min(SLICE, len(self._pending)))]
        closed = 0
        for peer, descriptor in self._find(part):
            is_beyond = len(self._round) >= most
            is_closable = may_close and closed < MAX_CLOSED and peer not in kept and (is_beyond or closes_large)
            if is_closable and self._close_quiet(descriptor, peer, is_beyond=is_beyond):
                closed += 1
            else:
                self._round[peer] = descriptor
        if not self._pending:
            self._peers, self._round = self._round, {}

    def _find(self, descriptors: Iterable[int]) -> Iterator[tuple[_Address, int]]:
        """Those that are connections to the port, with their peers."""
        for descriptor in descriptors:
            with contextlib.suppress(OSError):
                status = os.fstat(descriptor)
                if not stat.S_ISSOCK(status.st_mode):
                    continue
                kind = self._kinds.get(descriptor)
                if kind is None or kind[0] != status.st_ino:
                    with _duplicate(descriptor) as connection:
                        kind = self._kinds[descriptor] = status.st_ino, self._peer_of(connection)
                if kind[1] is not None:
                    yield kind[1], descriptor

    def _peer_of(self, connection: socket.socket) -> _Address | None:
        is_tcp = connection.family in (socket.AF_INET, socket.AF_INET6)
        if not is_tcp or connection.getsockname()[1] != self.port:
            return None
        return _normalise(*connection.getpeername()[:2])

    def _close_quiet(self, descriptor: int, peer: _Address, *, is_beyond: bool) -> bool:
        """Close a connection of which nothing has come of late: one beyond the limit, or one that has received much."""
        with contextlib.suppress(OSError), _duplicate(descriptor) as connection:
            traffic = _read_info(connection)
            is_large = traffic.received_bytes >= FAT_BYTES and traffic.quiet_seconds >= QUIET_SECONDS
            is_idle = is_large or (is_beyond and traffic.quiet_seconds >= CROWDED_SECONDS)
            if is_idle and self._peer_of(connection) == peer:
                connection.shutdown(socket.SHUT_RDWR)
                return True
        return False

    def _list_descriptors(self) -> range:
        """All that may be open; empty if that cannot be read, as without a free one: then no connection is known."""
        try:
            text = _STATUS.read_text()
        except OSError as error:
            self._failure = error
            return range(0)
        self._failure = None
        found = text.partition("\nFDSize:")[2].split(maxsplit=1)
        return range(int(found[0]) if found else 0)

    def check(self) -> None:
        """Nothing, if the last look worked.

        Raises:
            OSError: the connections cannot be listed; none was known to the last caller.
        """
        if self._failure is not None:
            raise self._failure


@lru_cache(maxsize=1 << 16)  # a connection has many calls; more connections than are ever looked at in one go
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
