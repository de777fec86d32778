"""A hub on a real socket: serves a folder hub in ModelScope's protocol, and misbehaves on command.

What it does wrong is written to the socket by hand: a reset, a silence, an answer that is cut or never ends.
"""

import json
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

from common.source import MANIFEST_NAME

MODEL_ID = "acme/shapes"
LIMIT = 20.0  # until a thread of a test that hangs gives up


@dataclass(frozen=True, slots=True)
class ReceivedCall:
    """One request."""

    kind: str  # "revisions", "listing", "file", or "" for any other path
    target: str
    query: Mapping[str, str]
    headers: Mapping[str, str]  # names in lower case

    @property
    def range_begin(self) -> int:
        """Where the asked part begins."""
        return int(self.headers.get("range", "bytes=0-").removeprefix("bytes=").rstrip("-"))


@dataclass(slots=True)
class Exchange:
    """One request, and what would be answered if nothing went wrong."""

    connection: socket.socket
    asked: ReceivedCall
    status: int
    body: bytes
    headers: dict[str, str]
    closing: threading.Event  # the test is over

    def send(self, data: bytes) -> None:
        """Write."""
        self.connection.sendall(data)

    def head(self, **changed: str | None) -> bytes:
        """Status line and headers; underscores become dashes, None leaves a header out."""
        headers = {"Content-Length": str(len(self.body)), "Connection": "close", **self.headers}
        headers |= {name.replace("_", "-"): value for name, value in changed.items() if value is not None}
        left_out = {name.replace("_", "-") for name, value in changed.items() if value is None}
        lines = [f"{name}: {value}\r\n" for name, value in headers.items() if name not in left_out]
        return f"HTTP/1.1 {self.status} X\r\n{''.join(lines)}\r\n".encode()

    def answer(self) -> None:
        """As it should be."""
        self.send(self.head() + self.body)

    def reset(self) -> None:
        """End the connection by force."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


Act = Callable[[Exchange], None]


@dataclass(slots=True)
class Fault:
    """What happens instead of an answer."""

    act: Act
    kind: str = ""  # of requests that it befalls; empty: all
    times: int = 1
    name: str = ""  # of the file; empty: any

    def befalls(self, asked: ReceivedCall) -> bool:
        """Whether it is this one's turn."""
        return self.times > 0 and self.kind in ("", asked.kind) and self.name in ("", asked.query.get("FilePath"))


