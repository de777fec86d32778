"""A DNS server that knows a few names: several servers behind one of them."""

import socket
import struct
import threading
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self

_HEADER = struct.Struct("!6H")
_A, _IN, _RESPONSE = 1, 1, 0x8580  # authoritative


class NameServer:
    """Answers questions for addresses over UDP, on a port of its own.

    Args:
        names: IPv4 addresses by name.
    """

    def __init__(self, names: Mapping[str, Sequence[str]]) -> None:
        self._names = names
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._socket.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> Self:
        """Begin to answer."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End."""
        host, port = self.address.split(":")
        self._socket.sendto(b"", (host, int(port)))
        self._thread.join(5)
        self._socket.close()

    def _serve(self) -> None:
        while True:
            question, peer = self._socket.recvfrom(512)
            if not question:
                return
            self._socket.sendto(answer(question, self._names), peer)


def answer(question: bytes, names: Mapping[str, Sequence[str]]) -> bytes:
    """The response to one question; without addresses if the name or the kind is another one."""
    number = _HEADER.unpack_from(question)[0]
    labels, at = [], _HEADER.size
    while length := question[at]:
        labels.append(question[at + 1 : at + 1 + length].decode("ascii"))
        at += 1 + length
    kind = struct.unpack_from("!H", question, at + 1)[0]
    asked = question[_HEADER.size : at + 5]
    found = names.get(".".join(labels).lower(), ()) if kind == _A else ()
    rows = [struct.pack("!HHHIH", 0xC00C, _A, _IN, 1, 4) + socket.inet_aton(address) for address in found]
    return _HEADER.pack(number, _RESPONSE, 1, len(rows), 0, 0) + asked + b"".join(rows)
