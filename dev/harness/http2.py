"""Hand-written HTTP/2 for misbehaving clients: connections that idle, send slowly, or use a past deadline."""

import asyncio
import socket
import struct
from collections.abc import Mapping

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, SETTINGS, PING, GOAWAY = 0, 1, 4, 6, 7
MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE, MAX_HEADER_LIST_SIZE = 3, 4, 6  # keys of SETTINGS
ACK = 1  # flag of PING and SETTINGS
_END_STREAM, _END_HEADERS = 1, 4


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """One frame."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def opening(settings: Mapping[int, int] | None = None) -> bytes:
    """The opening of a client: preface and settings."""
    values = (settings or {}).items()
    return PREFACE + frame(SETTINGS, 0, 0, b"".join(struct.pack(">HI", key, value) for key, value in values))


def read_settings(payload: bytes) -> dict[int, int]:
    """The values of a SETTINGS frame by key."""
    return dict(struct.iter_unpack(">HI", payload))


async def read_frame(source: asyncio.StreamReader) -> tuple[int, int, bytes]:
    """The next frame: kind, flags and payload.

    Raises:
        asyncio.IncompleteReadError: the server has closed the connection.
    """
    head = await source.readexactly(9)
    return head[3], head[4], await source.readexactly(int.from_bytes(head[:3], "big"))


def call(path: str, message: bytes, metadata: Mapping[str, str], stream: int = 1) -> bytes:
    """A whole unary gRPC call."""
    body = b"\0" + struct.pack(">I", len(message)) + message
    return headers(path, stream, metadata) + frame(DATA, _END_STREAM, stream, body)


def headers(path: str, stream: int, metadata: Mapping[str, str] | None = None) -> bytes:
    """The beginning of a gRPC call."""
    fields = {
        ":method": "POST",
        ":scheme": "http",
        ":path": path,
        ":authority": "test",
        "te": "trailers",
        "content-type": "application/grpc",
        **(metadata or {}),
    }
    block = b"".join(_literal(name, value) for name, value in fields.items())
    return frame(HEADERS, _END_HEADERS, stream, block)


def connect(port: int) -> socket.socket:
    """A new connection, on which nothing was sent."""
    return socket.create_connection(("127.0.0.1", port), timeout=10)


def _literal(name: str, value: str) -> bytes:
    return b"\x10" + _text(name) + _text(value)  # never indexed, a new name; neither compressed


def _text(value: str) -> bytes:
    raw = value.encode()
    assert len(raw) < 127, "longer texts need a longer length"
    return bytes([len(raw)]) + raw
