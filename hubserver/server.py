"""The server: one thread for each request that is being answered, up to a limit; further ones get 503 with Retry-After.

A connection takes no thread while it waits for its next request.
"""

import contextlib
import socket
import ssl
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus

from common.address import LOOPBACK, ListenAddress, join_host
from common.clock import Clock, SystemClock
from common.logs import Logger
from common.request_listener import HEAD_END, HeldConnection, ListenLimits, RequestListener
from hubserver.folder import HubFolder
from hubserver.handler import HubRequestHandler, ResponseHook
from hubserver.http import IDLE_SECONDS, MAX_HEAD_BYTES, REQUEST_SECONDS, ClientConnection, head_bytes

MAX_CONNECTIONS = 64
MAX_WAITING = 256  # connections that wait for their next request; beyond that the oldest ones are closed
MAX_TURNED_AWAY = 32  # of them being sent a 503
RETRY_SECONDS = 1
_STOP_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class HubServerOptions:
    """Address, access and limits of a hub server."""

    address: ListenAddress = LOOPBACK
    find_token: Callable[[str], str] | None = None  # the name of a token, empty if it is not valid; None: open to all
    max_connections: int = MAX_CONNECTIONS  # whose requests are answered at the same time
    tls: Callable[[], ssl.SSLContext] | None = None  # the context for a new connection


class HubServer:
    """Serves between `start` and `stop`; may be called from any thread."""

    def __init__(
        self,
        folder: HubFolder,
        options: HubServerOptions,
        log: Logger,
        hook: ResponseHook | None = None,
        clock: Clock | None = None,
    ) -> None:
        """Prepare; `start` listens.

        Args:
            folder: the models.
            options: address, access and limits.
            log: receives one event for each request.
            hook: alters responses.
            clock: measures the limits.
        """
        self._options = options
        self._log = log
        self._clock = clock or SystemClock()
        self._handler = HubRequestHandler(folder, options.find_token, log, hook)
        self._lock = threading.Lock()
        self._open: dict[threading.Thread, HeldConnection] = {}  # whose requests are being answered, oldest first
        limits = ListenLimits(MAX_WAITING, MAX_TURNED_AWAY, MAX_HEAD_BYTES, IDLE_SECONDS, REQUEST_SECONDS)
        self._listener = RequestListener("hub", self._take, limits, clock=self._clock, tls=options.tls)

    @property
    def url(self) -> str:
        """The server's URL.

        Raises:
            RuntimeError: it does not listen.
        """
        address = self._options.address
        host = address.host or "localhost"  # of a Unix socket
        return f"http{'s' if self._options.tls else ''}://{join_host(host, self._listener.port)}"

    def start(self) -> None:
        """Listen.

        Raises:
            ListenFailed: says what is wrong with the address.
        """
        self._listener.start(self._options.address)

    def stop(self) -> None:
        """Stop listening and abort running responses; harmless when repeated or never started."""
        if not self._listener.stop(_STOP_SECONDS):
            return
        with self._lock:
            left = list(self._open.items())
        for _, held in left:
            with contextlib.suppress(OSError):
                _shut_down(held.socket)
        ends = self._clock.monotonic() + _STOP_SECONDS
        for thread, _ in left:
            thread.join(max(0.0, ends - self._clock.monotonic()))

    def _take(self, held: HeldConnection) -> None:
        thread = threading.Thread(target=self._converse, args=(held,), name="hub-answer", daemon=True)
        with self._lock:
            has_place = len(self._open) < self._options.max_connections or self._make_room(held.peer)
            if has_place:
                self._open[thread] = held
        if has_place:
            try:
                thread.start()
            except RuntimeError:  # the system has no thread left; the client may try again
                with self._lock:
                    del self._open[thread]
                self._listener.close(held)
            return
        self._log.warning("connection_refused", client=held.peer, limit=self._options.max_connections)
        headers = {"Retry-After": str(RETRY_SECONDS), "Content-Length": "0"}
        self._listener.send(held, head_bytes(HTTPStatus.SERVICE_UNAVAILABLE, headers, keeps_alive=False))

    def _make_room(self, peer: str) -> bool:
        """End the newest response to the peer that has most, if `peer` has fewer; clients resume a download."""
        counts = Counter(held.peer for held in self._open.values())
        most, count = counts.most_common(1)[0]
        if count <= counts[peer] + 1:
            return False
        thread = next(thread for thread, held in reversed(self._open.items()) if held.peer == most)
        with contextlib.suppress(OSError):
            _shut_down(self._open.pop(thread).socket)
        return True

    def _converse(self, held: HeldConnection) -> None:
        connection = ClientConnection(held.socket, self._clock, bytes(held.received))
        stays_open = False
        try:
            stays_open = self._handler.serve(
                connection, held.peer, lambda: HEAD_END in connection.received and not self._listener.is_stopping
            )
        except OSError as error:
            # The client is gone or too slow: its own business.
            self._log.debug("connection_ended", client=held.peer, reason=str(error))
        finally:
            with self._lock:
                stays_open &= self._open.pop(threading.current_thread(), None) is not None
            if stays_open:
                self._listener.wait_again(held, connection.received)
            else:
                self._listener.close(held)


def _shut_down(connection: socket.socket) -> None:
    """End a connection on which another thread may be sending.

    `ssl.SSLSocket.shutdown` first forgets the encryption, and what that thread sends next would leave in plain text.
    """
    socket.socket.shutdown(connection, socket.SHUT_RDWR)
