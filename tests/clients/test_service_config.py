"""The shipped service config: it fits the contracts and the server's defaults, and works in C-core as its page says."""

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from dev.harness.service_config import PATH, read_service_config
from hotslot.address.v1 import address_pb2
from hotslot.entailment.v1 import entailment_pb2
from hotslot.status.v1 import status_pb2
from inference.server.settings import ServerSection

KIB, MIB = 1 << 10, 1 << 20
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
PREDICT = "/hotslot.entailment.v1.EntailmentService/Predict"
BUFFER = ("grpc.per_rpc_retry_buffer_size", 32 * MIB)
LIMIT_SECONDS = 20.0


def methods_of(config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The entry of each method or service by its path."""
    rows = [(name, entry) for entry in config["methodConfig"] for name in entry["name"]]
    return {"/".join(filter(None, (name["service"], name.get("method")))): entry for name, entry in rows}


def test_every_public_method_has_an_entry() -> None:
    """By its name or that of its service, and no entry is for a method that does not exist."""
    entries = methods_of(read_service_config())
    services = [
        service
        for module in (entailment_pb2, address_pb2, status_pb2)
        for service in module.DESCRIPTOR.services_by_name.values()
    ]
    paths = {f"{service.full_name}/{method.name}" for service in services for method in service.methods}

    assert [path for path in paths if path not in entries and path.split("/")[0] not in entries] == []
    known = paths | {service.full_name for service in services} | {"grpc.health.v1.Health/Check"}
    assert set(entries) - known == set()


def test_it_fits_the_defaults_of_the_server() -> None:
    """The cap of a deadline, and the largest message."""
    section = ServerSection()
    for path, entry in methods_of(read_service_config()).items():
        if path.endswith("Predict"):
            assert entry["maxRequestMessageBytes"] == entry["maxResponseMessageBytes"] == section.max_message_bytes
        if path.endswith("/Predict"):
            assert entry["timeout"] == f"{section.max_deadline_seconds:g}s"


@dataclass
class Backend:
    """A server with one method and a health state."""

    health: int = SERVING
    behave: Callable[[int, grpc.ServicerContext], bytes] = lambda _number, _context: b""
    calls: int = 0
    watched: list[str] = field(default_factory=list)
    port: int = 0

    def predict(self, _request: bytes, context: grpc.ServicerContext) -> bytes:
        """Count and behave."""
        self.calls += 1
        return self.behave(self.calls, context)

    @contextlib.contextmanager
    def serve(self) -> Iterator["Backend"]:
        """Run it on a port of its own."""
        with futures.ThreadPoolExecutor(4) as threads:
            server = grpc.server(threads)
            methods: dict[str, Any] = {"Predict": grpc.unary_unary_rpc_method_handler(self.predict)}
            service = PREDICT.split("/")[1]
            server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, methods),))
            health_pb2_grpc.add_HealthServicer_to_server(_Health(self), server)
            self.port = server.add_insecure_port("127.0.0.1:0")
            server.start()
            try:
                yield self
            finally:
                server.stop(0).wait()


class _Health(health_pb2_grpc.HealthServicer):
    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def Watch(self, request: Any, context: Any) -> Iterator[Any]:  # noqa: N802, ANN401  gRPC's names
        """Send the state, then nothing."""
        self._backend.watched.append(request.service)
        yield health_pb2.HealthCheckResponse(status=self._backend.health)
        done = futures.Future[None]()
        context.add_callback(lambda: done.set_result(None))
        done.result(LIMIT_SECONDS)


@contextlib.contextmanager
def calling(backends: Sequence[Backend], *options: tuple[str, Any]) -> Iterator[Callable[..., bytes]]:
    """Predict of a channel with the shipped file."""
    target = "ipv4:" + ",".join(f"127.0.0.1:{backend.port}" for backend in backends)
    fixed = [("grpc.service_config", PATH.read_text(encoding="utf-8")), ("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(target, options=[*fixed, ("grpc.enable_http_proxy", 0), *options]) as channel:
        yield channel.unary_unary(PREDICT)


def busy(times: int, pushback: str) -> Callable[[int, grpc.ServicerContext], bytes]:
    """Refuse the first calls, with a push-back."""

    def behave(number: int, context: grpc.ServicerContext) -> bytes:
        if number <= times:
            context.set_trailing_metadata((("grpc-retry-pushback-ms", pushback),))
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "busy")
        return b"answer"

    return behave


def test_calls_go_only_to_servers_that_are_serving() -> None:
    """Each server is asked about itself as a whole."""
    with Backend().serve() as ready, Backend().serve() as other, Backend(NOT_SERVING).serve() as draining:
        with calling([ready, other, draining]) as predict:
            while not (ready.calls and other.calls):
                predict(b"", timeout=LIMIT_SECONDS)
        assert draining.calls == 0
        assert ready.watched == other.watched == draining.watched == [""]


@pytest.mark.parametrize("size", [0, 300 * KIB])
def test_a_refused_call_is_sent_again_when_the_server_says(size: int) -> None:
    """With a retry buffer that holds the request: after the server's delay, which is shorter than the policy's."""
    with Backend(behave=busy(4, "20")).serve() as server, calling([server], BUFFER) as predict:
        began = time.monotonic()
        assert predict(bytes(size), timeout=LIMIT_SECONDS) == b"answer"
        took = time.monotonic() - began

    assert server.calls == 5
    assert took < 0.2 + 0.6 + 1.8


def test_a_call_that_a_stopping_server_cancels_is_sent_again() -> None:
    """As gRPC cancels calls that arrive while a server ends; the caller's own cancellation ends its call."""

    def cancel_first(number: int, context: grpc.ServicerContext) -> bytes:
        if number == 1:
            context.abort(grpc.StatusCode.CANCELLED, "CANCELLED")
        return b"answer"

    with Backend(behave=cancel_first).serve() as server, calling([server], BUFFER) as predict:
        assert predict(b"", timeout=LIMIT_SECONDS) == b"answer"
    assert server.calls == 2


@pytest.mark.parametrize(
    ("backend", "size", "options", "attempts"),
    [
        (Backend(behave=busy(9, "20")), 0, [BUFFER], 5),
        (Backend(behave=busy(9, "-1")), 0, [BUFFER], 1),
        (Backend(behave=busy(9, "20")), 300 * KIB, [], 1),
        (Backend(), 33 * MIB, [BUFFER], 0),
    ],
    ids=["attempts are used up", "the server asks for no more", "larger than gRPC's buffer", "larger than a message"],
)
def test_a_call_fails(backend: Backend, size: int, options: list[tuple[str, Any]], attempts: int) -> None:
    """After so many attempts."""
    with backend.serve() as server, calling([server], *options) as predict, pytest.raises(grpc.RpcError) as error:
        predict(bytes(size), timeout=LIMIT_SECONDS)

    assert isinstance(error.value, grpc.Call)
    assert error.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert server.calls == attempts


def test_a_call_that_has_received_headers_is_not_sent_again() -> None:
    """A server must not send headers before it knows that it answers."""

    def behave(_number: int, context: grpc.ServicerContext) -> bytes:
        context.send_initial_metadata((("x-request-id", "1"),))
        context.abort(grpc.StatusCode.UNAVAILABLE, "draining")
        return b""

    with (
        Backend(behave=behave).serve() as server,
        calling([server], BUFFER) as predict,
        pytest.raises(grpc.RpcError),
    ):
        predict(b"", timeout=LIMIT_SECONDS)

    assert server.calls == 1


def test_it_is_json_that_grpc_reads() -> None:
    """An invalid file would be ignored without a word, or fail every call."""
    assert json.loads(PATH.read_text(encoding="utf-8"))["loadBalancingConfig"] == [{"round_robin": {}}]
