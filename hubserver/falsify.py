"""Answers that are wrong on command. Pure, but for a byte that is read to be flipped."""

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import replace
from http import HTTPStatus
from typing import Any

from hubserver.faults import Fault, Wrong
from hubserver.messages import Answer, Part, Request, Span, sliced
from hubserver.protocol import Kind, Route

SMUGGLED = b"smuggled"  # content of a file that is listed on command
HTML = b"<!doctype html><title>Sign in</title><p>Welcome to this network. Please accept its terms.</p>\n"
_TARGET = "{target}"


def falsified(answer: Answer, fault: Fault, route: Route, request: Request) -> Answer:
    """The answer with its fault; the right one where the fault lies in how it is sent.

    Args:
        answer: the right one; its files stay open, or are closed where they are not needed any more.
        fault: what goes wrong.
        route: of the request.
        request: what was asked.
    """
    if fault.wrong in (Wrong.STATUS, Wrong.HTML, Wrong.REDIRECT):
        answer.close()
        return _instead(fault, request)
    if fault.wrong is Wrong.LIST and route.kind is Kind.FILE:
        answer.close()
        return Answer(HTTPStatus.OK, {"Content-Type": "application/octet-stream"}, (SMUGGLED,))
    if fault.wrong in (Wrong.LIST, Wrong.UNLIST, Wrong.UNHASHED) and answer.status is HTTPStatus.OK:
        return _relisted(answer, fault)
    if fault.wrong is Wrong.SHORT:
        return replace(answer, parts=sliced(answer.parts, 0, max(0, answer.size - 1)))
    if fault.wrong is Wrong.FLIP:
        return replace(answer, parts=_flipped(answer.parts, fault.at))
    return answer


def _instead(fault: Fault, request: Request) -> Answer:
    if fault.wrong is Wrong.HTML:
        return Answer(HTTPStatus.OK, {"Content-Type": "text/html; charset=utf-8"}, (HTML,))
    if fault.wrong is Wrong.REDIRECT:
        return Answer(HTTPStatus.FOUND, {"Location": fault.value.replace(_TARGET, request.target)})
    headers = {"Content-Type": "application/json; charset=utf-8"}
    if fault.retry_after is not None:
        headers["Retry-After"] = str(fault.retry_after)
    status = _status(int(fault.value))
    row = {"Code": status, "Data": None, "Message": "on command", "RequestId": "on-command", "Success": False}
    return Answer(status, headers, (json.dumps(row).encode(),))


def _status(code: int) -> HTTPStatus:
    try:
        return HTTPStatus(code)
    except ValueError:
        return HTTPStatus.INTERNAL_SERVER_ERROR


def _relisted(answer: Answer, fault: Fault) -> Answer:
    """The listing with other rows."""
    row = json.loads(b"".join(part for part in answer.parts if isinstance(part, bytes)))
    change: dict[Wrong, Callable[[list[dict[str, Any]]], list[dict[str, Any]]]] = {
        Wrong.LIST: lambda rows: [*rows, _smuggled_row(fault.value)],
        Wrong.UNLIST: lambda rows: [one for one in rows if one["Path"] != fault.value],
        Wrong.UNHASHED: lambda rows: [{key: one[key] for key in one if key != "Sha256"} for one in rows],
    }
    row["Data"]["Files"] = change[fault.wrong](row["Data"]["Files"])
    return replace(answer, parts=(json.dumps(row, ensure_ascii=False).encode(errors="replace"),))


def _smuggled_row(path: str) -> dict[str, Any]:
    digest = hashlib.sha256(SMUGGLED).hexdigest()
    return {"Path": path, "Name": path.rpartition("/")[2], "Type": "blob", "Size": len(SMUGGLED), "Sha256": digest}


def _flipped(parts: tuple[Part, ...], offset: int) -> tuple[Part, ...]:
    """The parts with one bit of the file's byte at `offset` turned over, if that byte is among them."""
    flipped: list[Part] = []
    for part in parts:
        first, size = (part.first, part.count) if isinstance(part, Span) else (0, len(part))
        place = offset - first
        if not 0 <= place < size:
            flipped.append(part)
            continue
        byte = os.pread(part.file.fileno(), 1, offset) if isinstance(part, Span) else part[place : place + 1]
        turned = bytes([byte[0] ^ 1]) if byte else b""
        flipped += [*sliced((part,), 0, place), turned, *sliced((part,), place + 1, size)]
    return tuple(flipped)
