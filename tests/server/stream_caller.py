"""A stream's caller in memory: sends bytes, and reads answers only when the test says so."""

import asyncio
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any, cast

import grpc

from hotslot.entailment.v1 import entailment_pb2 as pb
from inference.server.api.interceptors import Call, current_call
from inference.server.api.reading import Context


class StreamCaller:
    """The caller's end of a stream, in the form of gRPC's context.

    Args:
        messages: what it sends, as fast as the server reads; the stream is half-closed after them.
    """

    def __init__(self, messages: Iterable[bytes]) -> None:
        self._messages = iter(messages)
        self._reads = asyncio.Semaphore(0)
        self.sent = 0  # messages that the server has read
        self.results: list[pb.StreamResult] = []
        current_call.set(Call("service", "method", "bidi_stream", "id", "", 0.0, is_echoed=False, timeout=None))

    @property
    def context(self) -> Context:
        """What the server gets."""
        return cast(
            "Context",
            SimpleNamespace(read=self._read, write=self._write, time_remaining=lambda: None, peer=lambda: "caller"),
        )

    def read_answers(self, count: int) -> None:
        """Read further messages, as soon as they are there."""
        for _ in range(count):
            self._reads.release()

    async def _read(self) -> Any:  # noqa: ANN401  gRPC's end of stream is no message
        loop = asyncio.get_running_loop()
        arrived: asyncio.Future[None] = loop.create_future()
        loop.call_soon(arrived.set_result, None)
        await arrived
        raw = next(self._messages, None)
        if raw is None:
            return grpc.aio.EOF
        self.sent += 1
        return raw

    async def _write(self, message: pb.StreamPredictResponse) -> None:
        await self._reads.acquire()
        self.results += message.results
