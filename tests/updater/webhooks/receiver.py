"""A local receiver of webhooks with configured responses."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

OK = b"HTTP/1.1 204 No Content\r\n\r\n"


@dataclass
class Request:
    """What came."""

    line: str
    headers: dict[str, str]
    body: bytes


@dataclass
class LocalReceiver:
    """Answers each request with the next of `answers`, the last one for ever."""

    port: int
    answers: list[bytes | Callable[[socket.socket], None]] = field(default_factory=lambda: [OK])
    greeting: bytes = b""  # sent before anything is read; then the connection is closed
    requests: list[Request] = field(default_factory=list)
    came: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    def url(self, path: str = "/hook") -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self.port}{path}"

    def serve(self, listener: socket.socket) -> None:
        """ReceiverResponse until the listener is closed."""
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with connection, suppress(OSError):
                    connection.settimeout(10.0)
                    self._answer(connection)

    def _answer(self, connection: socket.socket) -> None:
        if self.greeting:
            connection.sendall(self.greeting)
            return
        with connection.makefile("rb") as reader:
            line = reader.readline().decode(errors="replace").strip()
            headers: dict[str, str] = {}
            while header := reader.readline().decode(errors="replace").strip():
                key, _, value = header.partition(": ")
                headers[key] = value
            length = int(headers.get("Content-Length", "0"))
            body = reader.read(length)
            if len(body) < length:
                return  # its sender has ended
            self.requests.append(Request(line, headers, body))
            answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
            if isinstance(answer, bytes):
                connection.sendall(answer)
            else:
                answer(connection)
            self.came.release()


@contextmanager
def receiving() -> Iterator[LocalReceiver]:
    """A receiver for a test."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        receiver = LocalReceiver(listener.getsockname()[1])
        thread = threading.Thread(target=receiver.serve, args=(listener,), daemon=True)
        thread.start()
        try:
            yield receiver
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(10.0)
