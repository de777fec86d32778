"""The server: one thread for each connection, up to a limit; further connections get 503 with Retry-After."""

import contextlib
import socket
import ssl
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus

from common.address import LOOPBACK, ListenAddress, join_host
from common.clock import Clock, SystemClock
from common.listener import Listener
from common.logs import Logger
from hubserver.folder import HubFolder
from hubserver.handler import HubRequestHandler, ResponseHook
from hubserver.http import REQUEST_SECONDS, ClientConnection, head_bytes

MAX_CONNECTIONS = 64
MAX_TURNED_AWAY = 32  # connections that have been answered with 503 and may still be read by the other side
BACKLOG = 128
RETRY_SECONDS = 1
_STOP_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class HubServerOptions:
    """Address, access and limits of a hub server."""

    address: ListenAddress = LOOPBACK
    find_token: Callable[[str], str] | None = None  # the name of a token, empty if it is not valid; None: open to all
    max_connections: int = MAX_CONNECTIONS
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
        self._open: dict[threading.Thread, socket.socket] = {}
        self._turned_away: deque[socket.socket] = deque()  # used only by the accepting thread until it has ended
        self._listener = Listener("hub-listener", self._take)

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
        self._listener.start(self._options.address, BACKLOG)

    def stop(self) -> None:
        """Stop listening and abort running responses; harmless when repeated or never started."""
        if not self._listener.stop(_STOP_SECONDS):
            return
        with self._lock:
            left = list(self._open.items())
        for _, connection in left:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        ends = self._clock.monotonic() + _STOP_SECONDS
        for thread, _ in left:
            thread.join(max(0.0, ends - self._clock.monotonic()))
        for connection in self._turned_away:
            connection.close()

    def _take(self, connection: socket.socket, client: str) -> None:
        thread = threading.Thread(target=self._converse, args=(connection, client), name="hub-answer", daemon=True)
        with self._lock:
            is_full = len(self._open) >= self._options.max_connections
            if not is_full:
                self._open[thread] = connection
        if not is_full:
            try:
                thread.start()
            except RuntimeError:  # the system has no thread left; the client may try again
                with self._lock:
                    del self._open[thread]
                connection.close()
            return
        self._log.warning("connection_refused", client=client, limit=self._options.max_connections)
        self._turn_away(connection)

    def _turn_away(self, connection: socket.socket) -> None:
        """Send 503 with Retry-After. The socket is closed later: a close with unread input would reset the response."""
        headers = {"Retry-After": str(RETRY_SECONDS), "Content-Length": "0"}
        with contextlib.suppress(OSError):
            connection.setblocking(False)
            connection.send(head_bytes(HTTPStatus.SERVICE_UNAVAILABLE, headers, keeps_alive=False))
            connection.shutdown(socket.SHUT_WR)
        self._turned_away.append(connection)
        if len(self._turned_away) > MAX_TURNED_AWAY:
            self._turned_away.popleft().close()

    def _converse(self, connection: socket.socket, client: str) -> None:
        thread = threading.current_thread()
        try:
            with self._secured(connection, thread) as secured:
                if isinstance(secured, ssl.SSLSocket):
                    secured.do_handshake()
                self._handler.serve(
                    ClientConnection(secured, self._clock), client, lambda: not self._listener.is_stopping
                )
        except OSError as error:
            # The client is gone, too slow, or speaks no TLS: its own business.
            self._log.debug("connection_ended", client=client, reason=str(error))
        finally:
            with self._lock:
                del self._open[thread]
            connection.close()

    def _secured(self, connection: socket.socket, thread: threading.Thread) -> socket.socket:
        connection.settimeout(REQUEST_SECONDS)
        if connection.family != socket.AF_UNIX:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._options.tls is None:
            return connection
        context = self._options.tls()
        with self._lock:  # `stop` finds the one socket or the other, and ends a handshake too
            secured = context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
            self._open[thread] = secured
        return secured
