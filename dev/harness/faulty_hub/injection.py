"""Applies a fault to a response: to its content, or to the way it is sent.

A faulty send ends when the client disconnects, when the hub stops, or after MAX_FAULT_SECONDS.
"""

import contextlib
import hashlib
import json
import os
import socket
import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from http import HTTPStatus
from typing import Any

from dev.harness.faulty_hub.faults import HubFault, HubFaultKind
from hubserver.http import BodyPart, ClientConnection, FileSpan, IncomingRequest, OutgoingResponse, head_bytes, sliced
from hubserver.protocol import HubResource, HubRoute

SMUGGLED = b"smuggled"  # content of a file that is listed on command
HTML = b"<!doctype html><title>Sign in</title><p>Welcome to this network. Please accept its terms.</p>\n"
_TARGET = "{target}"


def alter_response(
    answer: OutgoingResponse, fault: HubFault, route: HubRoute, request: IncomingRequest
) -> OutgoingResponse:
    """The faulty response; the original one if the fault affects only how it is sent.

    Args:
        answer: the original response; its files are closed if they are not needed any more.
        fault: to inject.
        route: of the request.
        request: of the client.
    """
    if fault.kind in (HubFaultKind.STATUS, HubFaultKind.HTML, HubFaultKind.REDIRECT):
        answer.close()
        return _instead(fault, request)
    if fault.kind is HubFaultKind.LIST and route.kind is HubResource.FILE:
        answer.close()
        return OutgoingResponse(HTTPStatus.OK, {"Content-Type": "application/octet-stream"}, (SMUGGLED,))
    if fault.kind in (HubFaultKind.LIST, HubFaultKind.UNLIST, HubFaultKind.UNHASHED) and answer.status is HTTPStatus.OK:
        return _relisted(answer, fault)
    if fault.kind is HubFaultKind.SHORT:
        return replace(answer, parts=sliced(answer.parts, 0, max(0, answer.size - 1)))
    if fault.kind is HubFaultKind.FLIP:
        return replace(answer, parts=_flipped(answer.parts, fault.at))
    return answer


def _instead(fault: HubFault, request: IncomingRequest) -> OutgoingResponse:
    if fault.kind is HubFaultKind.HTML:
        return OutgoingResponse(HTTPStatus.OK, {"Content-Type": "text/html; charset=utf-8"}, (HTML,))
    if fault.kind is HubFaultKind.REDIRECT:
        return OutgoingResponse(HTTPStatus.FOUND, {"Location": fault.value.replace(_TARGET, request.target)})
    headers = {"Content-Type": "application/json; charset=utf-8"}
    if fault.retry_after is not None:
        headers["Retry-After"] = str(fault.retry_after)
    status = _status(int(fault.value))
    row = {"Code": status, "Data": None, "Message": "on command", "RequestId": "on-command", "Success": False}
    return OutgoingResponse(status, headers, (json.dumps(row).encode(),))


def _status(code: int) -> HTTPStatus:
    try:
        return HTTPStatus(code)
    except ValueError:
        return HTTPStatus.INTERNAL_SERVER_ERROR


def _relisted(answer: OutgoingResponse, fault: HubFault) -> OutgoingResponse:
    """The listing with other rows."""
    row = json.loads(b"".join(part for part in answer.parts if isinstance(part, bytes)))
    change: dict[HubFaultKind, Callable[[list[dict[str, Any]]], list[dict[str, Any]]]] = {
        HubFaultKind.LIST: lambda rows: [*rows, _smuggled_row(fault.value)],
        HubFaultKind.UNLIST: lambda rows: [one for one in rows if one["Path"] != fault.value],
        HubFaultKind.UNHASHED: lambda rows: [{key: one[key] for key in one if key != "Sha256"} for one in rows],
    }
    row["Data"]["Files"] = change[fault.kind](row["Data"]["Files"])
    return replace(answer, parts=(json.dumps(row, ensure_ascii=False).encode(errors="replace"),))


def _smuggled_row(path: str) -> dict[str, Any]:
    digest = hashlib.sha256(SMUGGLED).hexdigest()
    return {"Path": path, "Name": path.rpartition("/")[2], "Type": "blob", "Size": len(SMUGGLED), "Sha256": digest}


def _flipped(parts: tuple[BodyPart, ...], offset: int) -> tuple[BodyPart, ...]:
    """The parts with one bit of the file's byte at `offset` inverted, if that byte is among them."""
    flipped: list[BodyPart] = []
    for part in parts:
        first, size = (part.first, part.count) if isinstance(part, FileSpan) else (0, len(part))
        place = offset - first
        if not 0 <= place < size:
            flipped.append(part)
            continue
        byte = os.pread(part.file.fileno(), 1, offset) if isinstance(part, FileSpan) else part[place : place + 1]
        turned = bytes([byte[0] ^ 1]) if byte else b""
        flipped += [*sliced((part,), 0, place), turned, *sliced((part,), place + 1, size)]
    return tuple(flipped)


MAX_FAULT_SECONDS = 600.0
FAULTS_OF_SENDING = (HubFaultKind.STALL, HubFaultKind.DRIP, HubFaultKind.RESET, HubFaultKind.CUT, HubFaultKind.ENDLESS)
_ENDLESS_BYTES = 64 * 1024
_HARD = struct.pack("ii", 1, 0)  # linger no time: unsent data is dropped, and the peer gets a reset


def send_with_fault(fault: HubFault, connection: ClientConnection, answer: OutgoingResponse) -> None:
    """Send a response with a fault; the connection cannot be used afterwards.

    Raises:
        OSError: the client is gone.
    """
    ends = connection.clock.monotonic() + MAX_FAULT_SECONDS
    if fault.kind is HubFaultKind.ENDLESS:
        _send_endless(connection, answer, ends)
        return
    if fault.after is not None or fault.kind is HubFaultKind.DRIP:
        headers = {**answer.headers, "Content-Length": str(answer.size)}
        connection.send_bytes(head_bytes(answer.status, headers, keeps_alive=False), ends)
        connection.send_parts(sliced(answer.parts, 0, fault.after or 0), ends)
    if fault.kind is HubFaultKind.STALL:
        connection.await_end(ends)
    elif fault.kind is HubFaultKind.DRIP:
        for rest in _drops(connection, answer.size, ends):
            connection.send_parts(sliced(answer.parts, rest, fault.rate), ends)
    elif fault.kind is HubFaultKind.RESET:
        connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _HARD)


def _drops(connection: ClientConnection, size: int, ends: float) -> Iterator[int]:
    """Offsets of the bytes to send, one per second, while the client is connected."""
    now = connection.clock.monotonic()
    while connection.sent_bytes < size and now < ends:
        yield connection.sent_bytes
        if connection.await_end(now + 1.0):
            return
        now += 1.0


def _send_endless(connection: ClientConnection, answer: OutgoingResponse, ends: float) -> None:
    """A chunked body that has no end."""
    headers = {**answer.headers, "Transfer-Encoding": "chunked"}
    connection.send_bytes(head_bytes(answer.status, headers, keeps_alive=False), ends)
    chunk = f"{_ENDLESS_BYTES:x}\r\n".encode() + bytes(_ENDLESS_BYTES) + b"\r\n"
    with contextlib.suppress(TimeoutError):
        while connection.clock.monotonic() < ends:
            connection.send_bytes(chunk, ends)
            connection.sent_bytes += _ENDLESS_BYTES
