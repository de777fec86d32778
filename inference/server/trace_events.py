"""Spans of calls, made from the server's events when a call has ended: nothing of a call's way knows of them.

A call's span has the children receive (until its item is accepted), queue, prepare, compute, hand_over (what a trial
failed) and answer. Calls of the updater belong to the trace of its update.
"""

import os
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from common.clock import Clock
from common.traces import (
    Sampler,
    SpanKind,
    TraceContext,
    context_of,
    encode_attribute,
    encode_span,
    encode_tail,
    make_trace_id,
)
from inference.server.events import CallEnded, Event, ItemEnded, ItemOutcome

MAX_ITEMS = 64  # spans of one stream
MAX_CALLS = 4096  # with items whose call has not ended
MAX_TAILS = 4096  # kept; there are few revisions, slots and codes
_NANOS = 1e9
_CONTROL = ".ControlService"
_ID = 8  # bytes of a span id
_STAGES = 6


@dataclass(frozen=True, slots=True)
class _DoneItem:
    """An item, and when its outcome was known."""

    item: ItemEnded
    at: float  # seconds since 1970


class EventTracer:
    """Makes the spans of sampled calls. On the loop's thread."""

    def __init__(self, sampler: Sampler, clock: Clock, put: Callable[[bytes], None]) -> None:
        self._sampler, self._clock, self._put = sampler, clock, put
        self._items: OrderedDict[str, list[_DoneItem]] = OrderedDict()  # by request id
        self._tails: dict[tuple[str, ...], bytes] = {}

    def __call__(self, event: Event) -> None:
        """Record an event."""
        if isinstance(event, ItemEnded):
            if event.request_id and self._sampler.is_sampled(event.traceparent, event.request_id):
                self._keep(event)
        elif isinstance(event, CallEnded):
            self._end(event)

    def exemplar_of(self, item: ItemEnded) -> dict[str, str] | None:
        """The trace of an item, for the latency histogram; None if it is not sampled."""
        if not item.request_id or not self._sampler.is_sampled(item.traceparent, item.request_id):
            return None
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
        tail = self._tail(f"{call.service}/{call.method}", call.code, call.reason)
        tail += encode_attribute("hotslot.request_id", call.request_id)  # by which its log line is found
        self._put(encode_span(context.trace_id, ids[:_ID], context.parent_id, _nanos(starts), _nanos(ends), tail=tail))
        for number, done in enumerate(items):
            first = _ID * (1 + _STAGES * number)
            self._put_item(context.trace_id, ids[:_ID], done, (starts, ends), ids[first : first + _STAGES * _ID])

    def _put_item(self, trace_id: bytes, parent: bytes, done: _DoneItem, call: tuple[float, float], ids: bytes) -> None:
        """The stages of one item, as children of its call."""
        item = done.item
        accepted = done.at - item.seconds
        labels = (item.model, item.revision, item.device, item.slot)
        stages = [("receive", call[0], accepted)]
        at = accepted
        if item.outcome is ItemOutcome.ANSWERED:
            for stage, seconds in (
                ("queue", item.queued_seconds),
                ("prepare", item.prepared_seconds),
                ("compute", item.computed_seconds),
            ):
                if seconds > 0:
                    stages.append((stage, at, at + seconds))
                    at += seconds
        if item.handover:
            stages.append(("hand_over", at, done.at))
        stages.append(("answer", done.at, call[1]))
        for number, (stage, begins, ends) in enumerate(stages):
            tail = self._stage_tail(stage, labels, item.handover if stage == "hand_over" else "")
            mine = ids[_ID * number : _ID * (number + 1)]
            self._put(encode_span(trace_id, mine, parent, _nanos(begins), _nanos(max(begins, ends)), tail=tail))

    def _tail(self, name: str, code: str, reason: str) -> bytes:
        key = (name, code, reason)
        tail = self._tails.get(key)
        if tail is None:
            service, _, method = name.partition("/")
            attributes = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": method, "hotslot.grpc_code": code}
            error = "" if code == "OK" else f"{code} {reason}".strip()
            tail = self._remember(key, encode_tail(name, SpanKind.SERVER, attributes, error))
        return tail

    def _stage_tail(self, stage: str, labels: tuple[str, ...], reason: str) -> bytes:
        key = (stage, *labels, reason)
        tail = self._tails.get(key)
        if tail is None:
            names = ("hotslot.model", "hotslot.revision", "hotslot.device", "hotslot.slot", "hotslot.reason")
            attributes = dict(zip(names, (*labels, reason), strict=True))
            tail = self._remember(key, encode_tail(stage, SpanKind.INTERNAL, attributes))
        return tail

    def _remember(self, key: tuple[str, ...], tail: bytes) -> bytes:
        if len(self._tails) >= MAX_TAILS:
            self._tails.clear()
        self._tails[key] = tail
        return tail


def _find_update(call: CallEnded) -> str:
    """The update that a call of the updater belongs to; empty for other calls."""
    if not call.service.endswith(_CONTROL):
        return ""
    return next((str(value) for key, value in call.fields if key == "transaction_id"), "")


def _nanos(seconds: float) -> int:
    return int(seconds * _NANOS)
