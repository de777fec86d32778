"""Addresses to listen on: one spelling for every listener, and one sentence for every reason why binding fails.

A host is an IPv4 or IPv6 address (with or without brackets), a name, or `unix:PATH`. "::" listens on IPv4 too.
"""

import contextlib
import errno
import ipaddress
import os
import re
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Protocol
from urllib.parse import quote

from pydantic import AfterValidator, Field

from common.durable import describe_blocked_path

MAX_HOST_CHARS = 253
MAX_SOCKET_PATH = 107  # bytes; sun_path has 108, including a NUL
_UNIX = "unix:"
_NAME = re.compile(
    r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?(\.[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?)*\.?"
)
_ANY = {"0.0.0.0", "::"}  # noqa: S104  compared with, not bound
_ABSENT = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
_LOOPBACK_NAMES = {"localhost", "localhost."}


class ListenFailed(OSError):
    """An address cannot be listened on; the message is one sentence with the address and the reason."""

    def __str__(self) -> str:
        """The sentence, without the number of the error."""
        return str(self.strerror)


def remove_socket(path: Path) -> None:
    """Remove the socket that a killed process has left, so that another one can be bound. Hold the process's lock.

    Raises:
        ListenFailed: something else is in its place.
    """
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise ListenFailed(error.errno, describe_blocked_path(path, error, "cannot be listened on")) from error


@dataclass(frozen=True, slots=True)
class ListenAddress:
    """Where a listener is to listen."""

    host: str  # an address without brackets, or a name; empty for a Unix socket
    port: int  # 0: any free one
    path: Path | None = None  # of a Unix socket

    def __str__(self) -> str:
        """As people write it."""
        return f"{_UNIX}{self.path}" if self.path is not None else join_host(self.host, self.port)

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        if self.path is not None or self.host in _LOOPBACK_NAMES:
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def client_target(self, port: int = 0) -> str:
        """The target for a gRPC client on this machine; `port` is the one that was taken for port 0."""
        if self.path is not None:
            return unix_target(self.path)
        return join_host("127.0.0.1" if self.host in _ANY else self.host, port or self.port)


LOOPBACK = ListenAddress("127.0.0.1", 0)


def check_host(host: str) -> str:
    """The host, if its spelling is right.

    Raises:
        ValueError: it is neither an address, nor a name, nor unix:PATH.
    """
    parse_address(host, 0)
    return host


Host = Annotated[str, Field(min_length=1, max_length=MAX_HOST_CHARS), AfterValidator(check_host)]


def parse_address(host: str, port: int) -> ListenAddress:
    """The address of a configured host and port; a Unix socket has no port.

    Raises:
        ValueError: the host is neither an address, nor a name, nor unix:PATH.
    """
    if host.startswith(_UNIX):
        path = Path(re.sub(r"^//(?=/)", "", host.removeprefix(_UNIX))).absolute()
        if path == Path.cwd() or len(os.fsencode(path)) > MAX_SOCKET_PATH:
            raise ValueError(f"has no path after unix:, or one of more than {MAX_SOCKET_PATH} bytes")
        return ListenAddress("", port, path)
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    try:
        return ListenAddress(str(ipaddress.ip_address(bare)), port)
    except ValueError:
        if bare != host or not _NAME.fullmatch(host) or host.replace(".", "").isdigit():
            raise ValueError(
                "is neither an IP address, nor a name, nor unix:PATH; the port is a setting of its own"
            ) from None
    return ListenAddress(host, port)


def join_host(host: str, port: int) -> str:
    """Host and port in one text; an IPv6 address gets brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def unix_target(path: Path) -> str:
    """GRPC's target of a Unix socket. A target is a URI: a `#` would end the path, and `%41` would be an A."""
    return _UNIX + quote(os.fsencode(path.absolute()))


def open_listener(address: ListenAddress, backlog: int) -> socket.socket:
    """A listening socket; a name listens on its first address, IPv4 before IPv6.

    Raises:
        ListenFailed: says what is wrong with the address.
    """
    with _explained(address):
        if address.path is not None:
            _remove_stale(address.path)
            return _bind(socket.AF_UNIX, str(address.path), backlog)
        family, place = _resolve(address)[0]
        return _bind(family, place, backlog)


def find_fault(address: ListenAddress) -> str:
    """Why this machine cannot listen on a host, whatever the port: an unknown name, another machine's; else empty."""
    if address.path is not None:
        return ""
    try:
        with _explained(address):
            family, place = _resolve(replace(address, port=0))[0]
            _bind(family, place, 1).close()
    except ListenFailed as error:
        return str(error)
    return ""


class GrpcServer(Protocol):
    """The part of a gRPC server that `add_port` uses."""

    def add_insecure_port(self, address: str) -> int:
        """Bind; returns the port.

        Raises:
            RuntimeError: without a reason.
        """
        ...

    def add_secure_port(self, address: str, server_credentials: Any) -> int:  # noqa: ANN401  gRPC's
        """Bind with TLS; returns the port.

        Raises:
            RuntimeError: without a reason.
        """
        ...


def add_port(server: GrpcServer, address: ListenAddress, make_credentials: Callable[[], object] | None = None) -> int:
    """Add an address to a gRPC server, which is then bound; returns the port, 1 for a Unix socket.

    A name listens on all its addresses. Each is bound and released first: gRPC's error has no reason.

    Args:
        server: that is not started.
        address: to listen on.
        make_credentials: makes the credentials of one listening socket; None without TLS.

    Raises:
        ListenFailed: says what is wrong with the address.
    """
    port = address.port
    for target in _free_targets(address):
        place = target if address.path else f"{target}:{port}"
        try:
            port = (
                server.add_insecure_port(place)
                if make_credentials is None
                else server.add_secure_port(place, make_credentials())
            )
        except RuntimeError as error:  # taken since then
            raise ListenFailed(errno.EADDRINUSE, f"cannot listen on {address}: {error}") from error
    return port


def _free_targets(address: ListenAddress) -> list[str]:
    with _explained(address):
        if address.path is not None:
            _remove_stale(address.path)
            _bind(socket.AF_UNIX, str(address.path), 1).close()
            address.path.unlink()
            return [unix_target(address.path)]
        found: list[str] = []
        places = _resolve(address)
        for family, place in places:
            try:
                _bind(family, place, 1).close()
            except OSError as error:
                # A name may have addresses of a family that this machine lacks.
                if error.errno not in _ABSENT or (place == places[-1][1] and not found):
                    raise
                continue
            host = quote(str(place[0]), safe=":")
            found.append(f"[{host}]" if ":" in host else host)
        return found


def _bind(family: int, place: Any, backlog: int) -> socket.socket:  # noqa: ANN401  a socket address
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        if family != socket.AF_UNIX:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            is_any = place[0] == "::"
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if is_any else 1)
        listening.bind(place)
        listening.listen(backlog)
    except OSError:
        listening.close()
        raise
    return listening


