"""Sends spans to an OTLP collector over gRPC, from a thread of its own; never blocks who records them."""

import platform
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Generic, TypeVar

import grpc

from common.durable import read_bounded
from common.logs import Logger
from common.traces import encode_export

METHOD = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
MAX_WAITING = 5000  # calls or steps with their spans; further ones are dropped
MAX_SENT = 500  # of these, in one request
MAX_ENCODED = 50  # of these, at once: other threads wait meanwhile, for a quarter of a millisecond
PAUSE_SECONDS = 0.001  # between two times, in which other threads run
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
    ) -> None:
        """Connect to nothing yet.

        Args:
            endpoint: HOST:PORT of the collector.
            ca_file: CA certificates; None: without TLS.
            service: attributes of the resource.
            log: gets a line when spans cannot be sent, and one when they can again.
            encode: makes the spans of calls or steps, on the exporter's thread.
        """
        self._endpoint, self._ca_file, self._log, self._encode = endpoint, ca_file, log, encode
        self._service = {**service, "host.name": platform.node(), "telemetry.sdk.name": "hotslot"}
        self._waiting: list[T] = []
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
        if len(self._waiting) >= MAX_WAITING:
            self.dropped += 1
        else:
            self._waiting.append(spans)

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
                    spans, self._waiting = self._waiting, []
                    for first in range(0, len(spans), MAX_SENT):
                        batch = spans[first : first + MAX_SENT]
                        self._send(export, encode_export(self._encode_in_parts(batch), self._service), len(batch))
                if ended:
                    return

    def _encode_in_parts(self, spans: Sequence[T]) -> bytes:
        parts = []
        for first in range(0, len(spans), MAX_ENCODED):
            if first:
                self._stopping.wait(PAUSE_SECONDS)
            parts.append(self._encode(spans[first : first + MAX_ENCODED]))
        return b"".join(parts)

    def _send(self, export: "grpc.UnaryUnaryMultiCallable[bytes, bytes]", request: bytes, count: int) -> None:
        try:
            export(request, timeout=SEND_SECONDS)
        except grpc.RpcError as error:
            self.dropped += count
            if not self._is_failing:
                code = error.code().name if isinstance(error, grpc.Call) else "UNKNOWN"
                self._log.warning("traces_not_delivered", reason=code, calls=count)
            self._is_failing = True
        else:
            if self._is_failing:
                self._log.info("traces_delivered", dropped=self.dropped)
            self._is_failing = False

    def _open(self) -> grpc.Channel:
        options = [("grpc.enable_http_proxy", 0)]
        if self._ca_file is None:
            return grpc.insecure_channel(self._endpoint, options=options)
        credentials = grpc.ssl_channel_credentials(read_bounded(self._ca_file, _MAX_PEM_BYTES))
        return grpc.secure_channel(self._endpoint, credentials, options=options)


def _as_is(content: bytes) -> bytes:
    return content
