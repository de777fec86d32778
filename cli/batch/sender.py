"""Sends the rows over streams, or one call each, and writes their results as they come.

One task reads rows ahead in a thread; each of the others has a stream, or one call at a time, and opens the next when
it ends. They meet in the window, which decides.
"""

import asyncio
import contextlib
import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from google.rpc import status_pb2

from cli.batch.sources import Row
from cli.batch.tasks import BatchTask, describe_failure, describe_row, read_failure
from cli.batch.window import STREAM_ROWS, Failure, Item, Window, retry_delay
from cli.predict import MAX_PICTURE_BYTES
from common.clock import Clock
from common.durable import read_bounded
from common.status_details import find_status

WINDOW_BYTES = 64 << 20  # of requests in memory
READ_ROWS = 64  # handed over by the reading thread at once
READ_BYTES = 16 << 20
READ_THREADS = 4
SYNC_SECONDS = 5.0
# The server is away, or drains: nothing is wrong with the rows.
_AWAY = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}
# Another attempt would fail in the same way.
_FINAL = {
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.NOT_FOUND,
}


class GaveUp(Exception):
    """No row got its outcome for too long; has the last error, if there was one."""

    def __init__(self, cause: grpc.aio.AioRpcError | status_pb2.Status | None) -> None:
        super().__init__("no answer")
        self.cause = cause


@dataclass(frozen=True, slots=True)
class SendRules:
    """How rows are sent."""

    model: str
    concurrency: int  # rows without an outcome
    is_bulk: bool  # over streams; else a call each
    patience_seconds: float  # without any outcome, after which it gives up
    call_seconds: float = 60.0  # deadline of a single call