@dataclass(slots=True)
class ScriptedHub:
    """Serves `folder`/REVISION/… as tags of one model."""

    folder: Path
    context: ssl.SSLContext | None = None
    host: str = "127.0.0.1"
    tunnels_to: ssl.SSLContext | None = None  # a proxy that is the hub itself behind its tunnels
    tunnels: list[str] = field(default_factory=list)  # that were asked for
    branches: tuple[str, ...] = ()  # names that are listed as branches
    change_rows: Callable[[list[dict[str, Any]]], None] = lambda _: None  # of a listing
    token: str = ""  # demanded of every request
    commit: str = ""  # of every listing; empty: not told
    commits: dict[str, str] = field(default_factory=dict)  # of the listings of some revisions
    cut_at: int = 0  # rows after which a listing of files ends silently; 0: never
    pages: bool = False  # whether revisions come in pages
    ignores_range: bool = False
    faults: list[Fault] = field(default_factory=list)
    asked: list[ReceivedCall] = field(default_factory=list)
    taken: int = 0  # connections, whether they asked or not
    closing: threading.Event = field(default_factory=threading.Event)
    _listening: socket.socket = field(init=False)
    _threads: list[threading.Thread] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Listen and serve."""
        self._listening = socket.create_server((self.host, 0))
        self._start(self._accept)

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._listening.getsockname()[1])

    @property
    def url(self) -> str:
        """Its endpoint."""
        return f"{'https' if self.context else 'http'}://{self.host}:{self.port}"

    def fails(self, act: Act, kind: str = "", times: int = 1, name: str = "") -> None:
        """From now on this happens, so many times."""
        self.faults.append(Fault(act, kind, times, name))

    def of_kind(self, kind: str) -> list[ReceivedCall]:
        """Requests of one kind, in order."""
        return [one for one in self.asked if one.kind == kind]

    def __enter__(self) -> Self:
        """It serves already."""
        return self

    def __exit__(self, *_: object) -> None:
        """End it."""
        self.close()

    def close(self) -> None:
        """Stop answering."""
        self.closing.set()
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        for thread in self._threads:
            thread.join(LIMIT)

    # How it serves.

    def _start(self, target: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self.closing.is_set():
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            self.taken += 1
            self._start(self._serve, connection)

    def _serve(self, raw: socket.socket) -> None:
        raw.settimeout(LIMIT)
        connection = raw
        try:
            if self.context is not None:
                connection = self.context.wrap_socket(raw, server_side=True)
            asked = _read(connection)
            if asked is not None and self.tunnels_to is not None:
                self.tunnels.append(asked.target)
                connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                connection = self.tunnels_to.wrap_socket(connection, server_side=True)
                asked = _read(connection)
            if asked is not None:
                self.asked.append(asked)
                self._answer(connection, asked)
        except OSError:
            pass  # the other side has gone, as it may
        finally:
            connection.close()

    def _answer(self, connection: socket.socket, asked: ReceivedCall) -> None:
        status, body, headers = self._good(asked)
        exchange = Exchange(connection, asked, status, body, headers, self.closing)
        fault = next((one for one in self.faults if one.befalls(asked)), None)
        if fault is None:
            exchange.answer()
            return
        fault.times -= 1
        fault.act(exchange)

    def _good(self, asked: ReceivedCall) -> tuple[int, bytes, dict[str, str]]:
        if self.token and asked.headers.get("authorization") != f"Bearer {self.token}":
            return _json(403, {"Code": 403, "Message": f"no access with {asked.headers.get('authorization')}"})
        if asked.kind == "revisions":
            names = sorted(path.name for path in self.folder.iterdir()) if self.folder.is_dir() else []
            rows = [{"Revision": name, "CreatedAt": 1} for name in names]
            tags = [row for row in rows if row["Revision"] not in self.branches]
            branches = [row for row in rows if row["Revision"] in self.branches]
            if self.pages:
                size = int(asked.query["PageSize"])
                begin = (int(asked.query["PageNumber"]) - 1) * size
                data = {"Tags": tags[begin : begin + size], "Branches": branches}
                return _json(200, _whole({"RevisionMap": data, "TotalCount": len(rows)}))
            return _json(200, _whole({"RevisionMap": {"Tags": tags, "Branches": branches}}))
        place = self.folder / asked.query.get("Revision", "")
        if asked.kind == "listing" and place.is_dir():
            rows = json.loads((place / MANIFEST_NAME).read_bytes())["files"]
            files = [
                {"Path": row["name"], "Name": row["name"], "Type": "blob", "Size": row["size"], "Sha256": row["sha256"]}
                for row in rows
            ]
            files.append({"Path": "docs", "Name": "docs", "Type": "tree", "Size": 0, "Sha256": ""})
            self.change_rows(files)
            if asked.query.get("Recursive") == "False":
                files = [row for row in files if "/" not in row["Path"]]
            commit = self.commits.get(place.name, self.commit)
            latest = {"LatestCommitter": {"Id": commit, "ShortId": commit[:8]}} if commit else {}
            return _json(200, _whole({"Files": files[: self.cut_at or None], **latest}))
        file = place / asked.query.get("FilePath", "")
        if asked.kind == "file" and file.is_file():
            return self._part(file.read_bytes(), asked)
        return _json(404, {"Code": 10010205001, "Message": "record not found", "Success": False})

    def _part(self, content: bytes, asked: ReceivedCall) -> tuple[int, bytes, dict[str, str]]:
        begin, kind = asked.range_begin, {"Content-Type": "application/octet-stream"}
        if not begin or self.ignores_range:
            return 200, content, kind
        if begin >= len(content):
            return 416, b"", {"Content-Range": f"bytes */{len(content)}"}
        place = f"bytes {begin}-{len(content) - 1}/{len(content)}"
        return 206, content[begin:], {**kind, "Content-Range": place}


def _read(connection: socket.socket) -> ReceivedCall | None:
    head = b""
    while b"\r\n\r\n" not in head:
        more = connection.recv(65536)
        head += more
        if not more or not head[:1].isalpha():  # no HTTP: a hand that wants to be shaken, for example
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            return None
    first, *lines = head.partition(b"\r\n\r\n")[0].decode().split("\r\n")
    target = first.split(" ")[1]
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    parts = urlsplit(target)
    kinds = {"revisions": "revisions", "repo/files": "listing", "repo": "file"}
    kind = kinds.get(parts.path.partition(f"/api/v1/models/{MODEL_ID}/")[2], "")
    return ReceivedCall(kind, target, {name: values[0] for name, values in parse_qs(parts.query).items()}, headers)


def _whole(data: dict[str, Any]) -> dict[str, Any]:
    return {"Code": 200, "Data": data, "Message": "success", "Success": True}


def _json(status: int, row: dict[str, Any]) -> tuple[int, bytes, dict[str, str]]:
    return status, json.dumps(row).encode(), {"Content-Type": "application/json; charset=utf-8"}


# What can go wrong.


def says(status: int, body: bytes = b"", **headers: str) -> Act:
    """Answer with another status; underscores in names of headers become dashes."""

    def act(exchange: Exchange) -> None:
        exchange.status, exchange.body = status, body
        exchange.headers = {name.replace("_", "-"): value for name, value in headers.items()}
        exchange.answer()

    return act


def stalls_after(count: int) -> Act:
    """Fall silent after some bytes of the body."""

    def act(exchange: Exchange) -> None:
        exchange.send(exchange.head() + exchange.body[:count])
        exchange.closing.wait(LIMIT)

    return act


def stalls(exchange: Exchange) -> None:
    """Say nothing at all."""
    exchange.closing.wait(LIMIT)


def drips_head(exchange: Exchange) -> None:
    """Send headers for ever, a byte at a time: no single read is late."""
    exchange.send(b"HTTP/1.1 200 OK\r\nX-Slow: ")
    while not exchange.closing.wait(0.01):
        exchange.send(b"a")


def drips(exchange: Exchange) -> None:
    """Send the body a byte at a time: no single read is late."""
    exchange.send(exchange.head())
    for number in range(len(exchange.body)):
        exchange.send(exchange.body[number : number + 1])
        if exchange.closing.wait(0.01):
            return


def resets_after(count: int) -> Act:
    """End by force after some bytes of the body."""

    def act(exchange: Exchange) -> None:
        exchange.send(exchange.head() + exchange.body[:count])
        exchange.reset()

    return act


def truncates_after(count: int) -> Act:
    """End in good order after some bytes of the body, having promised all of it."""

    def act(exchange: Exchange) -> None:
        exchange.send(exchange.head() + exchange.body[:count])

    return act


def endless(exchange: Exchange) -> None:
    """Send chunks while the client reads."""
    exchange.send(exchange.head(Content_Length=None, Transfer_Encoding="chunked"))
    chunk = b"10000\r\n" + bytes(65536) + b"\r\n"
    while not exchange.closing.is_set():
        exchange.send(chunk)


def shows_page(exchange: Exchange) -> None:
    """A login page with a good status, as it is."""
    page = b"<p>Please log in"
    says(200, page, Content_Type="text/html; charset=utf-8")(exchange)


def shows_disguised_page(exchange: Exchange) -> None:
    """A login page with a good status that says that it is something else."""
    says(200, b"\n<HTML><body>Please log in</body></html>", Content_Type="application/octet-stream")(exchange)


def redirects_to(location: str, status: int = 302) -> Act:
    """Redirect; "TARGET" is replaced by the request's target."""

    def act(exchange: Exchange) -> None:
        says(status, b"", Location=location.replace("TARGET", exchange.asked.target))(exchange)

    return act