def _resolve(address: ListenAddress) -> list[tuple[int, Any]]:
    """Family and socket address of a host, each once, IPv4 first."""
    rows = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    places = {(row[0], row[4]): None for row in rows}
    return sorted(places, key=lambda place: place[0] != socket.AF_INET)


def _remove_stale(path: Path) -> None:
    """Remove a socket on which nothing listens any more; a bind would fail on it, and gRPC would remove any socket.

    Raises:
        OSError: another process listens on it, or it is another kind of file.
    """
    if not path.is_socket():
        if path.exists():
            raise OSError(errno.EEXIST, "exists and is no socket")
        return
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
        else:
            raise OSError(errno.EADDRINUSE, "in use")


@contextlib.contextmanager
def _explained(address: ListenAddress) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ListenFailed(error.errno, f"cannot listen on {address}: {_reason(error, address)}") from error


def _reason(error: OSError, address: ListenAddress) -> str:
    if isinstance(error, socket.gaierror):
        return f"{address.host} is an unknown name"
    match error.errno:
        case errno.EADDRINUSE:
            return f"in use{_by(address)}"
        case errno.EADDRNOTAVAIL:
            return f"{address.host} is not this machine's address"
        case errno.EACCES | errno.EPERM if address.path is None:
            return f"no permission for port {address.port}; ports below 1024 need CAP_NET_BIND_SERVICE"
        case errno.EAFNOSUPPORT:
            return "this machine has no IPv6"
        case _:
            return (error.strerror or str(error)).lower()


def _by(address: ListenAddress) -> str:
    """The process that listens there, if this user may see it; for the end of a sentence."""
    inode = _unix_inode(address.path) if address.path is not None else _tcp_inode(address.port)
    if not inode:
        return ""
    wanted = f"socket:[{inode}]"
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if any(_read_link(link) == wanted for link in (process / "fd").iterdir()):
                name = (process / "comm").read_text(errors="replace").strip()
                return f" by {name} (process {process.name})"
    return ""


def _read_link(link: Path) -> str:
    """The target of a descriptor's link; empty if the descriptor was closed meanwhile."""
    try:
        return str(link.readlink())
    except OSError:
        return ""


def _tcp_inode(port: int) -> str:
    listening, ending = "0A", f":{port:04X}"
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            for row in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
                fields = row.split()
                if fields[1].endswith(ending) and fields[3] == listening:
                    return fields[9]
    return ""


def _unix_inode(path: Path) -> str:
    with contextlib.suppress(OSError):
        for row in Path("/proc/net/unix").read_text(errors="surrogateescape").splitlines()[1:]:
            fields = row.split(maxsplit=7)
            if len(fields) == 8 and fields[3] == "00010000" and fields[7] == str(path):  # noqa: PLR2004  a listening one
                return fields[6]
    return ""