class Sender:
    """Sends all rows of an iterator.

    Args:
        channel: to the server.
        metadata: of each call.
        task: of the rows.
        rules: how they are sent.
        write: gets the lines of rows whose outcome is final, in any order.
        sync: flushes what was written to the disk; called in a thread.
        clock: of delays and patience.
    """

    def __init__(
        self,
        channel: grpc.aio.Channel,
        metadata: tuple[tuple[str, str], ...],
        task: BatchTask,
        rules: SendRules,
        write: Callable[[list[dict[str, Any]]], None],
        sync: Callable[[], None],
        clock: Clock,
    ) -> None:
        self._stub = task.open_stub(channel)
        self._metadata = metadata
        self._task = task
        self._rules = rules
        self._write = write
        self._sync = sync
        self._clock = clock
        self._window = Window(rules.concurrency, rules.concurrency + READ_ROWS, WINDOW_BYTES)
        self._changed = asyncio.Condition()
        self._is_read = False  # all rows
        self._outcomes = 0  # that have arrived, final or not
        self._silent_since: float | None = None  # when the first call or row failed since the last final outcome

    async def run(self, rows: Iterator[Row]) -> None:
        """Send them all, and wait for their outcomes.

        Raises:
            StopBatch: every row would fail.
            GaveUp: the server does not answer.
            grpc.aio.AioRpcError: the server refuses the call for good.
            CommandFailed, OSError: the input cannot be read, or the results not written.
        """
        width = -(-self._rules.concurrency // STREAM_ROWS) if self._rules.is_bulk else self._rules.concurrency
        work = self._run_streams if self._rules.is_bulk else self._run_calls
        threads = ThreadPoolExecutor(2, "batch")  # one reads, one syncs
        syncing = asyncio.create_task(self._sync_often(threads))
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._read_ahead(rows, threads))
                for number in range(width):
                    group.create_task(work(number))
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        finally:
            syncing.cancel()
            threads.shutdown(wait=False, cancel_futures=True)

    # Reading.

    async def _read_ahead(self, rows: Iterator[Row], threads: ThreadPoolExecutor) -> None:
        loop = asyncio.get_running_loop()
        while True:
            async with self._changed:
                await self._changed.wait_for(lambda: self._window.has_room)
                count, size = min(READ_ROWS, self._window.free_rows), min(READ_BYTES, self._window.free_bytes)
            loaded = await loop.run_in_executor(threads, self._load_rows, rows, count, size)
            async with self._changed:
                for item in loaded:
                    if not isinstance(item.message, Failure):
                        self._window.add(item)
                self._is_read = not loaded
                self._finish([failed_line(one.row, one.message) for one in loaded if isinstance(one.message, Failure)])
            if not loaded:
                return

    def _load_rows(self, rows: Iterator[Row], count: int, size: int) -> list[Item]:
        """Up to `count` rows with their requests, and not many more than `size` bytes; in a thread."""
        found: list[Item] = []
        with ThreadPoolExecutor(READ_THREADS) as readers:  # a folder in the network answers several at once faster
            while count > len(found) and size > sum(item.size for item in found):
                some = list(itertools.islice(rows, min(READ_THREADS, count - len(found))))
                found += readers.map(self._load_row, some)
                if not some:
                    break
        return found

    def _load_row(self, row: Row) -> Item:
        try:
            picture = _read_picture(row)
        except _Unusable as error:
            return Item(row.key, error.failure, 0, row)
        message = self._task.build_request(row, picture, self._rules.model)
        small = Row(row.key, row.id, b"", row.image_name, row.statements, row.premise, row.address)
        return Item(row.key, message, message.ByteSize(), small)

    # Streams.

    async def _run_streams(self, stream: int) -> None:
        failures = 0
        while await self._wait_work():
            first = await self._take_first(stream)
            if not first:
                continue
            outcomes = self._outcomes
            error = await self._run_stream(stream, first)
            failures = 0 if self._outcomes > outcomes else failures + 1
            await self._end_stream(stream, error)
            if error is not None or failures:
                self._judge(error)
                await asyncio.sleep(retry_delay(failures))

    async def _take_first(self, stream: int) -> list[Item]:
        """The first rows of a new stream; none, after a moment, if the other streams have taken them."""
        async with self._changed:
            items = self._window.take(stream, self._clock.monotonic())
            if not items:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(retry_delay(0)):
                        await self._changed.wait()
        return items

    async def _run_stream(self, stream: int, first: list[Item]) -> grpc.aio.AioRpcError | None:
        """One stream until it ends; returns why it ended, None if all its rows have their outcome."""
        call = self._stub.StreamPredict(metadata=self._metadata)
        writer = asyncio.create_task(self._write_items(stream, call, first))
        try:
            while (response := await self._read_response(call)) is not grpc.aio.EOF:
                await self._take_results(stream, response.results)
        except grpc.aio.AioRpcError as error:
            return error
        finally:
            writer.cancel()
            call.cancel()
            await asyncio.wait({writer})
        return None

    async def _read_response(self, call: Any) -> Any:  # noqa: ANN401  gRPC's call and message
        """The next message.

        Raises:
            GaveUp: there is none for too long, although the connection stands.
        """
        read = asyncio.ensure_future(call.read())
        done, _ = await asyncio.wait({read}, timeout=self._rules.patience_seconds)
        if not done:
            read.cancel()
            raise GaveUp(None)
        return read.result()

    async def _write_items(self, stream: int, call: Any, items: list[Item]) -> None:  # noqa: ANN401
        with contextlib.suppress(grpc.aio.AioRpcError, grpc.aio.InternalError, asyncio.InvalidStateError):
            # If the stream has ended, the reader is told why.
            while items:
                message = self._task.build_stream_request([(str(item.number), item.message) for item in items])
                await call.write(message)
                items = await self._next_items(stream)
            await call.done_writing()

    async def _next_items(self, stream: int) -> list[Item]:
        """The rows of the next message; none if there will be none on this stream."""
        async with self._changed:
            while True:
                now = self._clock.monotonic()
                if items := self._window.take(stream, now):
                    return items
                if self._is_read and not len(self._window):
                    return []
                if not self._window.has_out(stream):
                    return []  # the stream is idle: it is closed, and opened again when there are rows
                due = self._window.next_due()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(None if due is None else max(0.001, due - now)):
                        await self._changed.wait()

    async def _take_results(self, stream: int, results: Any) -> None:  # noqa: ANN401
        lines = []
        now = self._clock.monotonic()
        async with self._changed:
            self._outcomes += len(results)
            for result in results:
                if result.WhichOneof("outcome") == "response":
                    item = self._window.on_answer(stream, result.item_id)
                    lines += [] if item is None else [self._answer_line(item, result.response)]
                else:
                    lines += self._take_failure(stream, result.item_id, result.error, now)
            self._finish(lines)

    def _take_failure(self, stream: int, item_id: str, status: status_pb2.Status, now: float) -> list[dict[str, Any]]:
        failure = read_failure(status)
        item = self._window.on_failure(stream, item_id, failure, now)
        if item is None:
            self._check_patience(status)
            return []
        return [failed_line(item.row, failure)]

    async def _end_stream(self, stream: int, error: grpc.aio.AioRpcError | None) -> None:
        is_broken = error is not None and error.code() not in _AWAY
        async with self._changed:
            failed = list(self._window.on_stream_end(stream, is_broken=is_broken))
            failure = None if error is None else read_failure(status_of(error))
            self._finish([failed_line(item.row, failure) for item in failed if failure is not None])

    async def _wait_work(self) -> bool:
        """Wait until there are rows for a stream or a call; False if there are none any more."""
        async with self._changed:
            while not self._window.has_waiting:
                if self._is_read and not len(self._window):
                    return False
                due = self._window.next_due()
                now = self._clock.monotonic()
                if due is not None and due <= now:
                    return True
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(None if due is None else due - now):
                        await self._changed.wait()
        return True

    # Single calls.

    async def _run_calls(self, caller: int) -> None:
        failures = 0
        while await self._wait_work():
            async with self._changed:
                items = self._window.take(caller, self._clock.monotonic(), max_rows=1)
            for item in items:
                error = await self._call(caller, item)
                failures = 0 if error is None else failures + 1
                if error is not None and error.code() in _AWAY:
                    self._judge(error)
                    await asyncio.sleep(retry_delay(failures))

    async def _call(self, caller: int, item: Item) -> grpc.aio.AioRpcError | None:
        try:
            response = await self._stub.Predict(item.message, metadata=self._metadata, timeout=self._rules.call_seconds)
        except grpc.aio.AioRpcError as error:
            if error.code() in _FINAL and not has_details(error):
                raise
            async with self._changed:
                self._finish(self._take_failure(caller, str(item.number), status_of(error), self._clock.monotonic()))
            return error
        async with self._changed:
            answered = self._window.on_answer(caller, str(item.number))
            self._finish([] if answered is None else [self._answer_line(answered, response)])
        return None

    # Both.

    def _answer_line(self, item: Item, response: Any) -> dict[str, Any]:  # noqa: ANN401
        return {**describe_row(item.row), **self._task.answer_of(item.row, response)}

    def _finish(self, lines: list[dict[str, Any]]) -> None:
        """Write the lines of rows whose outcome is final, and wake all tasks."""
        if lines:
            self._write(lines)
            self._silent_since = None
        self._changed.notify_all()

    def _judge(self, error: grpc.aio.AioRpcError | None) -> None:
        """Give up if a call has failed for good, or if calls have failed for too long."""
        if error is not None and error.code() in _FINAL:
            raise error
        self._check_patience(error)

    def _check_patience(self, cause: grpc.aio.AioRpcError | status_pb2.Status | None) -> None:
        now = self._clock.monotonic()
        if self._silent_since is None:
            self._silent_since = now
        if now - self._silent_since > self._rules.patience_seconds:
            raise GaveUp(cause)

    async def _sync_often(self, threads: ThreadPoolExecutor) -> None:
        while True:
            await asyncio.sleep(SYNC_SECONDS)
            await asyncio.get_running_loop().run_in_executor(threads, self._sync)


