"""Reflection describes the API in both versions of its protocol."""

from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
import pytest_asyncio
from google.protobuf import descriptor_pb2
from grpc_reflection.v1alpha import reflection_pb2

from inference.server.api.standard_services import REFLECTION, REFLECTION_ALPHA, ReflectionApi

STATUS = "hotslot.status.v1.StatusService"


@pytest_asyncio.fixture
async def channel() -> AsyncIterator[Any]:
    """A client of a server that has only reflection."""
    server = grpc.aio.server()
    server.add_generic_rpc_handlers(ReflectionApi([STATUS]).handlers())
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel
    await server.stop(0)


async def ask(channel: Any, service: str, **question: Any) -> Any:  # noqa: ANN401
    """The answer to one query; both versions have the same messages."""
    call = channel.stream_stream(
        f"/{service}/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )([reflection_pb2.ServerReflectionRequest(**question)], timeout=10)
    return await anext(aiter(call))


@pytest.mark.fault("L22")
@pytest.mark.parametrize("service", [REFLECTION, REFLECTION_ALPHA])
async def test_reflection_in_both_versions(channel: Any, service: str) -> None:  # noqa: ANN401
    """grpc.reflection.v1, which new clients ask first, and v1alpha; each describes itself too."""
    listed = await ask(channel, service, list_services="")
    symbol = await ask(channel, service, file_containing_symbol=service)
    method = await ask(channel, service, file_containing_symbol=f"{STATUS}.ListModels")

    described = descriptor_pb2.FileDescriptorProto.FromString(symbol.file_descriptor_response.file_descriptor_proto[0])
    assert [row.name for row in listed.list_services_response.service] == [REFLECTION, REFLECTION_ALPHA, STATUS]
    assert f"{described.package}.{described.service[0].name}" == service
    assert described.service[0].method[0].input_type == f".{described.package}.ServerReflectionRequest"
    assert len(method.file_descriptor_response.file_descriptor_proto) >= 1
