"""The standard gRPC services: grpc.health.v1, and grpc.reflection in its versions v1 and v1alpha."""

from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha._async import ReflectionServicer

from common.errors import NotFound
from inference.server.api.reading import Context
from inference.server.health import HealthRegistry

HEALTH_SERVICE = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
REFLECTION_ALPHA = reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"].full_name
REFLECTION = REFLECTION_ALPHA.replace(".v1alpha.", ".v1.")
_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


class HealthApi:
    """The handlers of grpc.health.v1. Not subject to admission."""

    def __init__(self, health: HealthRegistry) -> None:
        self._health = health

    def handlers(self) -> grpc.GenericRpcHandler:
        """What the server registers."""
        parse = health_pb2.HealthCheckRequest.FromString
        write = health_pb2.HealthCheckResponse.SerializeToString
        return grpc.method_handlers_generic_handler(
            HEALTH_SERVICE,
            {
                "Check": grpc.unary_unary_rpc_method_handler(self.check, parse, write),
                "Watch": grpc.unary_stream_rpc_method_handler(self.watch, parse, write),
                "List": grpc.unary_unary_rpc_method_handler(
                    self.list, health_pb2.HealthListRequest.FromString, health_pb2.HealthListResponse.SerializeToString
                ),
            },
        )

    async def check(self, request: health_pb2.HealthCheckRequest, _context: Context) -> health_pb2.HealthCheckResponse:
        """The state of a service name.

        Raises:
            NotFound: the name is not registered.
        """
        state = self._health.is_serving(request.service)
        if state is None:
            raise NotFound(
                "unknown service name",
                reason="SERVICE_UNKNOWN",
                resource=("service", request.service[:128]),
            )
        return health_pb2.HealthCheckResponse(status=_SERVING if state else _NOT_SERVING)

    async def watch(self, request: health_pb2.HealthCheckRequest, context: Context) -> None:
        """Write the state of a service name now and after each change, until the server drains."""
        last = None
        while True:
            changed = self._health.changed.next()
            is_last = self._health.is_closed  # before the state: it may change, and the server drain, during the write
            state = self._health.is_serving(request.service)
            status = _UNKNOWN if state is None else _SERVING if state else _NOT_SERVING
            if status != last:
                await context.write(health_pb2.HealthCheckResponse(status=status))
                last = status
            if is_last:
                return
            await changed.wait()

    async def list(self, _request: health_pb2.HealthListRequest, _context: Context) -> health_pb2.HealthListResponse:
        """All service names with their states."""
        response = health_pb2.HealthListResponse()
        for name, state in self._health.snapshot().items():
            response.statuses[name].status = _SERVING if state else _NOT_SERVING
        return response


class _Pool:
    """The default descriptor pool, with lookup of methods by name, which the C implementation lacks; ghz needs it."""

    def __init__(self) -> None:
        self._pool = descriptor_pool.Default()

    def FindFileContainingSymbol(self, symbol: str) -> Any:  # noqa: N802, ANN401  the pool's interface
        """The file that defines a symbol or a method of a service."""
        try:
            return self._pool.FindFileContainingSymbol(symbol)
        except KeyError:
            parent, _, name = symbol.rpartition(".")
            file = self._pool.FindFileContainingSymbol(parent)
            service = file.services_by_name.get(parent.rpartition(".")[2])
            if service is None or name not in service.methods_by_name:
                raise
            return file

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401  everything else as in the pool
        return getattr(self._pool, name)


def _add_reflection_v1() -> None:
    """Add grpc.reflection.v1, which the library lacks, to the descriptors: v1alpha in another package."""
    file = descriptor_pb2.FileDescriptorProto()
    reflection_pb2.DESCRIPTOR.CopyToProto(file)
    file.name, file.package = file.name.replace("v1alpha", "v1"), file.package.replace("v1alpha", "v1")
    fields = [field for message in file.message_type for field in message.field if field.type_name]
    methods = [method for service in file.service for method in service.method]
    for field in fields:
        field.type_name = field.type_name.replace("v1alpha", "v1")
    for method in methods:
        method.input_type = method.input_type.replace("v1alpha", "v1")
        method.output_type = method.output_type.replace("v1alpha", "v1")
    descriptor_pool.Default().Add(file)


class ReflectionApi:
    """The handlers of grpc.reflection, used by grpcurl, buf, ghz and Postman; both versions have the same messages."""

    def __init__(self, services: list[str]) -> None:
        _add_reflection_v1()
        self._servicer = ReflectionServicer([*services, REFLECTION, REFLECTION_ALPHA], pool=_Pool())

    def handlers(self) -> tuple[grpc.GenericRpcHandler, ...]:
        """What the server registers."""
        method = grpc.stream_stream_rpc_method_handler(
            self.server_reflection_info,
            reflection_pb2.ServerReflectionRequest.FromString,
            reflection_pb2.ServerReflectionResponse.SerializeToString,
        )
        return tuple(
            grpc.method_handlers_generic_handler(service, {"ServerReflectionInfo": method})
            for service in (REFLECTION, REFLECTION_ALPHA)
        )

    async def server_reflection_info(self, requests: Any, context: Context) -> None:  # noqa: ANN401  gRPC's iterator
        """Answer queries about the API."""
        answers: Any = self._servicer.ServerReflectionInfo(requests, context)
        async for response in answers:
            await context.write(response)
