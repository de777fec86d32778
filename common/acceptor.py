"""Takes connections on a thread of its own, between `start` and `stop`: for servers that answer one thread a caller."""

import select
import socket
import threading
from collections.abc import Callable

_BREATH_SECONDS = 0.05


class Acceptor:
    """One listening socket; from any thread."""

    def __init__(self, name: str, take: Callable[[socket.socket, str], None]) -> None:
        """Prepare; nothing listens yet.

        Args:
            name: of the thread.
            take: is given each connection, which it must close, and the peer's address; must not wait.
        """
        self._take = take
        self._stopping = threading.Event()
        self._listener: socket.socket | None = None
        self._thread = threading.Thread(target=self._accept, name=name, daemon=True)

    @property
    def is_stopping(self) -> bool:
        """Whether it was asked to end."""
        return self._stopping.is_set()

    @property
    def address(self) -> tuple[str, int]:
        """Host and port that it listens on.

        Raises:
            RuntimeError: it does not listen.
        """
        if self._listener is None:
            raise RuntimeError("nothing listens yet")
        host, port = self._listener.getsockname()[:2]
        return str(host), int(port)

    def start(self, host: str, port: int, backlog: int) -> None:
        """Listen; port 0 takes a free one. Once.

        Raises:
            OSError: the address is taken or not of this host.
        """
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, port), family=family, backlog=backlog)
        self._listener.setblocking(False)
        self._waker, self._waked = socket.socketpair()  # a byte in it ends the wait for the next connection
        self._thread.start()

    def stop(self, seconds: float) -> bool:
        """Listen no more.

        Args:
            seconds: to wait for the thread.

        Returns:
            Whether this call has ended it: not when it was never started, or is stopped already.
        """
        if self._listener is None or self._stopping.is_set():
            return False
        self._stopping.set()
        self._waker.send(b"x")
        self._thread.join(seconds)
        for end in (self._listener, self._waker, self._waked):
            end.close()
        return True

    def _accept(self) -> None:
        listener = self._listener
        if listener is None:
            raise RuntimeError("accepting before listening")
        while not self._stopping.is_set():
            select.select((listener, self._waked), (), ())
            try:
                connection, peer = listener.accept()
            except OSError:
                # Gone again before it was taken; or too many descriptors are open, which must not spin.
                self._stopping.wait(_BREATH_SECONDS)
                continue
            self._take(connection, str(peer[0]))
