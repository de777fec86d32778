"""Spans of calls, made from the server's events when a call has ended: nothing of a call's way knows of them.

A call's span has the children receive (until its item is accepted), queue, prepare, compute, hand_over (what a trial
failed) and answer. Calls of the updater belong to the trace of its update.
"""

import os
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from common.clock import Clock
from common.traces import (
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
T = TypeVar("T")
_ID = 8  # bytes of a span id
_STAGES, _HANDOVER = len(STAGES), STAGES.index("hand_over") + 1


@dataclass(frozen=True, slots=True)
class _DoneItem:
    """An item, and when its outcome was known."""

    item: ItemEnded
    at: float  # seconds since 1970


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
        self._stages: dict[tuple[str, ...], tuple[SpanTemplate, ...]] = {}

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
        if not item.request_id or not self._sampler.is_sampled(item.traceparent, item.request_id):
            return None
        now = self._clock.monotonic()
        if now < self._next_exemplar_at:
            return None
        self._next_exemplar_at = now + EXEMPLAR_SECONDS
        return {"trace_id": context_of(item.traceparent, item.request_id).trace_id.hex()}

    def _keep(self, item: ItemEnded) -> None:
        kept = self._items.setdefault(item.request_id, [])
        if len(kept) < MAX_ITEMS:
            kept.append(_DoneItem(item, self._clock.now().timestamp()))
        if len(self._items) > MAX_CALLS:
            self._items.popitem(last=False)

    def _end(self, call: CallEnded) -> None:
        update = "" if call.traceparent else _find_update(call)
        if not update and not self._sampler.is_sampled(call.traceparent, call.request_id):
            return
        context = context_of(call.traceparent, call.request_id)
        if update:  # its trace is recorded always
            trace_id = make_trace_id(update)
            context = TraceContext(trace_id, trace_id[:_ID])
        items = self._items.pop(call.request_id, ())
        ends = self._clock.now().timestamp()
        starts = ends - call.seconds
        ids = os.urandom(_ID * (1 + _STAGES * len(items)))
        template = self._call_template(call)
        more = encode_attribute("hotslot.request_id", call.request_id)  # by which its log line is found
        spans = [template.encode(context, ids[:_ID], int(starts * _NANOS), int(ends * _NANOS), more)]
        for number, done in enumerate(items):
            first = _ID * (1 + _STAGES * number)
            self._add_stages(spans, context.trace_id, done, (starts, ends), ids[:_ID] + ids[first:])
        self._put(b"".join(spans))

    def _add_stages(
        self, spans: list[bytes], trace_id: bytes, done: _DoneItem, call: tuple[float, float], ids: bytes
    ) -> None:
        """The stages of one item, as children of its call, whose id is the first of `ids`."""
        item = done.item
        at = done.at - item.seconds
        times = [call[0], at]
        for seconds in (item.queued_seconds, item.prepared_seconds, item.computed_seconds):
            at += seconds
            times.append(at)
        times += [done.at, call[1]]
        parent, stages = ids[:_ID], zip(self._stage_templates(item), times, times[1:], strict=False)
        for number, (template, begins, ends) in enumerate(stages, 1):
            if ends > begins and (number != _HANDOVER or item.handover):
                mine = ids[_ID * number : _ID * (number + 1)]
                spans.append(template.encode_child(trace_id, mine, parent, int(begins * _NANOS), int(ends * _NANOS)))

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

    def _stage_templates(self, item: ItemEnded) -> tuple[SpanTemplate, ...]:
        """One for each of STAGES."""
        key = (item.model, item.revision, item.device, item.slot, item.handover)
        found = self._stages.get(key)
        if found is None:
            names = ("hotslot.model", "hotslot.revision", "hotslot.device", "hotslot.slot", "hotslot.reason")
            facts = dict(zip(names, key, strict=True))
            found = tuple(make_template(stage, SpanKind.INTERNAL, facts) for stage in STAGES)
            _remember(self._stages, key, found)
        return found


def _remember(cache: dict[tuple[str, ...], T], key: tuple[str, ...], value: T) -> None:
    if len(cache) >= MAX_TEMPLATES:
        cache.clear()
    cache[key] = value


def _find_update(call: CallEnded) -> str:
    """The update that a call of the updater belongs to; empty for other calls."""
    if not call.service.endswith(_CONTROL):
        return ""
    return next((str(value) for key, value in call.fields if key == "transaction_id"), "")
