"""A listener whose one thread accepts connections, waits for their requests and sends answers; it never blocks on one.

A connection takes a thread only once its request is complete, so clients that connect and send nothing, send slowly, or
do not read their answer cost a socket each and keep nobody else waiting:

 1. A request is complete within `request_seconds` after the connection was opened, or the connection is closed; an
    answer is read within `answer_seconds`.
 2. At most `max_connections` are open, and at most `max_answers` are being sent. Beyond that the peer that has most of
    them loses its oldest one: a client that sends its request when it connects is served however many others wait.
"""

import contextlib
import enum
import itertools
import selectors
import socket
import ssl
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from common import logs
from common.address import ListenAddress, open_listener
from common.clock import Clock, SystemClock
from common.failure_log import FailureLog

HEAD_END = b"\r\n\r\n"
BACKLOG = 1024  # the system turns a client away, for a second, when more wait to be accepted
_RETRY_SECONDS = 0.05
_SWEEP_SECONDS = 0.25  # between two looks for connections whose time is over
_MAX_ACCEPTED = 64  # at once, before the open connections have their turn
_PIECE_BYTES = 64 * 1024
_HEAD_PIECE = 16 * 1024  # what is left unread of a request that is too large would reset the answer


@dataclass(frozen=True, slots=True)
class ListenLimits:
    """How much a listener holds for its clients."""

    max_connections: int = 64  # that wait for the rest of a request, or are being sent an answer
    max_answers: int = 16  # of them being sent
    max_head_bytes: int = 8 * 1024
    request_seconds: float = 5.0
    answer_seconds: float = 5.0


class _Phase(enum.Enum):
    HANDSHAKE = enum.auto()
    RECEIVING = enum.auto()
    ANSWERING = enum.auto()  # somebody else has it
    SENDING = enum.auto()


@dataclass(eq=False, slots=True)
class HeldConnection:
    """An open connection. While its request is being answered it belongs to whoever got it."""

    socket: socket.socket
    peer: str  # its address; "unix" for a Unix socket
    number: int  # in the order of their arrival
    deadline: float
    phase: _Phase = _Phase.RECEIVING
    received: bytearray = field(default_factory=bytearray)
    expected_bytes: int = 0  # of the request; 0: its head is not complete
    unsent: memoryview = field(default_factory=lambda: memoryview(b""))


class Countable(Protocol):
    """A connection as `choose_surplus` sees it."""

    peer: str
    number: int  # the lowest is the oldest


C = TypeVar("C", bound=Countable)


def choose_surplus(connections: Iterable[C]) -> C:
    """The connection to close when there are too many: the oldest one of the peer that has most."""
    rows = list(connections)
    counts = Counter(row.peer for row in rows)
    most = max(counts.values())
    return min((row for row in rows if counts[row.peer] == most), key=lambda row: row.number)


