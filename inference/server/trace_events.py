"""Spans of calls, made from the server's events when a call has ended: nothing of a call's way knows of them.

A call's span has the children receive (until its item is accepted), queue, prepare, compute, hand_over (what a trial
failed) and answer. Calls of the updater belong to the trace of its update.
"""

import os
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TypeVar

from common.clock import Clock
from common.traces import (
    ChainTemplate,
    Sampler,
    SpanKind,
    SpanTemplate,
    TraceContext,
    context_of,
    encode_attribute,
    make_template,
    make_trace_id,
)
from inference.server.events import CallEnded, Event, Handlers, ItemEnded

MAX_ITEMS = 64  # spans of one stream
MAX_CALLS = 4096  # with items whose call has not ended
MAX_TEMPLATES = 4096  # kept; there are few revisions, slots and codes
STAGES = ("receive", "queue", "prepare", "compute", "hand_over", "answer")
EXEMPLAR_SECONDS = 0.1  # between two
_NANOS = 1e9
_CONTROL = ".ControlService"
K = TypeVar("K")
T = TypeVar("T")
_ID = 8  # bytes of a span id
_ID_MASK = (1 << 64) - 1
_HANDOVER = STAGES.index("hand_over")
READING_SECONDS = 10.0  # between two readings of the wall clock


@dataclass(frozen=True, slots=True)
class _DoneItem:
    """An item, and when its outcome was known."""

    item: ItemEnded
    at: int  # nanoseconds since 1970


