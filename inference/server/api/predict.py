"""Predict and StreamPredict of any task: one request a call, or items in a stream."""

import asyncio
import itertools
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import grpc
from google.protobuf.message import Message

from common.clock import Clock
from common.errors import HotslotError, InputRefused, NotFound, Overloaded
from inference.server.api import convert
from inference.server.api.interceptors import current_call, has_reached_deadline
from inference.server.api.reading import Context, MessageReader
from inference.server.api.stream import ItemStream, StreamRules
from inference.server.api.task import InputLimits, TaskApi, build_result
from inference.server.events import Emit
from inference.server.model.manager import ModelManager
from inference.server.model.models import Models
from inference.server.model.stats import IncomingItem
from inference.server.request import PendingRequest, Prediction, RequestTags
from inference.server.scheduling.admission import MIN_RETRY_SECONDS, Drain, Refusal, draining_error
from inference.server.scheduling.fair_queue import Source
from inference.server.scheduling.held_bytes import HeldBytes
from inference.server.scheduling.turns import MAX_TURN_ROWS, Reader, TurnGate

_stream_numbers = itertools.count(1)
_NO_SHARE = 0.5  # of interactive callers, where none is held back for another


@dataclass(frozen=True, slots=True)
class PredictRules:
    """Limits of a call."""

    inputs: InputLimits
    stream: StreamRules
    max_deadline_seconds: float


class PredictApi:
    """The handlers of a task's service. Requests arrive as bytes, so that a parse error gets our INVALID_ARGUMENT."""

    def __init__(
        self,
        api: TaskApi,
        models: Models,
        rules: PredictRules,
        clock: Clock,
        emit: Emit,
        drain: Drain,
        held: HeldBytes,
    ) -> None:
        self.api = api
        self._models = models
        self._held = held
        self.rules = rules  # may be replaced
        self._clock = clock
        self._emit = emit
        self._drain = drain
        self._pausing = asyncio.Lock()
        # Where a stream waits that may be for any of several models: its caller's quota alone holds it back.
        self.turns_before_model = TurnGate(_NO_SHARE, clock, lambda: MAX_TURN_ROWS)

    def handlers(self) -> grpc.GenericRpcHandler:
        """What the server registers."""
        return grpc.method_handlers_generic_handler(
            self.api.service,
            {
                # As a stream of one message: gRPC reads it only when the handler asks for it.
                "Predict": grpc.stream_unary_rpc_method_handler(
                    self.predict, None, self.api.predict_response.SerializeToString
                ),
                "StreamPredict": grpc.stream_stream_rpc_method_handler(
                    self.stream_predict, None, self.api.stream_response.SerializeToString
                ),
            },
        )

    async def predict(self, _messages: object, context: Context) -> Message:
        """Answer one request.

        Raises:
            HotslotError: one of the errors in the task's proto.
        """
        with MessageReader(context, self._held, self._clock) as reader:
            with IncomingItem(self._emit, partial(has_reached_deadline, context)) as item:
                source = current_call.get().caller.unary_source
                # No variable of this frame refers to the input: a cancelled task keeps its frames.
                pending = self.accept(item, await self._read_request(reader), context.time_remaining(), source)
                reader.hold(pending)
            prediction = await self.wait(pending, context)
        response: Message = self.api.build_response(prediction)
        note_answer(self.api.describe_answer(prediction), prediction)
        return response

    async def wait(self, pending: PendingRequest, context: Context) -> Prediction:
        """The outcome of an accepted request of a call; the request is cancelled if its caller leaves.

        Raises:
            HotslotError: it has failed.
        """
        current_call.get().fields.update(self.api.describe_input(pending.payload))
        try:
            return await pending.outcome
        finally:
            if not pending.outcome.done() or pending.outcome.cancelled():
                self.cancel_request(pending, has_expired=has_reached_deadline(context))

    async def _read_request(self, reader: MessageReader) -> Any:  # noqa: ANN401  the task's own record
        if self._drain.is_draining:
            raise draining_error()
        return self.api.parse_request(await reader.read_only())

    async def stream_predict(self, _requests: object, context: Context) -> None:
        """Answer a stream of items.

        Raises:
            NotReady: the server is draining.
        """
        with MessageReader(context, self._held, self._clock) as reader:
            await ItemStream(context, TaskStream(self), self.rules.stream, self._drain, reader).run()

    def accept(
        self,
        item: IncomingItem,
        request: Any,  # noqa: ANN401  the task's own record
        left: float | None,
        source: Source,
        tags: RequestTags | None = None,
    ) -> PendingRequest:
        """Check a request, and give it to its model.

        Args:
            item: that counts it.
            request: as the task parses it.
            left: seconds until its deadline; None if it has none.
            source: its caller.
            tags: None: those of the call.

        Raises:
            HotslotError: it is refused.
        """
        manager = self.find_model(self.api.model_of(request))
        item.model = manager.options.model
        payload = self.api.check(request, self.rules.inputs)
        limit = self.rules.max_deadline_seconds
        seconds = limit if left is None else min(left, limit)
        tags = current_call.get().tags if tags is None else tags
        return manager.requests.predict(payload, self._clock.monotonic() + seconds, source, tags)

    def find_model(self, name: str) -> ModelManager:
        """The model that a call addresses, by name or, if the name is empty, by task.

        Raises:
            NotFound: there is no such model of this task.
            InputRefused: none was named, and there are several.
        """
        task = self.api.task
        if name:
            manager = self._models.get(name)
            if manager.options.task is task:
                return manager
            text = f"model {name[:64]!r} has another task: {manager.options.task}"
            raise NotFound(text, field="model", resource=("model", name[:128]))
        of_task = self._models.of_task[task]
        if len(of_task) == 1:
            return of_task[0]
        if not of_task:
            raise NotFound(f"no model of task {task.value!r} is served here", field="model", resource=("model", ""))
        names = ", ".join(manager.options.model for manager in of_task)
        raise InputRefused(f"several models are served; name one of {names}", reason="MODEL_REQUIRED", field="model")

    # For streams.

    def now(self) -> float:
        """The clock, seconds."""
        return self._clock.monotonic()

    async def pause(self) -> None:
        """Let other work go first; of all streams that pause, one goes on in a turn of the event loop."""
        async with self._pausing:
            await asyncio.sleep(0)

    def find_turns(self, model: str) -> TurnGate | None:
        """Where the streams of a model wait for their turns; None if there is no such model."""
        try:
            return self.find_model(model).requests.intake.turns
        except HotslotError:
            return None

    def parse_items(self, raw: bytes) -> list[tuple[str, Any]]:
        """Parse a stream message into item ids and requests."""
        with IncomingItem(self._emit):
            return self.api.parse_items(raw)

    def begin(
        self,
        item_id: str,
        request: Any,  # noqa: ANN401  the task's own record
        deadline_seconds: float | None,
        source: Source,
        *,
        is_duplicate: bool,
        refusal: Refusal | None = None,
    ) -> PendingRequest:
        """Accept one item, or refuse it."""
        with IncomingItem(self._emit) as item:
            convert.check_item_id(item_id, is_duplicate=is_duplicate)
            if refusal is not None:
                item.model = self.find_model(self.api.model_of(request)).options.model
                retry = max(MIN_RETRY_SECONDS, refusal.excess_seconds)
                raise refusal.error(refusal.message, reason=refusal.reason, retry_after_seconds=retry)
            tags = current_call.get().tags
            tags = RequestTags(tags.request_id, item_id, tags.routing_key, tags.version, tags.trace)
            return self.accept(item, request, deadline_seconds, source, tags)

    def cancel_request(self, pending: PendingRequest, *, has_expired: bool) -> None:
        """Cancel a request whose caller is gone."""
        for manager in self._models.list_holding(self.api.task):
            manager.requests.cancel(pending, has_expired=has_expired)


