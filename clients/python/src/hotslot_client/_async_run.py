"""The loop of `predict_many` for asyncio; `_run` is the synchronous one."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from typing import Any, Generic

import grpc.aio

from hotslot_client._convert import Task, error_from_status, join_items, serialize
from hotslot_client._window import ItemWindow, Outage, StreamRules
from hotslot_client.errors import DeadlineExceeded, HotslotError, Unavailable
from hotslot_client.types import AnswerT, ItemT, Outcome

_OWN_STATUS = "Internal error from Core"
STATUS_TRIES, STATUS_PAUSE_SECONDS = 50, 0.01
END_SECONDS = 2.0  # for the end of a stream whose outcomes are all there

OnEvent = Callable[["AsyncExchange", bytes | None, HotslotError | None], None]


class AsyncExchange:
    """An open stream: one task writes, one reads and reports."""

    def __init__(self, call: Any, on_event: OnEvent, explain: Callable[[BaseException], HotslotError]) -> None:  # noqa: ANN401
        self._call = call
        self._outbox: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._on_event = on_event
        self._explain = explain
        self._status: grpc.aio.AioRpcError | None = None  # the first
        call.add_done_callback(self._keep_status)
        self._tasks = [asyncio.ensure_future(self._write()), asyncio.ensure_future(self._read())]

    def send(self, message: bytes) -> None:
        """Send a message; does not wait."""
        self._outbox.put_nowait(message)

    async def half_close(self) -> None:
        """Nothing more will be sent: wait for the end."""
        self._outbox.put_nowait(None)
        await asyncio.wait(self._tasks, timeout=END_SECONDS)

    async def cancel(self) -> None:
        """End it; its tasks have ended then."""
        self._call.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _write(self) -> None:
        with contextlib.suppress(Exception):  # whatever it is: the reader reports how the stream has ended
            while (message := await self._outbox.get()) is not None:
                if self._call.done():
                    return
                await self._call.write(message)
            await self._call.done_writing()

    async def _read(self) -> None:
        try:
            async for response in self._call:
                self._on_event(self, response, None)
        except asyncio.CancelledError as error:
            self._on_event(self, None, self._explain(error))  # by `close` of the client, or ignored
            raise
        except Exception as error:  # noqa: BLE001  the loop must be told, whatever it is
            self._on_event(self, None, self._explain(await self._true_error(error)))
        else:
            self._on_event(self, None, None)

    async def _true_error(self, error: Exception) -> Exception:
        """The status of the server, where gRPC has put its own in its place: it does so if a message cannot be sent.

        The server's may have come before, or comes soon after.
        """
        for _ in range(STATUS_TRIES):
            if not _is_own(error):
                break
            if self._status is not None:
                return self._status
            await asyncio.sleep(STATUS_PAUSE_SECONDS)
            error = _read_status(self._call)
        return error

    def _keep_status(self, call: Any) -> None:  # noqa: ANN401  gRPC's call
        status = _read_status(call)
        self._status = None if _is_own(status) else status


def _is_own(error: Exception) -> bool:
    return isinstance(error, grpc.aio.AioRpcError) and error.details() == _OWN_STATUS


def _read_status(call: Any) -> grpc.aio.AioRpcError:  # noqa: ANN401  gRPC's call
    """The status of a call that is done, read at once: in the next turn of the loop it may be another one."""
    code, details, trailers = (_finish(part) for part in (call.code(), call.details(), call.trailing_metadata()))
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), trailers, details)


def _finish(coroutine: Any) -> Any:  # noqa: ANN401  what a coroutine returns
    """The result of a coroutine that waits for nothing."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        return end.value
    coroutine.close()
    return None


