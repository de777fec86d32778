"""ModelScope's protocol, as far as its clients need it to list and download models: a request in, an answer out.

The owner in `owner/name` is not looked at: a folder hub has none, and the real one keeps several models under two.
"""

import hmac
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from http import HTTPStatus
from http.cookies import CookieError, SimpleCookie

from common.bundle import BundleFile
from hubserver.folder import HubFolder, NotThere, Revision
from hubserver.messages import Answer, Refused, Request, Span, range_of

BRANCHES = ("master", "main")  # every other name is a tag
DEFAULT_REVISION = "master"
GREETING = b"A stand-in hub of hotslot: it speaks ModelScope's protocol. Point MODELSCOPE_ENDPOINT at it.\n"
_MODEL = re.compile(r"/(openapi/v1|api/v1)/models/([^/]+)/([^/]+)(/revisions|/repo/files|/repo)?")
_REGION = "/api/v1/repos/internalAccelerationInfo"
_LARGE_BYTES = 1 << 20  # the real hub keeps larger files in object storage, and says so


class Kind(StrEnum):
    """What is asked for; faults are aimed at these."""

    HOME = "home"
    REGION = "region"
    MODEL = "model"
    INFO = "info"
    REVISIONS = "revisions"
    FILES = "files"
    FILE = "file"


@dataclass(frozen=True, slots=True)
class Route:
    """A request, understood."""

    kind: Kind
    owner: str = ""
    model: str = ""
    revision: str = ""
    name: str = ""  # of a file
    root: str = ""  # of a listing
    is_recursive: bool = True


def route_of(request: Request) -> Route:
    """Understand what is asked for.

    Raises:
        Refused: nothing that this hub has.
    """
    if request.path == "/":
        return Route(Kind.HOME)
    if request.path == _REGION:
        return Route(Kind.REGION)
    found = _MODEL.fullmatch(request.path)
    if found is None or (found[1].startswith("open") and found[4]):
        raise Refused(HTTPStatus.NOT_FOUND, "this hub lists and hands out models, nothing else")
    kinds = {"/revisions": Kind.REVISIONS, "/repo/files": Kind.FILES, "/repo": Kind.FILE}
    kind = kinds[found[4]] if found[4] else Kind.MODEL if found[1].startswith("open") else Kind.INFO
    asked = request.parameters
    return Route(
        kind=kind,
        owner=found[2],
        model=found[3],
        revision=asked.get("Revision") or DEFAULT_REVISION,
        name=asked.get("FilePath", ""),
        root=asked.get("Root", "").strip("/"),
        is_recursive=asked.get("Recursive", "True").lower() == "true",
    )


def check_token(request: Request, token: str) -> None:
    """Let nobody through who does not show the token, as a header or as the cookie that older clients send.

    Raises:
        Refused: none is shown, or another.
    """
    shown = request.headers.get("authorization", "").removeprefix("Bearer ").strip() or _cookie(request)
    if not shown:
        raise Refused(HTTPStatus.UNAUTHORIZED, "a token is needed", {"WWW-Authenticate": "Bearer"})
    if not hmac.compare_digest(shown.encode(), token.encode()):
        raise Refused(HTTPStatus.FORBIDDEN, "the token is not the right one")


def answer(route: Route, request: Request, folder: HubFolder, request_id: str) -> Answer:
    """Answer a request that may be answered.

    Args:
        route: of the request.
        request: its range counts where a file is asked for.
        folder: what there is.
        request_id: is told in the answer, so that both sides' logs can be brought together.

    Returns:
        The answer; the caller closes it.

    Raises:
        Refused: it is not there, or asked for in a way that cannot be served.
        OSError: the folder cannot be read.
    """
    try:
        return _answer(route, request, folder, request_id)
    except NotThere as error:
        raise Refused(HTTPStatus.NOT_FOUND, str(error)) from error


def refusal(refused: Refused, path: str, request_id: str) -> Answer:
    """An error, in the envelope of whichever interface was asked."""
    sentence = str(refused)
    if path.startswith("/openapi/"):
        codes = {401: "InvalidAuthentication", 403: "OperationNotAllowed", 404: "ResourceNotFound"}
        code = codes.get(refused.status, "InternalServerError" if refused.status >= 500 else "InputParameterError")  # noqa: PLR2004  HTTP's line between whose fault it is
        row: Mapping[str, object] = {"success": False, "code": code, "message": sentence, "request_id": request_id}
        return _json(row, refused.status, refused.headers)
    return _enveloped(None, request_id, sentence, refused)


def listing_entries(revision: Revision, root: str, *, is_recursive: bool) -> list[dict[str, object]]:
    """The rows of a revision's listing below a folder, folders among them; sorted by path."""
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


