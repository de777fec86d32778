"""The part of ModelScope's protocol that its clients need to list and download models: maps requests to responses.

The owner in `owner/name` is ignored: a folder hub has no owners, and the real hub lists some models under two owners.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from http import HTTPStatus
from http.cookies import CookieError, SimpleCookie

from common.bundle import BundleFile
from hubserver.folder import MAX_REVISIONS, HubFolder, HubRevision, NotOnHub
from hubserver.http import FileSpan, IncomingRequest, OutgoingResponse, RequestRejected, range_of

BRANCHES = ("master", "main")  # every other name is a tag
DEFAULT_REVISION = "master"
GREETING = b"A folder hub of hotslot: it speaks ModelScope's protocol. Point MODELSCOPE_ENDPOINT at it.\n"
_MODEL = re.compile(r"/(openapi/v1|api/v1)/models/([^/]+)/([^/]+)(/revisions|/repo/files|/repo)?")
_REGION = "/api/v1/repos/internalAccelerationInfo"
_MAX_DIGITS = 6
_LARGE_BYTES = 1 << 20  # the real hub keeps larger files in object storage, and marks them in its listing


class HubResource(StrEnum):
    """The kind of resource that a request names."""

    HOME = "home"
    REGION = "region"
    MODEL = "model"
    INFO = "info"
    REVISIONS = "revisions"
    FILES = "files"
    FILE = "file"


@dataclass(frozen=True, slots=True)
class HubRoute:
    """The resource that a request names, with its parameters."""

    kind: HubResource
    owner: str = ""
    model: str = ""
    revision: str = ""
    name: str = ""  # of a file
    root: str = ""  # of a listing
    is_recursive: bool = True
    page: int = 1  # of the revisions
    page_size: int = MAX_REVISIONS


def route_of(request: IncomingRequest) -> HubRoute:
    """Parse a request's path and parameters.

    Raises:
        RequestRejected: the path is not part of the protocol that this hub supports.
    """
    if request.path == "/":
        return HubRoute(HubResource.HOME)
    if request.path == _REGION:
        return HubRoute(HubResource.REGION)
    found = _MODEL.fullmatch(request.path)
    if found is None or (found[1].startswith("open") and found[4]):
        raise RequestRejected(HTTPStatus.NOT_FOUND, "this hub lists and hands out models, nothing else")
    kinds = {"/revisions": HubResource.REVISIONS, "/repo/files": HubResource.FILES, "/repo": HubResource.FILE}
    kind = kinds[found[4]] if found[4] else HubResource.MODEL if found[1].startswith("open") else HubResource.INFO
    asked = request.parameters
    return HubRoute(
        kind=kind,
        owner=found[2],
        model=found[3],
        revision=asked.get("Revision") or DEFAULT_REVISION,
        name=asked.get("FilePath", ""),
        root=asked.get("Root", "").strip("/"),
        is_recursive=asked.get("Recursive", "True").lower() == "true",
        page=_number(asked, "PageNumber", 1),
        page_size=_number(asked, "PageSize", MAX_REVISIONS),
    )


def _number(asked: Mapping[str, str], name: str, default: int) -> int:
    text = asked.get(name, "")
    if not text:
        return default
    if not (text.isascii() and text.isdecimal() and len(text) <= _MAX_DIGITS and int(text)):
        raise RequestRejected(HTTPStatus.BAD_REQUEST, f"{name} must be a number from 1")
    return int(text)


def find_caller(request: IncomingRequest, find: Callable[[str], str]) -> str:
    """The name of a request's token, which is in the header or in the cookie that older clients send.

    Args:
        request: any.
        find: the name of a token; empty if it is not valid.

    Raises:
        RequestRejected: the token is missing or wrong.
    """
    shown = request.headers.get("authorization", "").removeprefix("Bearer ").strip() or _cookie(request)
    if not shown:
        raise RequestRejected(HTTPStatus.UNAUTHORIZED, "a token is needed", {"WWW-Authenticate": "Bearer"})
    name = find(shown)
    if not name:
        raise RequestRejected(HTTPStatus.FORBIDDEN, "the token is unknown here, or was revoked")
    return name


def answer(route: HubRoute, request: IncomingRequest, folder: HubFolder, request_id: str) -> OutgoingResponse:
    """Return the response to an authorised request.

    Args:
        route: of the request.
        request: its Range header applies to files.
        folder: the models.
        request_id: sent in the response, so that the logs of both sides can be correlated.

    Returns:
        The response; the caller closes it.

    Raises:
        RequestRejected: the resource does not exist, or the request is not supported for it.
        OSError: the folder cannot be read.
    """
    try:
        return _answer(route, request, folder, request_id)
    except NotOnHub as error:
        raise RequestRejected(HTTPStatus.NOT_FOUND, str(error)) from error


def rejection(rejected: RequestRejected, path: str, request_id: str) -> OutgoingResponse:
    """An error response, in the envelope of the interface that was called."""
    sentence, status = str(rejected), rejected.status
    if not path.startswith("/openapi/"):
        return _enveloped(None, request_id, sentence, rejected)
    codes = {401: "InvalidAuthentication", 403: "OperationNotAllowed", 404: "ResourceNotFound"}
    code = codes.get(
        status, "InternalServerError" if status >= HTTPStatus.INTERNAL_SERVER_ERROR else "InputParameterError"
    )
    row: Mapping[str, object] = {"success": False, "code": code, "message": sentence, "request_id": request_id}
    return _json(row, status, rejected.headers)


def listing_entries(revision: HubRevision, root: str, *, is_recursive: bool) -> list[dict[str, object]]:
    """The rows of a revision's listing below a folder, including folders; sorted by path."""
    prefix = f"{root}/" if root else ""
    inside = [file for file in revision.files if file.name.startswith(prefix)]
    folders = {
        "/".join(parts[:depth])
        for file in inside
        for parts in [file.name.split("/")]
        for depth in range(prefix.count("/") + 1, len(parts))
    }
    rows = [_blob(file, revision) for file in inside] + [_tree(name, revision) for name in folders]
    if not is_recursive:
        rows = [row for row in rows if "/" not in str(row["Path"]).removeprefix(prefix)]
    return sorted(rows, key=lambda row: str(row["Path"]))