class EventTracer:
    """Makes the spans of sampled calls. On the loop's thread."""

    def __init__(self, sampler: Sampler, clock: Clock, put: Callable[[bytes], None]) -> None:
        """Make no spans yet.

        Args:
            sampler: decides which calls are recorded.
            clock: for the times of spans.
            put: gets the spans of a call, encoded.
        """
        self._sampler, self._clock, self._put = sampler, clock, put
        self._items: OrderedDict[str, list[_DoneItem]] = OrderedDict()  # by request id
        self._next_exemplar_at = 0.0  # clock.monotonic()
        self._calls: dict[tuple[str, ...], SpanTemplate] = {}
        self._chains: dict[tuple[int, str, str, str, str, str], ChainTemplate] = {}
        self._next_id = int.from_bytes(os.urandom(_ID))
        self._epoch = 0.0  # wall clock when the monotonic one was 0, seconds
        self._next_reading_at = 0.0  # clock.monotonic()

    def handlers(self) -> Handlers:
        """What records each kind of event."""
        return {ItemEnded: self, CallEnded: self}

    def __call__(self, event: Event) -> None:
        """Record an event."""
        if isinstance(event, ItemEnded):
            if event.request_id and self._sampler.is_sampled(event.traceparent, event.request_id):
                self._keep(event)
        elif isinstance(event, CallEnded):
            self._end(event)

    def exemplar_of(self, item: ItemEnded) -> dict[str, str] | None:
        """The trace of an item, for the latency histogram; None if it is not sampled, or one came a moment before.

        A histogram keeps the last exemplar of each bucket, and one costs as much as two spans.
        """
        now = self._clock.monotonic()
        if now < self._next_exemplar_at or not item.request_id:
            return None
        if not self._sampler.is_sampled(item.traceparent, item.request_id):
            return None
        self._next_exemplar_at = now + EXEMPLAR_SECONDS
        return {"trace_id": context_of(item.traceparent, item.request_id).trace_id.hex()}

    def _keep(self, item: ItemEnded) -> None:
        kept = self._items.get(item.request_id)
        if kept is None:
            kept = self._items[item.request_id] = []
            if len(self._items) > MAX_CALLS:
                self._items.popitem(last=False)
        if len(kept) < MAX_ITEMS:
            kept.append(_DoneItem(item, self._now()))

    def _end(self, call: CallEnded) -> None:
        update = "" if call.traceparent else _find_update(call)
        items = self._items.pop(call.request_id, None)
        if not update and items is None and not self._sampler.is_sampled(call.traceparent, call.request_id):
            return
        context = context_of(call.traceparent, call.request_id)
        if update:  # its trace is recorded always
            trace_id = make_trace_id(update)
            context = TraceContext(trace_id, trace_id[:_ID])
        ends = self._now()
        starts = ends - int(call.seconds * _NANOS)
        span_id = self._take_ids(1)
        mine = span_id.to_bytes(_ID, "little")
        more = _encode_request_id(call.request_id)  # by which its log line is found
        spans = self._call_template(call).encode(context, mine, starts, ends, more)
        for done in items or ():
            spans += self._encode_stages(context.trace_id, mine, done, starts, ends)
        self._put(spans)

    def _encode_stages(self, trace_id: bytes, parent_id: bytes, done: _DoneItem, starts: int, ends: int) -> bytes:
        """The stages of one item, as children of its call."""
        item = done.item
        queued = done.at - int(item.seconds * _NANOS)
        prepared = queued + int(item.queued_seconds * _NANOS)
        computed = prepared + int(item.prepared_seconds * _NANOS)
        handed = computed + int(item.computed_seconds * _NANOS)
        nanos = []
        stages = 0
        times = ((starts, queued), (queued, prepared), (prepared, computed), (computed, handed), (handed, done.at))
        for number, both in enumerate((*times, (done.at, ends))):
            if both[1] > both[0] and (number != _HANDOVER or item.handover):
                nanos.append(both)
                stages |= 1 << number
        if not nanos:
            return b""
        chain = self._chain_of(item, stages)
        return chain.encode(trace_id, parent_id, self._take_ids(len(nanos)), nanos)

    def _take_ids(self, count: int) -> int:
        """So many span ids in a row; returns the first. They begin with a random one, and count on."""
        first = self._next_id
        self._next_id = first + count & _ID_MASK
        return first

    def _now(self) -> int:
        """The wall clock, nanoseconds, by the monotonic one, which is read in a tenth of the time."""
        now = self._clock.monotonic()
        if now >= self._next_reading_at:
            self._next_reading_at = now + READING_SECONDS
            self._epoch = self._clock.now().timestamp() - now
        return int((self._epoch + now) * _NANOS)

    def _call_template(self, call: CallEnded) -> SpanTemplate:
        key = (call.service, call.method, call.code, call.reason)
        template = self._calls.get(key)
        if template is None:
            facts = {"rpc.system": "grpc", "rpc.service": call.service, "rpc.method": call.method}
            error = "" if call.code == "OK" else f"{call.code} {call.reason}".strip()
            named = f"{call.service}/{call.method}"
            template = make_template(named, SpanKind.SERVER, {**facts, "hotslot.grpc_code": call.code}, error)
            _remember(self._calls, key, template)
        return template

    def _chain_of(self, item: ItemEnded, stages: int) -> ChainTemplate:
        """Of those of STAGES whose bits are set."""
        key = (stages, item.model, item.revision, item.device, item.slot, item.handover)
        found = self._chains.get(key)
        if found is None:
            names = ("hotslot.model", "hotslot.revision", "hotslot.device", "hotslot.slot", "hotslot.reason")
            facts = dict(zip(names, key[1:], strict=True))
            chosen = [stage for number, stage in enumerate(STAGES) if stages >> number & 1]
            found = ChainTemplate([make_template(stage, SpanKind.INTERNAL, facts) for stage in chosen])
            _remember(self._chains, key, found)
        return found


def _encode_request_id(request_id: str) -> bytes:
    content = request_id.encode()
    return _find_request_id_head(len(content)) + content


@cache
def _find_request_id_head(size: int) -> bytes:
    """What stands before a request id of this size, of which there are few."""
    whole = encode_attribute("hotslot.request_id", "x" * size)
    return whole[: len(whole) - size]


def _remember(cache: dict[K, T], key: K, value: T) -> None:
    if len(cache) >= MAX_TEMPLATES:
        cache.clear()
    cache[key] = value


def _find_update(call: CallEnded) -> str:
    """The update that a call of the updater belongs to; empty for other calls."""
    if not call.service.endswith(_CONTROL):
        return ""
    return next((str(value) for key, value in call.fields if key == "transaction_id"), "")
