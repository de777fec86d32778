"""Bidirectional streams: bounded read-ahead, one outcome per item, written as soon as it is known."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from common.errors import DeadlineMissed, HotslotError, InputRefused, NotReady, Overloaded
from inference.server.api.interceptors import current_call, has_reached_deadline
from inference.server.api.reading import Context, MessageReader
from inference.server.request import PendingRequest, Prediction
from inference.server.scheduling.admission import Drain, Refusal, draining_error

MAX_RESULTS_PER_MESSAGE = 64
ACCEPT_SECONDS = 2.0  # after which it is asked whether the items of a message that was read may wait on
MAX_BUSY_SECONDS = 0.005  # with the items of one message, before other work has its turn
WRITE_PAUSE_SECONDS = 0.001  # after a message, while items are open: the outcomes of this time share the next one


class StreamTask(Protocol):
    """The task-specific part of a stream."""

    def may_read(self, *, is_free: bool) -> bool:
        """Whether the next message may be read now; `is_free`: no item is unanswered."""
        ...

    async def wait_turn(self) -> None:
        """Wait for the turn to read the next message."""
        ...

    def may_accept(self, items: list[tuple[str, Any]]) -> bool:
        """Whether the items of the message that was read last may be accepted before the next turn."""
        ...

    async def accept_in_turn(self, items: list[tuple[str, Any]]) -> None:
        """Wait until they may be accepted."""
        ...

    def find_refusal(self, *, is_memory_short: bool) -> Refusal | None:
        """Why the items of a message that has waited for long are refused; None: it waits on."""
        ...

    def skip_turn(self) -> None:
        """Let it be read at once: no item is unanswered any more."""
        ...

    def leave(self) -> None:
        """End the wait: the stream has ended."""
        ...

    def parse_items(self, raw: bytes) -> list[tuple[str, Any]]:
        """Parse a message into item ids and requests.

        Raises:
            InputRefused: the message as a whole is invalid.
        """
        ...

    def begin(
        self,
        item_id: str,
        request: Any,  # noqa: ANN401  the message of a task
        deadline_seconds: float | None,
        *,
        is_duplicate: bool,
        refusal: Refusal | None,
    ) -> PendingRequest:
        """Accept one item, or refuse it; `is_duplicate`: an unanswered item of the stream has its id.

        Raises:
            HotslotError: the item is refused.
        """
        ...

    def now(self) -> float:
        """The clock, seconds."""
        ...

    async def pause(self) -> None:
        """Let other work go first; of all streams that pause, one goes on in a turn of the event loop."""
        ...

    def cancel_request(self, pending: PendingRequest, *, has_expired: bool) -> None:
        """Cancel an item whose caller is gone; `has_expired`: its deadline has passed."""
        ...

    def build_result(self, item_id: str, outcome: Prediction | HotslotError) -> Any:  # noqa: ANN401
        """Convert the outcome of one item."""
        ...

    def build_response(self, results: list[Any]) -> Any:  # noqa: ANN401
        """Combine outcomes into one message."""
        ...


@dataclass(frozen=True, slots=True)
class StreamRules:
    """Limits of a stream."""

    max_outstanding: int  # items without a written outcome


class ItemStream:
    """One streaming call: reads items, writes outcomes."""

    def __init__(
        self, context: Context, task: StreamTask, rules: StreamRules, drain: Drain, reader: MessageReader
    ) -> None:
        self._context = context
        self._task = task
        self._reader = reader
        self._rules = rules
        self._drain = drain
        self._call = current_call.get()
        self._open: dict[str, PendingRequest] = {}
        self._ready: list[Any] = []
        self._woken = asyncio.Event()  # an outcome is ready, or reading has ended
        self._room = asyncio.Event()
        self._room.set()
        self._unwritten = 0  # items read whose outcome is not written
        reader.stream = self

    @property
    def open_items(self) -> int:
        """Items that wait or are computed."""
        return len(self._open)

    @property
    def unwritten_items(self) -> int:
        """Items whose outcome the caller has not taken; open ones too."""
        return self._unwritten

    async def run(self) -> None:
        """Read and write until the caller half-closes or the server drains, and every item has its outcome.

        Raises:
            NotReady: the server is draining, or the stream was idle and its memory is needed; every accepted item was
                answered.
            Overloaded: the server cannot hold the message that arrives; items may be unanswered.
        """
        reader = asyncio.create_task(self._read_all())
        drained = asyncio.create_task(self._drain.begun.wait())
        try:
            for task in (reader, drained):
                task.add_done_callback(lambda _: self._woken.set())
            while True:
                if drained.done() and not reader.done():
                    reader.cancel()
                if self._ready:
                    await self._write()
                elif (reader.done() or drained.done()) and not self._open:
                    break
                elif _is_refused(reader):
                    reader.result()  # at once: what gRPC holds of its message is free only when the call has ended
                else:
                    self._woken.clear()
                    if not self._ready:
                        await self._woken.wait()
            if drained.done():
                raise draining_error()
            reader.result()
        finally:
            reader.cancel()
            drained.cancel()
            self._task.leave()
            has_expired = bool(self._open) and has_reached_deadline(self._context)
            for pending in list(self._open.values()):
                self._task.cancel_request(pending, has_expired=has_expired)
            self._call.fields["items"] = self._call.received

    async def _read_all(self) -> None:
        while True:
            if not self._room.is_set():
                await self._room.wait()
            while not self._task.may_read(is_free=not self._open):
                await self._task.wait_turn()
            raw = await self._reader.read()
            if raw is None:
                return
            await self._take(raw)
            del raw  # not held while the next one is awaited

    async def _take(self, raw: bytes) -> None:
        try:
            items = self._task.parse_items(raw)
        except InputRefused as error:
            self._unwritten += 1
            self._finish("", error)
            self._pause_if_full()
            return
        refusal = None if self._task.may_accept(items) else await self._wait_accepted(items, raw)
        left, begun = self._context.time_remaining(), self._task.now()
        for item_id, request in items:
            if self._task.now() - begun > MAX_BUSY_SECONDS:
                with self._reader.hold_message(raw, has_copies=len(items) > 1):
                    await self._task.pause()
                left, begun = self._context.time_remaining(), self._task.now()
            self._call.received += 1
            self._unwritten += 1
            try:
                is_duplicate = item_id in self._open
                pending = self._task.begin(item_id, request, left, is_duplicate=is_duplicate, refusal=refusal)
            except HotslotError as error:
                self._finish(item_id, error)
                continue
            self._open[item_id] = pending
            self._reader.hold(pending)
            pending.outcome.add_done_callback(self._when_done(item_id))
        self._pause_if_full()

    async def _wait_accepted(self, items: list[tuple[str, Any]], raw: bytes) -> Refusal | None:
        """Wait until the items of a message may be accepted; returns why they are refused, if they are.

        It holds memory that others may need, and its caller's quota may hold it back for hours.
        """
        waiting = asyncio.create_task(self._task.accept_in_turn(items))
        try:
            with self._reader.hold_message(raw, has_copies=len(items) > 1):
                while not (await asyncio.wait({waiting}, timeout=ACCEPT_SECONDS))[0]:
                    refusal = self._task.find_refusal(is_memory_short=self._reader.is_memory_short)
                    if refusal is not None:
                        waiting.cancel()
                        await asyncio.wait({waiting})
                        return refusal
                waiting.result()
                return None
        finally:
            waiting.cancel()

    def _pause_if_full(self) -> None:
        if self._unwritten >= self._rules.max_outstanding:
            self._room.clear()

    def _when_done(self, item_id: str) -> Callable[[asyncio.Future[Prediction]], None]:
        def finish_item(future: asyncio.Future[Prediction]) -> None:
            self._open.pop(item_id, None)
            if not self._open:
                self._task.skip_turn()
            if future.cancelled():
                self._finish(item_id, DeadlineMissed("the deadline passed while it waited"))
                return
            error = future.exception()
            if error is None:
                self._finish(item_id, future.result())
            elif isinstance(error, HotslotError):
                self._finish(item_id, error)
            else:
                self._finish(item_id, NotReady("the item was dropped", reason="INTERNAL"))

        return finish_item

    def _finish(self, item_id: str, outcome: Prediction | HotslotError) -> None:
        self._ready.append(self._task.build_result(item_id, outcome))
        self._woken.set()

    async def _write(self) -> None:
        results, self._ready = self._ready[:MAX_RESULTS_PER_MESSAGE], self._ready[MAX_RESULTS_PER_MESSAGE:]
        await self._reader.write(self._task.build_response(results))
        self._call.sent += len(results)
        self._unwritten -= len(results)
        if self._unwritten < self._rules.max_outstanding:
            self._room.set()
        if self._open:
            await asyncio.sleep(WRITE_PAUSE_SECONDS)


def _is_refused(reader: "asyncio.Task[None]") -> bool:
    """Whether a stream is read no further because the server cannot hold its message."""
    return reader.done() and not reader.cancelled() and isinstance(reader.exception(), Overloaded)
