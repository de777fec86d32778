"""One stream of the synchronous client: a queue of messages to send, a thread that receives."""

import queue
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

from hotslot_client.errors import HotslotError, Unavailable


class Event(NamedTuple):
    """What has happened on a stream."""

    exchange: "Exchange"
    response: bytes | None  # None: the stream has ended
    error: HotslotError | None = None  # None: it has ended with OK


class Exchange:
    """An open stream. Its events go to a queue, which may serve several streams, one after the other."""

    def __init__(
        self,
        call: Any,  # noqa: ANN401  gRPC's method
        inbox: "queue.SimpleQueue[Event]",
        timeout: float | None,
        metadata: tuple[tuple[str, str], ...],
        explain: Callable[[Exception], HotslotError],
    ) -> None:
        self._outbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._inbox = inbox
        self._explain = explain
        self._call: Any = call(iter(self._outbox.get, None), timeout=timeout, metadata=metadata)
        self._reader = threading.Thread(target=self._read, name="hotslot-stream", daemon=True)
        self._reader.start()

    def send(self, message: bytes) -> None:
        """Send a message; does not wait."""
        self._outbox.put(message)

    def half_close(self) -> None:
        """Nothing more will be sent."""
        self._outbox.put(None)

    def cancel(self) -> None:
        """End it."""
        self._outbox.put(None)  # releases gRPC's thread
        self._call.cancel()

    def _read(self) -> None:
        try:
            for response in self._call:
                self._inbox.put(Event(self, response))
        except Exception as error:  # noqa: BLE001  the thread that waits must be told, whatever it is
            self._inbox.put(Event(self, None, self._convert(error)))
        else:
            self._inbox.put(Event(self, None))

    def _convert(self, error: Exception) -> HotslotError:
        try:
            return self._explain(error)
        except Exception as unknown:  # noqa: BLE001
            return Unavailable(f"the stream broke: {unknown!r}")
