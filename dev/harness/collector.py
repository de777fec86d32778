"""A simulated OTLP collector: receives requests over gRPC and reads them by the field numbers of OTLP's contract."""

import struct
import threading
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from dataclasses import dataclass, field

import grpc

SERVICE = "opentelemetry.proto.collector.trace.v1.TraceService"


@dataclass(frozen=True, slots=True)
class ReceivedSpan:
    """One span."""

    service: str
    name: str
    trace_id: str
    span_id: str
    parent_id: str
    start_nanos: int
    end_nanos: int
    kind: int
    attributes: dict[str, str]
    error: str


@dataclass
class SimulatedCollector:
    """What came."""

    port: int = 0
    requests: list[bytes] = field(default_factory=list)
    came: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    def spans(self) -> list[ReceivedSpan]:
        """All spans in the order of their arrival."""
        return [span for request in list(self.requests) for span in read_request(request)]


@contextmanager
def simulated_collector() -> Iterator[SimulatedCollector]:
    """A collector that listens while the block runs."""
    collector = SimulatedCollector()

    def export(request: bytes, _context: grpc.ServicerContext) -> bytes:
        collector.requests.append(request)
        collector.came.release()
        return b""

    handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(export, None, None)
    server = grpc.server(futures.ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {"Export": handler}),))
    collector.port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield collector
    finally:
        server.stop(0.5).wait()


def read_request(content: bytes) -> Iterator[ReceivedSpan]:
    """The spans of an ExportTraceServiceRequest."""
    for resource_spans in _all(content, 1):
        service = ""
        for resource in _all(resource_spans, 1):
            service = _attributes(_all(resource, 1)).get("service.name", "")
        for scope_spans in _all(resource_spans, 2):
            for span in _all(scope_spans, 2):
                yield _read_span(service, span)


def _read_span(service: str, content: bytes) -> ReceivedSpan:
    fields = dict(_fields(content))
    status = dict(_fields(_bytes(fields.get(15, b""))))
    return ReceivedSpan(
        service,
        _bytes(fields[5]).decode(),
        _bytes(fields[1]).hex(),
        _bytes(fields[2]).hex(),
        _bytes(fields.get(4, b"")).hex(),
        _int(fields[7]),
        _int(fields[8]),
        _int(fields[6]),
        _attributes(_all(content, 9)),
        _bytes(status.get(2, b"")).decode() if status.get(3) == 2 else "",
    )


def _attributes(rows: Iterator[bytes]) -> dict[str, str]:
    found = {}
    for row in rows:
        fields = dict(_fields(row))
        ((number, value),) = _fields(_bytes(fields[2]))
        found[_bytes(fields[1]).decode()] = _bytes(value).decode() if number == 1 else str(value)
    return found


def _all(content: bytes, number: int) -> Iterator[bytes]:
    return (_bytes(value) for found, value in _fields(content) if found == number)


def _fields(content: bytes) -> Iterator[tuple[int, bytes | int]]:
    """Number and value of each field of a protobuf message."""
    at = 0
    while at < len(content):
        tag, at = _varint(content, at)
        if tag & 7 == 0:
            value, at = _varint(content, at)
            yield tag >> 3, value
        elif tag & 7 == 1:
            yield tag >> 3, int(struct.unpack_from("<Q", content, at)[0])
            at += 8
        else:
            size, at = _varint(content, at)
            yield tag >> 3, content[at : at + size]
            at += size


def _varint(content: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = content[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def _bytes(value: bytes | int) -> bytes:
    assert isinstance(value, bytes)
    return value


def _int(value: bytes | int) -> int:
    assert isinstance(value, int)
    return value
