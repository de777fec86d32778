"""supervisord's interface for its event listener: events, the list of running processes, killing a child."""

import contextlib
import os
import signal
import socket
import xmlrpc.client
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from supervisor.xmlrpc import SupervisorTransport

MAX_HEADER_BYTES = 4096
MAX_PAYLOAD_BYTES = 64 * 1024
RPC_TIMEOUT_SECONDS = 5.0
_READY = b"READY\n"
_RESULT_OK = b"RESULT 2\nOK"


class ProtocolBroken(RuntimeError):
    """The input is not supervisord's event protocol."""


@dataclass(frozen=True, slots=True)
class SupervisorEvent:
    """One event of supervisord's."""

    name: str  # for example "PROCESS_STATE_FATAL"
    fields: Mapping[str, str]  # its payload, for example processname → server


def read_events(source: BinaryIO, sink: BinaryIO) -> Iterator[SupervisorEvent]:
    """Yield supervisord's events until it closes `source`; an event is acknowledged when the next one is asked for.

    The protocol: READY, a header line, a payload, RESULT.

    Raises:
        ProtocolBroken: a header is malformed, or a payload is too long.
    """
    while True:
        _send(sink, _READY)
        header = source.readline(MAX_HEADER_BYTES)
        if not header:
            return
        fields = _parse_fields(header)
        try:
            name, size = fields["eventname"], int(fields["len"])
        except (KeyError, ValueError) as error:
            raise ProtocolBroken(f"malformed event header: {error}") from error
        if not 0 <= size <= MAX_PAYLOAD_BYTES:
            raise ProtocolBroken(f"event payload of {size} bytes, limit {MAX_PAYLOAD_BYTES}")
        payload = source.read(size)
        if len(payload) < size:
            return
        yield SupervisorEvent(name, _parse_fields(payload.split(b"\n", 1)[0]))
        _send(sink, _RESULT_OK)


def list_running(socket_path: Path) -> Iterator[tuple[str, int]]:
    """Yield name and process id of each running program.

    Args:
        socket_path: supervisord's socket; only its own user can open it.

    Raises:
        OSError: supervisord does not answer, or its answer is malformed.
    """
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(RPC_TIMEOUT_SECONDS)  # SupervisorTransport takes no timeout of its own
    try:
        transport = SupervisorTransport(None, None, f"unix://{socket_path}")
        proxy = xmlrpc.client.ServerProxy("http://supervisord", transport=transport)
        rows = proxy.supervisor.getAllProcessInfo()
    except (xmlrpc.client.Error, ValueError, TypeError) as error:
        raise OSError(f"supervisord's answer is malformed: {error}") from error
    finally:
        socket.setdefaulttimeout(before)
    if not isinstance(rows, list):
        raise OSError("supervisord's answer is not a list")
    for row in rows:
        if isinstance(row, dict) and row.get("statename") == "RUNNING":
            yield str(row["name"]), int(row["pid"])


def kill_child(pid: int, parent: int) -> None:
    """Send SIGKILL to a process if `parent` is its parent; the process id may have been reused meanwhile."""
    with contextlib.suppress(OSError):
        descriptor = os.pidfd_open(pid)
        try:
            if _read_parent(pid) == parent:
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        finally:
            os.close(descriptor)


def _parse_fields(line: bytes) -> dict[str, str]:
    words = (word.partition(":") for word in line.decode(errors="replace").split())
    return {key: value for key, _, value in words}


def _send(sink: BinaryIO, content: bytes) -> None:
    sink.write(content)
    sink.flush()


def _read_parent(pid: int) -> int:
    with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:  # noqa: PTH123  a path of the kernel's
        return int(file.read(4096).rpartition(")")[2].split()[1])