class _Unusable(Exception):
    """A row that cannot be sent; has the failure."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


def _read_picture(row: Row) -> bytes:
    """The picture of a row, empty for another task.

    Raises:
        _Unusable: the row has a mistake, or its picture cannot be read.
    """
    if row.mistake:
        raise _Unusable(Failure("INVALID_ARGUMENT", 3, "ROW_MALFORMED", row.mistake))
    if not isinstance(row.image, Path):
        return row.image
    try:
        return read_bounded(row.image, MAX_PICTURE_BYTES)
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        raise _Unusable(Failure("NOT_FOUND", 5, "FILE_UNREADABLE", f"{row.image_name}: {why}")) from error
    except ValueError as error:
        raise _Unusable(Failure("INVALID_ARGUMENT", 3, "IMAGE_TOO_LARGE", str(error), "image.content")) from error


def failed_line(row: Row, failure: Failure) -> dict[str, Any]:
    """The line of a row without an answer."""
    return {**describe_row(row), **describe_failure(failure)}


def has_details(error: grpc.aio.AioRpcError) -> bool:
    """Whether the server itself has said why."""
    return find_status(error) is not None


def status_of(error: grpc.aio.AioRpcError) -> status_pb2.Status:
    """The google.rpc.Status of a failed call; made from its code where the server sent none."""
    return find_status(error) or status_pb2.Status(code=error.code().value[0], message=error.details() or "")
