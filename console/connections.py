"""Browsers' connections: how many there may be, and how long one may keep the console waiting.

1. A request's head is complete HEAD_SECONDS after the connection was opened, or after its first byte on one that was
used before; of a form something arrives every STALL_SECONDS. Of an answer the client reads MIN_READ_BYTES in each
STALL_SECONDS, or all that is left, also when the answer is complete or the connection is being closed: until it is
read, it is held in memory. All clients together leave at most MAX_UNREAD_BYTES unread.
2. At most MAX_CONNECTIONS are open. Beyond that one is closed that waits for its client: of the peer that has most of
these, the one that has been silent longest. A browser that sends its request when it connects is served, however
many others wait.
"""

import asyncio
import itertools
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from common.request_listener import choose_surplus

MAX_CONNECTIONS = 512
HEAD_SECONDS = 10.0
STALL_SECONDS = 30.0
MIN_READ_BYTES = 64 << 10
MAX_UNREAD_BYTES = 256 << 20


class BoundedProtocol(H11Protocol):
    """uvicorn's protocol with these limits."""

    max_connections = MAX_CONNECTIONS
    max_unread_bytes = MAX_UNREAD_BYTES
    _numbers = itertools.count()

    def __init__(
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        """See uvicorn."""
        super().__init__(config, server_state, app_state, _loop)
        self.peer = ""
        self.number = 0  # of its last sign of life, among all connections
        self._timer: asyncio.TimerHandle | None = None
        self._waits_for_head = False
        self._read_timer: asyncio.TimerHandle | None = None
        self._unread = 0  # bytes in the transport's buffer when the present STALL_SECONDS began
        self._has_read = False  # much since then: the buffer was almost empty, even if it is full again

    @property
    def waits_for_client(self) -> bool:
        """Whether it goes on only when the client sends or reads something."""
        cycle = self.cycle
        if cycle is None or cycle.response_complete or self.transport.is_closing():
            return True
        return cycle.more_body or self.flow.write_paused

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        """Take a connection in, and close another one if there are too many."""
        super().connection_made(transport)
        self.peer, self.number = self.client[0] if self.client else "", next(self._numbers)
        self._watch_head()
        if len(self.connections) > self.max_connections:
            waiting = [row for row in self.connections if isinstance(row, BoundedProtocol) and row.waits_for_client]
            choose_surplus(waiting).drop()  # this one waits, too

    def data_received(self, data: bytes) -> None:
        """Go on with a request."""
        self.number = next(self._numbers)
        super().data_received(data)
        if not self.transport.is_closing():
            self._watch()

    def on_response_complete(self) -> None:
        """Wait for another request; uvicorn limits how long for its first byte, but not how long the answer is read."""
        self._cancel()
        super().on_response_complete()
        self._watch_reading()
        if not self.cycle.response_complete:  # the next request was here already
            self._watch()

    def pause_writing(self) -> None:
        """Wait until the client reads."""
        super().pause_writing()
        self._cancel_reading()  # of the answer before
        self._watch_reading()
        self._bound_unread()

    def resume_writing(self) -> None:
        """Go on sending."""
        super().resume_writing()
        self._has_read = True

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._cancel()
        self._cancel_reading()
        super().connection_lost(exc)

    def drop(self) -> None:
        """Close it now; what was not sent is lost."""
        self._cancel()
        self._cancel_reading()
        self.connections.discard(self)  # the transport says so only later
        self.transport.abort()

    def _watch(self) -> None:
        cycle = self.cycle
        if cycle is None or cycle.response_complete:
            self._watch_head()
            return
        self._cancel()
        if cycle.more_body:
            self._timer = self.loop.call_later(STALL_SECONDS, self.drop)

    def _watch_reading(self) -> None:
        """Begin to check that the client reads, unless all was sent or that is checked already."""
        if self._read_timer is None and (unread := self.transport.get_write_buffer_size()):
            self._unread, self._has_read = unread, False
            self._read_timer = self.loop.call_later(STALL_SECONDS, self._check_reading)

    def _bound_unread(self) -> None:
        """Drop large answers, those of the peer that has most first, until the others fit."""
        rows = [row for row in self.connections if isinstance(row, BoundedProtocol) and row.flow.write_paused]
        sizes = {row: row.transport.get_write_buffer_size() for row in rows}
        while sum(sizes.values()) > self.max_unread_bytes:
            row = choose_surplus(sizes)
            del sizes[row]
            row.drop()

    def _check_reading(self) -> None:
        self._read_timer = None
        unread = self.transport.get_write_buffer_size()
        has_read = self._has_read or unread <= max(0, self._unread - MIN_READ_BYTES)
        # While the console adds to the buffer, the buffer's size does not tell what was read; it is small then.
        if self.waits_for_client and not has_read:
            self.drop()
        else:
            self._watch_reading()

    def _watch_head(self) -> None:
        """Begin to wait for a head, unless that is what it does already: further bytes do not prolong it."""
        if not self._waits_for_head:
            self._cancel()
            self._waits_for_head, self._timer = True, self.loop.call_later(HEAD_SECONDS, self.drop)

    def _cancel(self) -> None:
        self._waits_for_head = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _cancel_reading(self) -> None:
        if self._read_timer is not None:
            self._read_timer.cancel()
            self._read_timer = None