class AsyncStreamRun(Generic[ItemT, AnswerT]):
    """One `predict_many`."""

    def __init__(
        self,
        task: Task[ItemT, AnswerT],
        rules: StreamRules,
        open_exchange: "Callable[[AsyncStreamRun[ItemT, AnswerT]], AsyncExchange]",
        deadline: float | None,
    ) -> None:
        self._task = task
        self._rules = rules
        self._open = open_exchange
        self._deadline = deadline
        self._window: ItemWindow[ItemT, AnswerT] = ItemWindow(rules)
        self._exchange: AsyncExchange | None = None
        self._outage = Outage(rules)
        self._open_at = 0.0  # when the next stream may be opened
        self._woken = asyncio.Event()
        self._last_event = time.monotonic()
        self._failure: HotslotError | None = None  # for which the next step gives up the stream
        self._pull: asyncio.Future[ItemT] | None = None  # the next item of an asynchronous source

    async def run(self, items: Iterable[ItemT] | AsyncIterable[ItemT]) -> AsyncIterator[Outcome[ItemT, AnswerT]]:
        """The outcomes of all items.

        Raises:
            HotslotError: see `Client.predict_many`.
        """
        source = aiter(items) if isinstance(items, AsyncIterable) else iter(items)
        is_exhausted = False
        try:
            while True:
                self._woken.clear()
                await self._handle_failure()
                for outcome in self._window.ready():
                    yield outcome
                self._send()
                if is_exhausted and self._window.is_done:
                    break
                if not is_exhausted and self._window.has_room:
                    is_exhausted, is_waiting = self._take(source)
                    if not is_waiting:
                        continue
                await self._wait()
            for outcome in self._window.ready():
                yield outcome
            if self._exchange is not None:
                await self._exchange.half_close()
        finally:
            await self._leave()

    def on_event(self, exchange: AsyncExchange, response: bytes | None, error: HotslotError | None) -> None:
        """Handle what a stream reports: a response, an error, or (neither) its end."""
        if exchange is not self._exchange:
            return  # of a stream that was given up
        self._last_event = time.monotonic()
        if response is not None:
            self._read(response)
        elif error is not None or self._window.has_sent:
            self._failure = error or Unavailable("the server ended the stream without all outcomes")
        else:
            self._exchange = None
        self._woken.set()

    def _take(self, source: Iterator[ItemT] | AsyncIterator[ItemT]) -> tuple[bool, bool]:
        """Take an item if there is one now; whether the source has ended, and whether it must be awaited."""
        try:
            if isinstance(source, Iterator):
                item = next(source)
            else:
                if self._pull is None:
                    self._pull = asyncio.ensure_future(anext(source))
                    self._pull.add_done_callback(lambda _: self._woken.set())
                if not self._pull.done():
                    return False, True
                pull, self._pull = self._pull, None
                item = pull.result()
        except (StopIteration, StopAsyncIteration):
            return True, False
        try:
            request = serialize(self._task.build_request(item))
        except (OSError, UnicodeError) as error:
            self._window.add_failed(item, error)
        else:
            self._window.add(item, request)
        return False, False

    def _send(self) -> None:
        now = time.monotonic()
        if now < self._open_at:
            return
        while entries := self._window.next_message(now):
            if self._exchange is None:
                self._exchange = self._open(self)
            self._exchange.send(join_items((entry.item_id, entry.request) for entry in entries))

    async def _wait(self) -> None:
        """Wait for an event, an item, or the time of the next step."""
        begun = time.monotonic()
        self._last_event = max(self._last_event, begun)
        times = [begun + self._rules.stall_seconds]
        if self._deadline is not None:
            times.append(self._deadline)
        if self._open_at > begun:
            times.append(self._open_at)
        elif (again := self._window.next_time()) is not None:
            times.append(again)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.001, min(times) - begun)):  # `wait_for` of 3.11 can lose a cancellation
                await self._woken.wait()
        now = time.monotonic()
        if self._deadline is not None and now >= self._deadline and not self._window.is_done:
            raise DeadlineExceeded("the stream has reached its deadline")
        if self._window.has_sent and now - self._last_event >= self._rules.stall_seconds:
            self._failure = Unavailable(f"no outcome for {self._rules.stall_seconds:g} s")

    async def _handle_failure(self) -> None:
        """If the stream is over: what it leaves is sent again later."""
        error, self._failure = self._failure, None
        if error is None:
            return
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            await exchange.cancel()
        self._window.on_break(error)
        now = time.monotonic()
        if not self._window.is_done:
            self._open_at = now + self._outage.on_break(error, now)

    def _read(self, data: bytes) -> None:
        now = time.monotonic()
        for result in self._task.stream_response.FromString(data).results:
            entry = self._window.find(result.item_id)
            if entry is None:
                continue
            if result.HasField("response"):
                self._window.on_answer(entry, self._task.parse_answer(entry.item, result.response))
                self._outage.on_progress()
            else:
                error = error_from_status(result.error)
                self._window.on_error(entry, error, now)
                if not error.is_retryable:
                    self._outage.on_progress()

    async def _leave(self) -> None:
        exchange, self._exchange = self._exchange, None
        pull, self._pull = self._pull, None
        if pull is not None:
            pull.cancel()
            await asyncio.gather(pull, return_exceptions=True)
        if exchange is not None:
            await exchange.cancel()