class RequestListener:
    """Listens between `start` and `stop`; from any thread."""

    def __init__(
        self,
        name: str,
        on_request: Callable[[HeldConnection], None],
        limits: ListenLimits,
        *,
        clock: Clock | None = None,
        tls: Callable[[], ssl.SSLContext] | None = None,
        measure_body: Callable[[bytes], int] = lambda _: 0,
    ) -> None:
        """Does not listen yet.

        Args:
            name: of the thread.
            on_request: receives each connection whose request is complete, too large, or cut off by its client's end;
                answers it by `send`, gives it back by `wait_again`, or closes it by `close`. Must not block.
            limits: of time and number.
            clock: measures the time.
            tls: the context for a new connection; None: none.
            measure_body: the bytes that follow a complete head.
        """
        self._on_request, self._limits = on_request, limits
        self._clock, self._tls, self._measure_body = clock or SystemClock(), tls, measure_body
        self._stopping = threading.Event()
        self._socket: socket.socket | None = None
        self._thread = threading.Thread(target=self._run, name=f"{name}-listener", daemon=True)
        self._failures = FailureLog(f"{name}-listener", logs.get_logger(), self._clock)
        self._held: dict[HeldConnection, None] = {}  # all that are in the selector, oldest first
        self._numbers = itertools.count()
        self._swept_at = 0.0
        self._given_back: deque[HeldConnection] = deque()  # by other threads
        self._wake: tuple[socket.socket, socket.socket] | None = None  # the thread waits for the first one

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

    def start(self, address: ListenAddress) -> None:
        """Listen; port 0 takes a free one. At most once.

        Raises:
            ListenFailed: says what is wrong with the address.
        """
        self._socket = open_listener(address, BACKLOG)
        self._socket.setblocking(False)
        self._wake = reader, writer = socket.socketpair()
        reader.setblocking(False)
        writer.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._socket, selectors.EVENT_READ, self._accept)
        self._selector.register(reader, selectors.EVENT_READ, self._take_all_back)
        self._thread.start()

    def stop(self, seconds: float) -> bool:
        """Stop listening and close the connections that nobody is answering.

        Args:
            seconds: longest wait for the thread.

        Returns:
            Whether this call stopped it; false if it was never started or is stopped already.
        """
        if self._socket is None or self._stopping.is_set():
            return False
        self._stopping.set()
        self._wake_thread()
        self._thread.join(seconds)
        return True

    def send(self, connection: HeldConnection, content: bytes) -> None:
        """Send an answer, then close the connection."""
        connection.unsent = memoryview(content)
        self._hold(connection, _Phase.SENDING, self._limits.answer_seconds)

    def wait_again(self, connection: HeldConnection, received: bytes) -> None:
        """Wait for another request of a connection, of which some bytes are there."""
        connection.received, connection.expected_bytes = bytearray(received), 0
        self._hold(connection, _Phase.RECEIVING, self._limits.request_seconds)

    def close(self, connection: HeldConnection) -> None:
        """Close a connection that was not given back."""
        connection.socket.close()

    def _hold(self, connection: HeldConnection, phase: _Phase, seconds: float) -> None:
        if self._stopping.is_set():
            connection.socket.close()
            return
        connection.phase = phase
        connection.deadline = self._clock.monotonic() + seconds
        self._given_back.append(connection)
        self._wake_thread()

    def _wake_thread(self) -> None:
        if self._wake is not None:
            with contextlib.suppress(OSError):  # it is awake, or has ended
                self._wake[1].send(b"x")

    def _run(self) -> None:
        while not self._stopping.is_set():
            with self._failures:
                for key, _ in self._selector.select(_SWEEP_SECONDS if self._held else None):
                    if isinstance(key.data, HeldConnection):
                        self._advance(key.data)
                    else:
                        key.data()
                self._sweep()
        self._end()

    def _end(self) -> None:
        for connection in (*self._held, *self._given_back):
            connection.socket.close()
        for end in (self._selector, self._socket, *(self._wake or ())):
            if end is not None:
                end.close()

    def _take_all_back(self) -> None:
        if self._wake is not None:
            with contextlib.suppress(BlockingIOError):
                while self._wake[0].recv(4096):
                    pass
        while self._given_back:
            self._take_back(self._given_back.popleft())

    def _sweep(self) -> None:
        now = self._clock.monotonic()
        if now - self._swept_at >= _SWEEP_SECONDS:
            self._swept_at = now
            for connection in [row for row in self._held if row.deadline <= now]:
                self._drop(connection)

    def _accept(self) -> None:
        for _ in range(_MAX_ACCEPTED):
            try:
                accepted, peer = self._socket.accept()  # type: ignore[union-attr]
            except BlockingIOError:
                return
            except OSError:
                # The peer is gone already, or no descriptor is free: the pause keeps this loop from spinning.
                if self._held:
                    self._drop(choose_surplus(self._held))
                self._stopping.wait(_RETRY_SECONDS)
                return
            self._open(accepted, str(peer[0]) if peer else "unix")

    def _open(self, accepted: socket.socket, peer: str) -> None:
        deadline = self._clock.monotonic() + self._limits.request_seconds
        try:
            accepted.setblocking(False)
            if accepted.family != socket.AF_UNIX:
                accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection = HeldConnection(accepted, peer, next(self._numbers), deadline)
            if self._tls is not None:
                connection.phase = _Phase.HANDSHAKE
                connection.socket = self._tls().wrap_socket(accepted, server_side=True, do_handshake_on_connect=False)
        except OSError:
            accepted.close()
            return
        self._register(connection)
        self._advance(connection)

    def _take_back(self, connection: HeldConnection) -> None:
        try:
            connection.socket.setblocking(False)
        except OSError:
            connection.socket.close()
            return
        self._register(connection)
        self._advance(connection)

    def _register(self, connection: HeldConnection) -> None:
        sending = [row for row in self._held if row.phase is _Phase.SENDING]
        if connection.phase is _Phase.SENDING and len(sending) >= self._limits.max_answers:
            self._drop(choose_surplus(sending))
        elif len(self._held) >= self._limits.max_connections:
            self._drop(choose_surplus(self._held))
        self._held[connection] = None
        self._selector.register(connection.socket, selectors.EVENT_READ, connection)

    def _release(self, connection: HeldConnection) -> None:
        if connection in self._held:
            del self._held[connection]
            self._selector.unregister(connection.socket)

    def _drop(self, connection: HeldConnection) -> None:
        """Close a connection, whoever has it."""
        self._release(connection)
        connection.socket.close()

    def _advance(self, connection: HeldConnection) -> None:
        """Go on with a connection as far as that is possible without waiting."""
        if connection not in self._held:
            return  # dropped in this round
        try:
            if connection.phase is _Phase.HANDSHAKE and isinstance(connection.socket, ssl.SSLSocket):
                connection.socket.do_handshake()
                connection.phase = _Phase.RECEIVING
            if connection.phase is _Phase.SENDING:
                self._send_more(connection)
            elif self._receive_more(connection):
                self._release(connection)
                connection.phase = _Phase.ANSWERING
                self._on_request(connection)
        except (BlockingIOError, ssl.SSLWantReadError):
            waits_to_send = connection.phase is _Phase.SENDING and not isinstance(connection.socket, ssl.SSLSocket)
            self._watch(connection, selectors.EVENT_WRITE if waits_to_send else selectors.EVENT_READ)
        except ssl.SSLWantWriteError:
            self._watch(connection, selectors.EVENT_WRITE)
        except OSError:
            self._drop(connection)  # the client is gone, or speaks no TLS
        except Exception:
            self._drop(connection)
            raise

    def _watch(self, connection: HeldConnection, events: int) -> None:
        if self._selector.get_key(connection.socket).events != events:
            self._selector.modify(connection.socket, events, connection)

    def _receive_more(self, connection: HeldConnection) -> bool:
        """Whether there is something to answer: a whole request, too much, or a part whose client sends no more.

        Raises:
            OSError: nothing more has arrived, or the client is gone.
        """
        while not self._is_complete(connection):
            wanted = connection.expected_bytes - len(connection.received) if connection.expected_bytes else _HEAD_PIECE
            part = connection.socket.recv(min(wanted, _PIECE_BYTES))
            if not part:
                if not connection.received:
                    raise ConnectionAbortedError("nothing was asked")
                return True
            connection.received += part
        return True

    def _is_complete(self, connection: HeldConnection) -> bool:
        received = connection.received
        if not connection.expected_bytes:
            end = received.find(HEAD_END, 0, self._limits.max_head_bytes + len(HEAD_END))
            if end < 0:
                return len(received) > self._limits.max_head_bytes
            head = bytes(received[: end + len(HEAD_END)])
            connection.expected_bytes = len(head) + self._measure_body(head)
        return len(received) >= connection.expected_bytes

    def _send_more(self, connection: HeldConnection) -> None:
        """Send what is left, and close the connection then.

        Raises:
            OSError: the client does not take more now, or is gone.
        """
        while connection.unsent:
            sent = connection.socket.send(connection.unsent[:_PIECE_BYTES])
            connection.unsent = connection.unsent[sent:]
        with contextlib.suppress(OSError):  # a close with unread input would reset the answer
            connection.socket.recv(_PIECE_BYTES)
        self._drop(connection)