def _answer(route: HubRoute, request: IncomingRequest, folder: HubFolder, request_id: str) -> OutgoingResponse:
    if route.kind is HubResource.HOME:
        return OutgoingResponse(HTTPStatus.OK, {"Content-Type": "text/plain; charset=utf-8"}, (GREETING,))
    if route.kind is HubResource.FILE:
        return _file(route, request, folder)
    if route.kind is HubResource.MODEL:
        return _json({"success": True, "data": _model(route, folder), "request_id": request_id})
    return _enveloped(_data(route, folder), request_id)


def _data(route: HubRoute, folder: HubFolder) -> dict[str, object]:
    if route.kind is HubResource.REGION:  # asked by clients in the public cloud; here there is no nearer place
        return {"InternalRegionQueryAddress": ""}
    if route.kind is HubResource.FILES:
        revision = folder.revision(route.model, route.revision)
        rows = listing_entries(revision, route.root, is_recursive=route.is_recursive)
        if route.root and not rows:
            raise NotOnHub(f"{route.revision} has no folder {route.root[:80]!r}")
        return {"Files": rows, "IsVisual": 0}
    if route.kind is HubResource.REVISIONS:
        page = folder.revisions(route.model, route.page, route.page_size)
        return {"RevisionMap": _revision_map(page.revisions), "TotalCount": page.total}
    folder.revisions(route.model, size=1)
    return {"Path": route.owner, "Name": route.model, "Revision": DEFAULT_REVISION}


def _model(route: HubRoute, folder: HubFolder) -> dict[str, object]:
    folder.revisions(route.model, size=1)
    name = route.model
    names: dict[str, object] = {"id": f"{route.owner}/{name}", "owner": route.owner, "name": name, "display_name": name}
    return names | {"visibility": "public"}


def _revision_map(revisions: list[HubRevision]) -> dict[str, list[dict[str, object]]]:
    rows = [{"Revision": one.name, "CreatedAt": int(one.created_at.timestamp())} for one in revisions]
    return {
        "Branches": [row for row in rows if row["Revision"] in BRANCHES],
        "Tags": [row for row in rows if row["Revision"] not in BRANCHES],
    }


def _file(route: HubRoute, request: IncomingRequest, folder: HubFolder) -> OutgoingResponse:
    if not route.name:
        raise RequestRejected(HTTPStatus.BAD_REQUEST, "FilePath is missing")
    listed, file = folder.open(route.model, route.revision, route.name)
    try:
        etag = f'"{listed.sha256}"'
        headers = {"Content-Type": "application/octet-stream", "Accept-Ranges": "bytes", "ETag": etag}
        wanted = request.headers.get("range", "")
        asked = range_of(wanted, listed.size) if request.headers.get("if-range", etag) == etag else None
        if asked is None:
            return OutgoingResponse(HTTPStatus.OK, headers, (FileSpan(file, 0, listed.size),))
        first, count = asked
        headers["Content-Range"] = f"bytes {first}-{first + count - 1}/{listed.size}"
        return OutgoingResponse(HTTPStatus.PARTIAL_CONTENT, headers, (FileSpan(file, first, count),))
    except BaseException:
        file.close()
        raise


def _blob(file: BundleFile, revision: HubRevision) -> dict[str, object]:
    row = _row(file.name, "blob", revision)
    return row | {"Size": file.size, "Sha256": file.sha256, "IsLFS": file.size > _LARGE_BYTES, "Mode": "33188"}


def _tree(name: str, revision: HubRevision) -> dict[str, object]:
    return _row(name, "tree", revision) | {"Size": 0, "Sha256": "", "IsLFS": False, "Mode": "16384"}


def _row(path: str, kind: str, revision: HubRevision) -> dict[str, object]:
    committed = int(revision.created_at.timestamp())
    name = path.rpartition("/")[2]
    return {"Path": path, "Name": name, "Type": kind, "Revision": revision.name, "CommittedDate": committed}


def _enveloped(
    data: object, request_id: str, message: str = "success", rejected: RequestRejected | None = None
) -> OutgoingResponse:
    status = rejected.status if rejected else HTTPStatus.OK
    row = {
        "Code": status.value,
        "Data": data,
        "Message": message,
        "RequestId": request_id,
        "Success": rejected is None,
    }
    return _json(row, status, rejected.headers if rejected else {})


def _json(
    row: Mapping[str, object], status: HTTPStatus = HTTPStatus.OK, more: Mapping[str, str] | None = None
) -> OutgoingResponse:
    headers = {"Content-Type": "application/json; charset=utf-8", **(more or {})}
    return OutgoingResponse(status, headers, (json.dumps(row, ensure_ascii=False).encode(),))


def _cookie(request: IncomingRequest) -> str:
    try:
        found = SimpleCookie(request.headers.get("cookie", "")).get("m_session_id")
    except CookieError:
        return ""
    return found.value if found is not None else ""
