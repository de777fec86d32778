"""Right answers sent wrongly, on command: too slow, never, cut off, without end.

Each ends when the client goes, when the hub ends, or after MISDELIVERY_SECONDS.
"""

import contextlib
import socket
import struct
from collections.abc import Iterator

from hubserver.connection import Connection
from hubserver.faults import Fault, Wrong
from hubserver.messages import Answer, head_bytes, sliced

MISDELIVERY_SECONDS = 600.0
SENT_WRONGLY = (Wrong.STALL, Wrong.DRIP, Wrong.RESET, Wrong.CUT, Wrong.ENDLESS)
_ENDLESS_BYTES = 64 * 1024
_HARD = struct.pack("ii", 1, 0)  # linger no time: what is unsent is thrown away, and the other side is told by a reset


def misdeliver(connection: Connection, answer: Answer, fault: Fault) -> None:
    """Send an answer wrongly; the connection is of no more use.

    Raises:
        OSError: the client is gone.
    """
    ends = connection.clock.monotonic() + MISDELIVERY_SECONDS
    if fault.wrong is Wrong.ENDLESS:
        _send_endless(connection, answer, ends)
        return
    if fault.after is not None or fault.wrong is Wrong.DRIP:
        headers = {**answer.headers, "Content-Length": str(answer.size)}
        connection.send_bytes(head_bytes(answer.status, headers, keeps_alive=False), ends)
        connection.send_parts(sliced(answer.parts, 0, fault.after or 0), ends)
    if fault.wrong is Wrong.STALL:
        connection.await_end(ends)
    elif fault.wrong is Wrong.DRIP:
        for rest in _drops(connection, answer.size, ends):
            connection.send_parts(sliced(answer.parts, rest, fault.rate), ends)
    elif fault.wrong is Wrong.RESET:
        connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _HARD)


def _drops(connection: Connection, size: int, ends: float) -> Iterator[int]:
    """Offsets of what is sent, one a second, as long as the client listens."""
    now = connection.clock.monotonic()
    while connection.sent_bytes < size and now < ends:
        yield connection.sent_bytes
        if connection.await_end(now + 1.0):
            return
        now += 1.0


def _send_endless(connection: Connection, answer: Answer, ends: float) -> None:
    """A chunked body that has no end."""
    headers = {**answer.headers, "Transfer-Encoding": "chunked"}
    connection.send_bytes(head_bytes(answer.status, headers, keeps_alive=False), ends)
    chunk = f"{_ENDLESS_BYTES:x}\r\n".encode() + bytes(_ENDLESS_BYTES) + b"\r\n"
    with contextlib.suppress(TimeoutError):
        while connection.clock.monotonic() < ends:
            connection.send_bytes(chunk, ends)
            connection.sent_bytes += _ENDLESS_BYTES
