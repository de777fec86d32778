"""The synchronous client."""

import contextlib
import os
import queue
import threading
import time
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, NoReturn, Self

import grpc

from hotslot_client._connection import CallTags, Connection, Token, limit_timeout
from hotslot_client._convert import ADDRESS, ENTAILMENT, Task, error_from_call, serialize
from hotslot_client._exchange import Exchange
from hotslot_client._protos import health
from hotslot_client._run import StreamRun
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
_all: "weakref.WeakSet[Client]" = weakref.WeakSet()


class Client:
    """Calls a hotslot server, or several behind one name. Safe to share between threads; make one and keep it.

    Each call is sent again while that can help and its deadline allows: a swap, a restart or a drain costs no answer
    where another server, or the same one in time, can give it.

    Args:
        address: "HOST:PORT", or a name as gRPC takes it, for example "dns:///hotslot.example:50051".
        tls: True: TLS, trusting the CAs that come with gRPC; or how.
        token: sent with every call; or a function that returns it, for a token that changes. Only over TLS, or to this
            machine.
        timeout: deadline of a call that names none, in seconds. The service config caps it at 60.
        retries: whether calls and items are sent again.
        proxy: whether the proxy of the environment is used; None: unless the address is this machine's.
        service_config: instead of the shipped one, as JSON.
        options: further channel arguments of gRPC.

    Raises:
        ValueError: the address is none, or the token would be sent unencrypted.
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
        self._reset()
        self._is_closed = False
        _all.add(self)

    def _reset(self) -> None:
        """Begin without connections: at the start, and in a process that was forked."""
        self._lock = threading.Lock()
        self._channels: dict[str, grpc.Channel] = {}

    # Calls.

    def predict(
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
        """Judge up to 32 statements about a picture.

        Args:
            picture: the bytes of a JPEG, PNG or WebP file, or its path.
            statements: the sentences, in one language of the model.
            premise: a sentence that is assumed to be true for the picture.
            model: name of the served model; may be left out while the server has one of this task.
            timeout: of the call with all its attempts, in seconds.
            request_id: the caller's own name for the call, in the server's log.
            model_version: that is to answer: "stable", "canary", a revision or a digest; empty: any.
            routing_key: calls with the same one are assigned to the same revision while a new one is rolled out.

        Raises:
            HotslotError: there is no answer.
            ValueError: version or key are not printable ASCII, or longer than 256 characters.
            OSError: the picture's file cannot be read.
        """
        tags = CallTags(request_id, model_version, routing_key)
        return self._call(ENTAILMENT, EntailmentItem(picture, statements, premise, model), timeout, tags)

    def tag(
        self,
        addresses: Sequence[str],
        *,
        model: str = "",
        timeout: float | None = None,
        request_id: str = "",
        model_version: str = "",
        routing_key: str = "",
    ) -> Tagging:
        """Cut up to 64 Chinese addresses into their parts.

        Args:
            addresses: the addresses.
            model: name of the served model; may be left out while the server has one of this task.
            timeout: of the call with all its attempts, in seconds.
            request_id: the caller's own name for the call, in the server's log.
            model_version: that is to answer: "stable", "canary", a revision or a digest; empty: any.
            routing_key: calls with the same one are assigned to the same revision while a new one is rolled out.

        Raises:
            HotslotError: there is no answer.
            ValueError: version or key are not printable ASCII, or longer than 256 characters.
        """
        tags = CallTags(request_id, model_version, routing_key)
        return self._call(ADDRESS, AddressItem(addresses, model), timeout, tags)

    def predict_many(
        self,
        items: Iterable[EntailmentItem],
        *,
        ordered: bool = True,
        window: int = 64,
        timeout: float | None = None,
        rules: StreamRules | None = None,
        model_version: str = "",
        routing_key: str = "",
    ) -> Iterator[Outcome[EntailmentItem, Prediction]]:
        """Judge any number of items over one stream; each has exactly one outcome.

        What a drained or broken stream leaves without an outcome is sent again on a new one. An error of one item is
        its outcome, and ends nothing. The items are taken from their iterator in the thread that asks for outcomes, up
        to `window` ahead of them. To stop early, close the generator or leave it.

        Args:
            items: the items; may be endless.
            ordered: outcomes come in the order of the items; else as they arrive.
            window: items at a time without an outcome.
            timeout: of the whole stream, in seconds; None: none.
            rules: further settings; `ordered` and `window` go before it.
            model_version: that is to answer, as of `predict`.
            routing_key: of all items; without one each is assigned by itself.

        Raises:
            HotslotError: from the generator: no server has given any outcome for `rules.outage_seconds`, the call is
                not permitted, or it took longer than `timeout`. Items that have not been returned have no outcome.
            ValueError: version or key are not printable ASCII, or longer than 256 characters.
        """
        tags = CallTags("", model_version, routing_key)
        return self._stream(ENTAILMENT, items, timeout, self._rules(rules, window, ordered=ordered), tags)

    def tag_many(
        self,
        items: Iterable[AddressItem],
        *,
        ordered: bool = True,
        window: int = 64,
        timeout: float | None = None,
        rules: StreamRules | None = None,
        model_version: str = "",
        routing_key: str = "",
    ) -> Iterator[Outcome[AddressItem, Tagging]]:
        """Tag any number of items over one stream, with the rules of `predict_many`."""
        tags = CallTags("", model_version, routing_key)
        return self._stream(ADDRESS, items, timeout, self._rules(rules, window, ordered=ordered), tags)

    def is_serving(self, name: str = "", *, timeout: float = 5.0) -> bool:
        """Whether the server reports SERVING for a name: a model, a service, or itself if empty.

        Raises:
            HotslotError: it does not answer, or does not know the name.
        """
        request = health.HealthCheckRequest(service=name)
        channel = self._channel(ENTAILMENT.service, is_checked=False)
        response = self._invoke(channel, _HEALTH_CHECK, serialize(request), timeout, CallTags())
        return health.HealthCheckResponse.FromString(response).status == 1

    # The life of the client.

    def close(self) -> None:
        """End all calls, also those of other threads, and close the connections. May be called more than once."""
        with self._lock:
            self._is_closed = True
            channels, self._channels = list(self._channels.values()), {}
        for channel in channels:
            channel.close()

    def __enter__(self) -> Self:
        """The client itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()

    def __reduce__(self) -> NoReturn:
        """Refuse: a connection cannot be sent to another process."""
        raise TypeError("a Client cannot be pickled: make one in each process")

    # Helpers.

    def _call(self, task: Task[ItemT, AnswerT], item: ItemT, timeout: float | None, tags: CallTags) -> AnswerT:
        tags.check()
        request = serialize(task.build_request(item))
        response = self._invoke(self._channel(task.service), task.unary_path, request, timeout, tags)
        return task.parse_answer(item, task.response.FromString(response))

    def _invoke(self, channel: grpc.Channel, path: str, request: bytes, timeout: float | None, tags: CallTags) -> bytes:
        limit = self._connection.choose_timeout(timeout)
        call: Any = channel.unary_unary(path)
        try:
            response: bytes = call(request, timeout=limit, metadata=self._connection.metadata(tags))
        except (grpc.RpcError, ValueError) as error:
            raise self._explain(error) from error
        return response

    def _stream(
        self,
        task: Task[ItemT, AnswerT],
        items: Iterable[ItemT],
        timeout: float | None,
        rules: StreamRules,
        tags: CallTags,
    ) -> Iterator[Outcome[ItemT, AnswerT]]:
        tags.check()
        deadline = None if timeout is None else time.monotonic() + limit_timeout(timeout)

        def open_exchange(inbox: "queue.SimpleQueue[Any]") -> Exchange:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            try:
                call: Any = self._channel(task.service).stream_stream(task.stream_path)
                return Exchange(call, inbox, left, self._connection.metadata(tags), self._explain)
            except ValueError as error:  # the channel was closed meanwhile
                raise self._explain(error) from error

        return StreamRun(task, rules, open_exchange, deadline).run(items)

    def _rules(self, rules: StreamRules | None, window: int, *, ordered: bool) -> StreamRules:
        if window < 1:
            raise ValueError("the window is a number of items, at least 1")
        found = replace(rules or StreamRules(), window=window, is_ordered=ordered)
        return found if self._connection.is_retrying else replace(found, item_attempts=1, outage_seconds=0.0)

    def _channel(self, service: str, *, is_checked: bool = True) -> grpc.Channel:
        """The channel of a service; `is_checked`: it calls only servers that report SERVING."""
        key = service if is_checked else ""
        with self._lock:
            if self._is_closed:
                raise ClientClosed("the client is closed")
            channel = self._channels.get(key)
            if channel is None:
                channel = self._channels[key] = self._open(service, is_checked=is_checked)
            return channel

    def _open(self, service: str, *, is_checked: bool) -> grpc.Channel:
        options = self._connection.channel_options(service)
        if not is_checked:
            options = [(name, value) for name, value in options if name != "grpc.service_config"]
        if self._credentials is None:
            return grpc.insecure_channel(self._connection.address, options=options)
        return grpc.secure_channel(self._connection.address, self._credentials, options=options)

    def _explain(self, error: Exception) -> HotslotError:
        """The exception for what gRPC has raised."""
        if self._is_closed:
            return ClientClosed("the client was closed")
        if not isinstance(error, grpc.Call):
            raise error
        code = error.code()
        return error_from_call(
            "UNKNOWN" if code is None else code.name, error.details(), _pairs(error.trailing_metadata())
        )


def _pairs(metadata: Any) -> list[tuple[str, str | bytes]]:  # noqa: ANN401  gRPC's types differ by version
    return [(str(key), value) for key, value in metadata or ()]


def _after_fork() -> None:
    """A forked process has none of the threads that serve its parent's connections."""
    for client in list(_all):
        client._reset()  # noqa: SLF001  of this module


with contextlib.suppress(AttributeError):  # not on Windows
    os.register_at_fork(after_in_child=_after_fork)