def _answer(route: Route, request: Request, folder: HubFolder, request_id: str) -> Answer:
    if route.kind is Kind.HOME:
        return Answer(HTTPStatus.OK, {"Content-Type": "text/plain; charset=utf-8"}, (GREETING,))
    if route.kind is Kind.FILE:
        return _file(route, request, folder)
    if route.kind is Kind.MODEL:
        return _json({"success": True, "data": _model(route, folder), "request_id": request_id})
    return _enveloped(_data(route, folder), request_id)


def _data(route: Route, folder: HubFolder) -> dict[str, object]:
    if route.kind is Kind.REGION:  # asked by clients in the public cloud; here there is no nearer place
        return {"InternalRegionQueryAddress": ""}
    if route.kind is Kind.FILES:
        revision = folder.revision(route.model, route.revision)
        rows = listing_entries(revision, route.root, is_recursive=route.is_recursive)
        if route.root and not rows:
            raise NotThere(f"{route.revision} has no folder {route.root[:80]!r}")
        return {"Files": rows, "IsVisual": 0}
    revisions = folder.revisions(route.model)
    if route.kind is Kind.REVISIONS:
        return {"RevisionMap": _revision_map(revisions)}
    return {"Path": route.owner, "Name": route.model, "Revision": DEFAULT_REVISION}


def _model(route: Route, folder: HubFolder) -> dict[str, object]:
    folder.revisions(route.model)
    name = route.model
    names: dict[str, object] = {"id": f"{route.owner}/{name}", "owner": route.owner, "name": name, "display_name": name}
    return names | {"visibility": "public"}


def _revision_map(revisions: list[Revision]) -> dict[str, list[dict[str, object]]]:
    rows = [{"Revision": one.name, "CreatedAt": int(one.created_at.timestamp())} for one in revisions]
    return {
        "Branches": [row for row in rows if row["Revision"] in BRANCHES],
        "Tags": [row for row in rows if row["Revision"] not in BRANCHES],
    }


def _file(route: Route, request: Request, folder: HubFolder) -> Answer:
    if not route.name:
        raise Refused(HTTPStatus.BAD_REQUEST, "FilePath is missing")
    listed, file = folder.open(route.model, route.revision, route.name)
    try:
        etag = f'"{listed.sha256}"'
        headers = {"Content-Type": "application/octet-stream", "Accept-Ranges": "bytes", "ETag": etag}
        wanted = request.headers.get("range", "")
        asked = range_of(wanted, listed.size) if request.headers.get("if-range", etag) == etag else None
        if asked is None:
            return Answer(HTTPStatus.OK, headers, (Span(file, 0, listed.size),))
        first, count = asked
        headers["Content-Range"] = f"bytes {first}-{first + count - 1}/{listed.size}"
        return Answer(HTTPStatus.PARTIAL_CONTENT, headers, (Span(file, first, count),))
    except BaseException:
        file.close()
        raise


def _blob(file: BundleFile, revision: Revision) -> dict[str, object]:
    row = _row(file.name, "blob", revision)
    return row | {"Size": file.size, "Sha256": file.sha256, "IsLFS": file.size > _LARGE_BYTES, "Mode": "33188"}


def _tree(name: str, revision: Revision) -> dict[str, object]:
    return _row(name, "tree", revision) | {"Size": 0, "Sha256": "", "IsLFS": False, "Mode": "16384"}


def _row(path: str, kind: str, revision: Revision) -> dict[str, object]:
    committed = int(revision.created_at.timestamp())
    name = path.rpartition("/")[2]
    return {"Path": path, "Name": name, "Type": kind, "Revision": revision.name, "CommittedDate": committed}


def _enveloped(data: object, request_id: str, message: str = "success", refused: Refused | None = None) -> Answer:
    status = refused.status if refused else HTTPStatus.OK
    row = {
        "Code": status.value,
        "Data": data,
        "Message": message,
        "RequestId": request_id,
        "Success": refused is None,
    }
    return _json(row, status, refused.headers if refused else {})


def _json(
    row: Mapping[str, object], status: HTTPStatus = HTTPStatus.OK, more: Mapping[str, str] | None = None
) -> Answer:
    headers = {"Content-Type": "application/json; charset=utf-8", **(more or {})}
    return Answer(status, headers, (json.dumps(row, ensure_ascii=False).encode(),))


def _cookie(request: Request) -> str:
    try:
        found = SimpleCookie(request.headers.get("cookie", "")).get("m_session_id")
    except CookieError:
        return ""
    return found.value if found is not None else ""
