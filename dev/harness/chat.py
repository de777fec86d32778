"""A simulated chat: robots of WeCom, DingTalk and Feishu and a plain receiver, as their documents describe them."""

import base64
import hashlib
import hmac
import json
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

SECRET = "SEC-of-the-robot"  # noqa: S105  of a simulation
WECOM, DINGTALK, FEISHU, PLAIN = "/cgi-bin/webhook/send", "/robot/send", "/open-apis/bot/v2/hook/key", "/hook"
_WECOM_BYTES = 4096


@dataclass
class SimulatedChat:
    """What was posted, and what is answered: the next of `codes`, else 0."""

    messages: list[tuple[str, dict[str, Any]]] = field(default_factory=list)  # accepted: path and body
    codes: deque[int] = field(default_factory=deque)
    down: bool = False  # answers 502
    attempts: int = 0
    came: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    port: int = 0

    def url(self, path: str) -> str:
        """A robot's URL."""
        key = "key=robot-key" if path == WECOM else "access_token=robot-key"
        return f"http://127.0.0.1:{self.port}{path}?{key}"

    def texts(self) -> list[str]:
        """The Markdown of all accepted messages."""
        return [_text_of(row) for _, row in self.messages]

    def answer(self, target: str, body: bytes) -> tuple[int, dict[str, Any]]:
        """Status and body for a request."""
        self.attempts += 1
        parts, row = urlsplit(target), json.loads(body)
        if self.down:
            return 502, {}
        code = self.codes.popleft() if self.codes else _refuse(parts.path, parse_qs(parts.query), row)
        if code == 0:
            self.messages.append((parts.path, row))
        self.came.release()
        if parts.path == FEISHU:
            return 200, {"code": code, "msg": "success" if code == 0 else "refused", "data": {}}
        return (
            (204, {}) if parts.path == PLAIN else (200, {"errcode": code, "errmsg": "ok" if code == 0 else "refused"})
        )


@contextmanager
def simulated_chat() -> Iterator[SimulatedChat]:
    """A chat that listens while the block runs."""
    chat = SimulatedChat()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            status, row = chat.answer(self.path, body)
            content = b"" if status == 204 else json.dumps(row).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  http.server's name
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    chat.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield chat
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5.0)


def _refuse(path: str, query: dict[str, list[str]], row: dict[str, Any]) -> int:
    """The robot's code for a wrong message; 0 if it is accepted."""
    if path == WECOM:
        return 40058 if len(row["markdown"]["content"].encode()) > _WECOM_BYTES else 0
    if path == DINGTALK and "sign" in query:
        (stamp,), (sign,) = query["timestamp"], query["sign"]
        mac = hmac.new(SECRET.encode(), f"{stamp}\n{SECRET}".encode(), hashlib.sha256).digest()
        return 0 if base64.b64decode(sign) == mac else 310000
    if path == FEISHU and "sign" in row:
        mac = hmac.new(f"{row['timestamp']}\n{SECRET}".encode(), b"", hashlib.sha256).digest()
        return 0 if base64.b64decode(row["sign"]) == mac else 19021
    return 0


def _text_of(row: dict[str, Any]) -> str:
    if "card" in row:
        return str(row["card"]["elements"][0]["content"])
    if "markdown" in row:
        return str(row["markdown"].get("content") or row["markdown"]["text"])
    return str(row["text"])
