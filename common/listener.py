"""A listener that accepts connections on its own thread, for servers with one thread per connection."""

import contextlib
import socket
import threading
from collections.abc import Callable

from common.address import ListenAddress, open_listener

_RETRY_SECONDS = 0.05


class Listener:
    """Listens between `start` and `stop` and passes each connection to a callback; from any thread."""

    def __init__(self, name: str, on_connection: Callable[[socket.socket, str], None]) -> None:
        """Does not listen yet.

        Args:
            name: of the accepting thread.
            on_connection: receives each connection, which it must close, and the peer's address; must not block.
        """
        self._on_connection = on_connection
        self._stopping = threading.Event()
        self._socket: socket.socket | None = None
        self._thread = threading.Thread(target=self._accept, name=name, daemon=True)

    @property
    def is_stopping(self) -> bool:
        """Whether `stop` was called."""
        return self._stopping.is_set()

    @property
    def port(self) -> int:
        """The port it listens on; 0 for a Unix socket.

        Raises:
            RuntimeError: it does not listen.
        """
        if self._socket is None:
            raise RuntimeError("the listener was not started")
        return 0 if self._socket.family == socket.AF_UNIX else int(self._socket.getsockname()[1])

    def start(self, address: ListenAddress, backlog: int) -> None:
        """Listen; port 0 takes a free one. At most once.

        Raises:
            ListenFailed: says what is wrong with the address.
        """
        self._socket = open_listener(address, backlog)
        self._thread.start()

    def stop(self, seconds: float) -> bool:
        """Stop listening.

        Args:
            seconds: longest wait for the accepting thread.

        Returns:
            Whether this call stopped it; false if it was never started or is stopped already.
        """
        if self._socket is None or self._stopping.is_set():
            return False
        self._stopping.set()
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes accept()
        self._thread.join(seconds)
        self._socket.close()
        return True

    def _accept(self) -> None:
        while self._socket is not None and not self._stopping.is_set():
            try:
                connection, peer = self._socket.accept()
            except OSError:
                # The peer is gone already, or no descriptor is free; the pause keeps this loop from spinning.
                self._stopping.wait(_RETRY_SECONDS)
                continue
            self._on_connection(connection, str(peer[0]) if peer else "unix")
