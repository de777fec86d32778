"""The messages between the server and its fork server: one packet each, with descriptors. See decisions/fork-server."""

import array
import json
import os
import socket
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from common.json_load import load_json

MAX_BYTES = 1 << 16  # of a packet
DESCRIPTORS = 3  # of a request: data socket, control socket, call record


@dataclass(frozen=True, slots=True)
class ForkRequest:
    """Fork a runner with these arguments, or only answer if there are none."""

    number: int  # repeated in the answer
    arguments: tuple[str, ...] = ()  # without descriptors: those come with the packet


@dataclass(frozen=True, slots=True)
class ForkAnswer:
    """The answer to a request; number 0 comes unasked, when the imports are done or have failed."""

    number: int
    pid: int = 0  # of the runner, whose parent is the server
    error: str = ""


def open_connection() -> tuple[socket.socket, socket.socket]:
    """Two connected ends; the one that the fork server gets keeps the limits of messages."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def send_request(connection: socket.socket, request: ForkRequest, descriptors: Sequence[int] = ()) -> None:
    """Send a request with copies of the descriptors.

    Raises:
        OSError: the other end is closed, or its queue is full.
    """
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
    connection.sendmsg([json.dumps(asdict(request)).encode()], rights)


def receive_request(connection: socket.socket) -> tuple[ForkRequest, list[int]] | None:
    """Wait for a request, with its descriptors, which the caller closes; None at the end of the connection."""
    payload, descriptors, _, _ = socket.recv_fds(connection, MAX_BYTES, DESCRIPTORS)
    if not payload:
        return None
    for descriptor in descriptors:
        os.set_inheritable(descriptor, False)
    fields = load_json(payload, takes_halves=True)  # of a path that is not UTF-8
    return ForkRequest(fields["number"], tuple(fields["arguments"])), descriptors


def send_answer(connection: socket.socket, answer: ForkAnswer) -> None:
    """Send an answer.

    Raises:
        OSError: the server has closed its end.
    """
    connection.send(json.dumps(asdict(answer)).encode())


def receive_answer(connection: socket.socket) -> ForkAnswer | None:
    """Receive an answer; None at the end of the connection.

    Raises:
        BlockingIOError: there is none yet.
        OSError: the connection is broken.
        ValueError: it is not an answer.
    """
    payload = connection.recv(MAX_BYTES)
    if not payload:
        return None
    try:
        return ForkAnswer(**load_json(payload, takes_halves=True))
    except TypeError as error:
        raise ValueError(str(error)) from error
