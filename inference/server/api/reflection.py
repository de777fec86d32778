"""Reflection that finds a method by its name too, as ghz and others ask."""

from typing import Any

import grpc
from google.protobuf import descriptor_pool
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha._async import ReflectionServicer

from inference.server.api.interceptors import Context

SERVICE = reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"].full_name


class _Pool:
    """The default pool, but an unknown symbol is looked up by its parent: Python's C pool has no methods."""

    def __init__(self) -> None:
        self._pool = descriptor_pool.Default()

    def FindFileContainingSymbol(self, symbol: str) -> Any:  # noqa: N802, ANN401  the pool's own interface
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

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401  everything else is the pool's
        return getattr(self._pool, name)


class ReflectionApi:
    """grpc.reflection.v1alpha, which grpcurl, buf, ghz and Postman speak."""

    def __init__(self, services: list[str]) -> None:
        self._servicer = ReflectionServicer([*services, SERVICE], pool=_Pool())

    def handlers(self) -> grpc.GenericRpcHandler:
        """What the server registers."""
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "ServerReflectionInfo": grpc.stream_stream_rpc_method_handler(
                    self.server_reflection_info,
                    reflection_pb2.ServerReflectionRequest.FromString,
                    reflection_pb2.ServerReflectionResponse.SerializeToString,
                )
            },
        )

    async def server_reflection_info(self, requests: Any, context: Context) -> None:  # noqa: ANN401  gRPC's iterator
        """Prediction questions about the API."""
        answers: Any = self._servicer.ServerReflectionInfo(requests, context)
        async for response in answers:
            await context.write(response)
