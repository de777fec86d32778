"""Sends spans to an OTLP collector over gRPC, from a thread of its own; never blocks who records them."""

import platform
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Generic, TypeVar

import grpc

from common.durable import read_bounded
from common.logs import Logger
from common.traces import encode_export

METHOD = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
MAX_WAITING = 5000  # calls or steps with their spans; further ones are dropped
MAX_WAITING_ITEMS = 20_000  # of these calls: about 300 bytes each
MAX_ENCODED = 100  # calls and items, at once: other threads wait meanwhile, for a quarter of a millisecond
PAUSE_SECONDS = 0.001  # between two times, in which other threads run
MAX_REQUEST_BYTES = 2 << 20  # of spans; with the last ones encoded, far below the 4 MiB that a collector takes
EVERY_SECONDS = 1.0
SEND_SECONDS = 5.0
_MAX_PEM_BYTES = 1 << 20


T = TypeVar("T")


class SpanExporter(Generic[T]):
    """A bounded queue of what spans are made of, and the thread that sends them, between `start` and `stop`."""

    def __init__(
        self,
        endpoint: str,
        ca_file: Path | None,
        service: Mapping[str, str],
        log: Logger,
        encode: Callable[[Sequence[T]], bytes],
        count_items: Callable[[T], int] | None = None,
    ) -> None:
        """Connect to nothing yet.

        Args:
            endpoint: HOST:PORT of the collector.
            ca_file: CA certificates; None: without TLS.
            service: attributes of the resource.
            log: gets a line when spans cannot be sent, and one when they can again.
            encode: makes the spans of calls or steps, on the exporter's thread.
            count_items: of a call; None: there are none.
        """
        self._endpoint, self._ca_file, self._log, self._encode = endpoint, ca_file, log, encode
        self._service = {**service, "host.name": platform.node(), "telemetry.sdk.name": "hotslot"}
        self._count_items = count_items
        self._lock = threading.Lock()  # of the next three; held for a few additions
        self._waiting: deque[tuple[T, int]] = deque()  # with the number of items
        self._waiting_items = 0
        self.dropped = 0  # calls or steps whose spans were not sent
        self._is_failing = False
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="spans", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Send what waits, once, and stop."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join(SEND_SECONDS)

    def put(self, spans: T) -> None:
        """Queue the spans of a call or step, or drop them; from any thread."""
        items = self._count_items(spans) if self._count_items is not None else 0
        with self._lock:
            if len(self._waiting) >= MAX_WAITING or self._waiting_items + items > MAX_WAITING_ITEMS:
                self.dropped += 1
            else:
                self._waiting.append((spans, items))
                self._waiting_items += items

    def _run(self) -> None:
        try:
            channel = self._open()
        except OSError as error:
            self._log.error("traces_unusable", detail=str(error))
            return
        with channel:
            export: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(METHOD, _as_is, _as_is)
            while True:
                ended = self._stopping.wait(EVERY_SECONDS)
                while self._waiting:
                    self._send_batch(export)
                if ended:
                    return

    def _send_batch(self, export: "grpc.UnaryUnaryMultiCallable[bytes, bytes]") -> None:
        """Encode and send what waits, up to MAX_REQUEST_BYTES and the part that reaches them."""
        parts: list[bytes] = []
        size = count = 0
        try:
            while size < MAX_REQUEST_BYTES and (taken := self._take()):
                if count:
                    self._stopping.wait(PAUSE_SECONDS)
                count += len(taken)
                parts.append(self._encode(taken))
                size += len(parts[-1])
            export(encode_export(b"".join(parts), self._service), timeout=SEND_SECONDS)
        except grpc.RpcError as error:
            self._report_dropped(count, error.code().name if isinstance(error, grpc.Call) else "UNKNOWN")
        except Exception as error:  # noqa: BLE001  a mistake in one batch is no reason to send no more
            self._report_dropped(count, "INTERNAL", detail=repr(error)[:500])
        else:
            if self._is_failing:
                self._log.info("traces_delivered", dropped=self.dropped)
            self._is_failing = False

    def _take(self) -> list[T]:
        """The next calls or steps, with their items MAX_ENCODED at most, but one at least; empty if none wait."""
        taken: list[T] = []
        size = 0
        with self._lock:
            while self._waiting and (not taken or size + 1 + self._waiting[0][1] <= MAX_ENCODED):
                spans, items = self._waiting.popleft()
                self._waiting_items -= items
                size += 1 + items
                taken.append(spans)
        return taken

    def _report_dropped(self, count: int, reason: str, **more: str) -> None:
        with self._lock:
            self.dropped += count
        if not self._is_failing:
            self._log.warning("traces_not_delivered", reason=reason, calls=count, **more)
        self._is_failing = True

    def _open(self) -> grpc.Channel:
        options = [("grpc.enable_http_proxy", 0)]
        if self._ca_file is None:
            return grpc.insecure_channel(self._endpoint, options=options)
        credentials = grpc.ssl_channel_credentials(read_bounded(self._ca_file, _MAX_PEM_BYTES))
        return grpc.secure_channel(self._endpoint, credentials, options=options)


def _as_is(content: bytes) -> bytes:
    return content
