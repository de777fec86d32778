"""The asyncio client."""

import asyncio
import time
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, NoReturn, Self

import grpc
import grpc.aio

from hotslot_client._async_run import AsyncExchange, AsyncStreamRun
from hotslot_client._connection import CallTags, Connection, Token, limit_timeout
from hotslot_client._convert import ADDRESS, ENTAILMENT, Task, error_from_call, serialize
from hotslot_client._protos import health
from hotslot_client._window import StreamRules
from hotslot_client.errors import ClientClosed, HotslotError
from hotslot_client.types import (
    AddressItem,
    AnswerT,
    EntailmentItem,
    ItemT,
    Outcome,
    Picture,
    Prediction,
    Tagging,
    Tls,
)

_HEALTH_CHECK = "/grpc.health.v1.Health/Check"


class AsyncClient:
    """`Client` for asyncio: the same calls, to be awaited. A cancelled task ends its call.

    It connects in the event loop of its first call. For arguments and errors see `Client`.
    """

    def __init__(
        self,
        address: str = "127.0.0.1:50051",
        *,
        tls: Tls | bool = False,
        token: Token = "",
        timeout: float = 60.0,
        retries: bool = True,
        proxy: bool | None = None,
        service_config: str = "",
        options: Mapping[str, Any] | None = None,
    ) -> None:
        trust = tls if isinstance(tls, Tls) else Tls() if tls else None
        self._connection = Connection(address, trust, token, timeout, retries, proxy, service_config, options or {})
        self._credentials = self._connection.credentials()
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_closed = False

    # Calls.

    async def predict(
        self,
        picture: Picture,
        statements: Sequence[str],
        *,
        premise: str = "",
        model: str = "",
        timeout: float | None = None,
        request_id: str = "",
        model_version: str = "",
        routing_key: str = "",
    ) -> Prediction:
        """Judge up to 32 statements about a picture; see `Client.predict`."""
        tags = CallTags(request_id, model_version, routing_key)
        return await self._call(ENTAILMENT, EntailmentItem(picture, statements, premise, model), timeout, tags)

    async def tag(
        self,
        addresses: Sequence[str],
        *,
        model: str = "",
        timeout: float | None = None,
        request_id: str = "",
        model_version: str = "",
        routing_key: str = "",
    ) -> Tagging:
        """Cut up to 64 Chinese addresses into their parts; see `Client.tag`."""
        tags = CallTags(request_id, model_version, routing_key)
        return await self._call(ADDRESS, AddressItem(addresses, model), timeout, tags)

    def predict_many(
        self,
        items: Iterable[EntailmentItem] | AsyncIterable[EntailmentItem],
        *,
        ordered: bool = True,
        window: int = 64,
        timeout: float | None = None,
        rules: StreamRules | None = None,
        model_version: str = "",
        routing_key: str = "",
    ) -> AsyncIterator[Outcome[EntailmentItem, Prediction]]:
        """Judge any number of items over one stream; see `Client.predict_many`.

        The items may come from an asynchronous iterator: outcomes are returned while it is awaited.
        """
        tags = CallTags("", model_version, routing_key)
        return self._stream(ENTAILMENT, items, timeout, self._rules(rules, window, ordered=ordered), tags)

    def tag_many(
        self,
        items: Iterable[AddressItem] | AsyncIterable[AddressItem],
        *,
        ordered: bool = True,
        window: int = 64,
        timeout: float | None = None,
        rules: StreamRules | None = None,
        model_version: str = "",
        routing_key: str = "",
    ) -> AsyncIterator[Outcome[AddressItem, Tagging]]:
        """Tag any number of items over one stream, with the rules of `predict_many`."""
        tags = CallTags("", model_version, routing_key)
        return self._stream(ADDRESS, items, timeout, self._rules(rules, window, ordered=ordered), tags)

    async def is_serving(self, name: str = "", *, timeout: float = 5.0) -> bool:
        """Whether the server reports SERVING for a name; see `Client.is_serving`."""
        request = serialize(health.HealthCheckRequest(service=name))
        response = await self._invoke("", _HEALTH_CHECK, request, timeout, CallTags())
        return health.HealthCheckResponse.FromString(response).status == 1

    # The life of the client.

    async def close(self) -> None:
        """End all calls and close the connections. May be called more than once."""
        self._is_closed = True
        channels, self._channels = list(self._channels.values()), {}
        for channel in channels:
            await channel.close()

    async def __aenter__(self) -> Self:
        """The client itself."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        await self.close()

    def __reduce__(self) -> NoReturn:
        """Refuse: a connection cannot be sent to another process."""
        raise TypeError("an AsyncClient cannot be pickled: make one in each process")

    # Helpers.

    async def _call(self, task: Task[ItemT, AnswerT], item: ItemT, timeout: float | None, tags: CallTags) -> AnswerT:
        tags.check()
        request = serialize(task.build_request(item))
        response = await self._invoke(task.service, task.unary_path, request, timeout, tags)
        return task.parse_answer(item, task.response.FromString(response))

    async def _invoke(self, service: str, path: str, request: bytes, timeout: float | None, tags: CallTags) -> bytes:
        limit = self._connection.choose_timeout(timeout)
        call: Any = self._channel(service).unary_unary(path)
        try:
            response: bytes = await call(request, timeout=limit, metadata=self._connection.metadata(tags))
        except asyncio.CancelledError:
            if self._is_closed and not _is_cancelled():
                raise ClientClosed("the client was closed") from None
            raise
        except (grpc.RpcError, grpc.aio.UsageError) as error:
            raise self._explain(error) from error
        return response

    def _stream(
        self,
        task: Task[ItemT, AnswerT],
        items: Iterable[ItemT] | AsyncIterable[ItemT],
        timeout: float | None,
        rules: StreamRules,
        tags: CallTags,
    ) -> AsyncIterator[Outcome[ItemT, AnswerT]]:
        tags.check()
        deadline = None if timeout is None else time.monotonic() + limit_timeout(timeout)

        def open_exchange(run: AsyncStreamRun[Any, Any]) -> AsyncExchange:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            method: Any = self._channel(task.service).stream_stream(task.stream_path)
            try:
                call = method(timeout=left, metadata=self._connection.metadata(tags))
                return AsyncExchange(call, run.on_event, self._explain)
            except grpc.aio.UsageError as error:
                raise self._explain(error) from error

        return AsyncStreamRun(task, rules, open_exchange, deadline).run(items)

    def _rules(self, rules: StreamRules | None, window: int, *, ordered: bool) -> StreamRules:
        if window < 1:
            raise ValueError("the window is a number of items, at least 1")
        found = replace(rules or StreamRules(), window=window, is_ordered=ordered)
        return found if self._connection.is_retrying else replace(found, item_attempts=1, outage_seconds=0.0)

    def _channel(self, service: str) -> grpc.aio.Channel:
        """The channel of a service, which calls only servers that report SERVING; empty: any server."""
        if self._is_closed:
            raise ClientClosed("the client is closed")
        loop = asyncio.get_running_loop()
        if loop is not self._loop:  # connections belong to the event loop that made them
            self._loop, self._channels = loop, {}
        channel = self._channels.get(service)
        if channel is None:
            channel = self._channels[service] = self._open(service)
        return channel

    def _open(self, service: str) -> grpc.aio.Channel:
        options = self._connection.channel_options(service)
        if not service:
            options = [(name, value) for name, value in options if name != "grpc.service_config"]
        if self._credentials is None:
            return grpc.aio.insecure_channel(self._connection.address, options=options)
        return grpc.aio.secure_channel(self._connection.address, self._credentials, options=options)

    def _explain(self, error: BaseException) -> HotslotError:
        """The exception for what gRPC has raised."""
        if self._is_closed:
            return ClientClosed("the client was closed")
        if isinstance(error, grpc.aio.AioRpcError):
            trailers = [(str(key), value) for key, value in error.trailing_metadata() or ()]
            return error_from_call(error.code().name, error.details(), trailers)
        return error_from_call("UNAVAILABLE", f"the call broke: {error!r}", ())


def _is_cancelled() -> bool:
    """Whether the running task is asked to end."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