class TaskStream:
    """The task of one stream: its items are a flow of its caller, and it reads them in turn.

    It waits for a turn of each model that its latest message named, with a `Reader` at each.
    """

    def __init__(self, api: PredictApi) -> None:
        caller = current_call.get().caller
        self._api = api
        self._number, self._rules = next(_stream_numbers), caller.rules
        self._source = Source(caller, caller.stream_flow(self._number))
        self._holds_message = False
        gate = api.find_turns("")
        self._readers = {api.turns_before_model if gate is None else gate: Reader(caller, self._source.flow)}

    def may_read(self, *, is_free: bool) -> bool:
        """Whether it may read its next message now."""
        return all(gate.may_read(reader, is_free=is_free) for gate, reader in self._readers.items())

    async def wait_turn(self) -> None:
        """Wait for the turn to read its next message."""
        for gate, reader in self._readers.items():
            if not gate.may_read(reader, is_free=False):
                await gate.wait(reader)

    def skip_turn(self) -> None:
        """Let it read at once; one that waits with a message beyond its quota keeps its place."""
        if self._holds_message and self._source.caller.quota_wait(self._api.now()) > 0:
            return
        for gate, reader in self._readers.items():
            gate.skip(reader)

    def leave(self) -> None:
        """Forget that it waits: it has ended."""
        for gate, reader in self._readers.items():
            gate.leave(reader)

    def parse_items(self, raw: bytes) -> list[tuple[str, Any]]:
        """Parse a message."""
        return self._api.parse_items(raw)

    def now(self) -> float:
        """The clock, seconds."""
        return self._api.now()

    async def pause(self) -> None:
        """Let other work go first."""
        await self._api.pause()

    def may_accept(self, items: list[tuple[str, Any]], had_turn: Collection[TurnGate] = ()) -> bool:
        """Whether the items of a message may be accepted now; then their rows are charged to the stream.

        Args:
            items: of the message.
            had_turn: where the stream has waited for a turn with this message.
        """
        rows = self._count_rows(items)
        if self._source.caller.rules is not self._rules:
            self._take_rights()
        for gate in [gate for gate in self._readers if rows and gate not in rows]:
            gate.leave(self._readers.pop(gate))
        for gate in rows:
            self._readers.setdefault(gate, Reader(self._source.caller, self._source.flow))
        if not all(gate in had_turn or gate.may_accept(self._readers[gate]) for gate in rows):
            return False
        for gate, count in rows.items():
            gate.on_read(self._readers[gate], count)
        return True

    async def accept_in_turn(self, items: list[tuple[str, Any]]) -> None:
        """Wait until they may be accepted."""
        had_turn = set[TurnGate]()  # one that has passed meanwhile was a turn nevertheless
        self._holds_message = True
        try:
            await self._wait_for_all(items, had_turn)
        finally:
            self._holds_message = False

    async def _wait_for_all(self, items: list[tuple[str, Any]], had_turn: set[TurnGate]) -> None:
        while not self.may_accept(items, had_turn):
            for gate, reader in list(self._readers.items()):
                if gate not in had_turn and not gate.may_accept(reader):
                    await gate.wait(reader)
                    if reader.allowance:
                        had_turn.add(gate)

    def find_refusal(self, *, is_memory_short: bool) -> Refusal | None:
        """Why the items of a message that has waited for long are refused; None: it waits on.

        Beyond its quota, few streams of a caller may wait with a message; and none if others need the memory.
        """
        quota = self._source.caller.quota_wait(self._api.now())
        is_one_of_few = all(gate.reads_ahead(reader) for gate, reader in self._readers.items())
        if quota > 0 and (is_memory_short or not is_one_of_few):
            return Refusal(Overloaded, "QUOTA_EXCEEDED", "the caller's quota is used up", quota)
        if is_memory_short:
            text = "the message waited too long for its turn while the server is short of memory"
            return Refusal(Overloaded, "QUEUE_FULL", text)
        return None

    def _take_rights(self) -> None:
        """Use its caller's rights as they are now."""
        caller = self._source.caller
        self._rules, self._source = caller.rules, Source(caller, caller.stream_flow(self._number))
        for reader in self._readers.values():
            reader.set_flow(self._source.flow)

    def _count_rows(self, items: list[tuple[str, Any]]) -> dict[TurnGate, int]:
        """The rows of a message at the gate of each model; those for a model that is not served cost nothing."""
        rows: dict[TurnGate, int] = {}
        api, gates = self._api.api, dict[str, TurnGate | None]()
        for _, request in items:
            name = api.model_of(request)
            if name not in gates:
                gates[name] = self._api.find_turns(name)
            gate = gates[name]
            if gate is not None:
                rows[gate] = rows.get(gate, 0) + api.count_rows(request, self._api.rules.inputs)
        return rows

    def begin(
        self,
        item_id: str,
        request: Any,  # noqa: ANN401  the task's own record
        deadline_seconds: float | None,
        *,
        is_duplicate: bool,
        refusal: Refusal | None,
    ) -> PendingRequest:
        """Accept one item, or refuse it."""
        return self._api.begin(
            item_id, request, deadline_seconds, self._source, is_duplicate=is_duplicate, refusal=refusal
        )

    def cancel_request(self, pending: PendingRequest, *, has_expired: bool) -> None:
        """Cancel a request whose caller is gone."""
        self._api.cancel_request(pending, has_expired=has_expired)

    def build_result(self, item_id: str, outcome: Prediction | HotslotError) -> Any:  # noqa: ANN401
        """Convert the outcome of one item."""
        return build_result(self._api.api, item_id, outcome)

    def build_response(self, results: list[Any]) -> Any:  # noqa: ANN401
        """Combine outcomes into one message."""
        make: Any = self._api.api.stream_response
        return make(results=results)


def note_answer(fields: Mapping[str, object], prediction: Prediction) -> None:
    """Record the log fields of an answered call."""
    current_call.get().fields.update(
        model=prediction.served_by.model,
        revision=prediction.served_by.revision,
        slot=prediction.served_by.slot,
        device=prediction.served_by.device,
        **fields,
        queued_seconds=round(prediction.queued_seconds, 6),
        computed_seconds=round(prediction.computed_seconds, 6),
    )
