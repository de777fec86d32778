"""supervisord's event protocol: READY, a header line, a payload, RESULT; on standard input and output."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import BinaryIO

MAX_HEADER_BYTES = 4096
MAX_PAYLOAD_BYTES = 64 * 1024
_READY = b"READY\n"
_DONE = b"RESULT 2\nOK"


class ProtocolBroken(RuntimeError):
    """What came is no event of supervisord's."""


@dataclass(frozen=True, slots=True)
class Event:
    """One event."""

    name: str  # for example "PROCESS_STATE_FATAL"
    fields: Mapping[str, str]  # its payload, for example processname → server


def events(source: BinaryIO, sink: BinaryIO) -> Iterator[Event]:
    """Ask for one event after the other until supervisord is gone; the next one is asked for when this one is done.

    Raises:
        ProtocolBroken: what came is malformed or too long.
    """
    while True:
        _say(sink, _READY)
        header = source.readline(MAX_HEADER_BYTES)
        if not header:
            return
        words = _fields_of(header)
        try:
            name, size = words["eventname"], int(words["len"])
        except (KeyError, ValueError) as error:
            raise ProtocolBroken(f"a header without {error}") from error
        if not 0 <= size <= MAX_PAYLOAD_BYTES:
            raise ProtocolBroken(f"a payload of {size} bytes, limit {MAX_PAYLOAD_BYTES}")
        payload = source.read(size)
        if len(payload) < size:
            return
        yield Event(name, _fields_of(payload.split(b"\n", 1)[0]))
        _say(sink, _DONE)


def _fields_of(line: bytes) -> dict[str, str]:
    words = (word.partition(":") for word in line.decode(errors="replace").split())
    return {key: value for key, _, value in words}


def _say(sink: BinaryIO, words: bytes) -> None:
    sink.write(words)
    sink.flush()
