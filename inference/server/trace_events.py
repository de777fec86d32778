"""Spans of calls. Whether a call is recorded is decided once, when it begins; its spans are encoded by another thread.

A call's span has the children receive (until its item is accepted), queue, prepare, compute, hand_over (what a trial
failed) and answer. Calls of the updater belong to the trace of its update.

The event loop only notes facts in a tuple of texts and numbers, which the garbage collector does not visit again. A
batch is encoded at once: between other work, each call would cost several times as much.
"""

import os
from collections.abc import Callable, Sequence
from functools import cache
from typing import TypeVar

from common.clock import Clock
from common.traces import (
    EVERY_ID,
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
from inference.server.events import CallEnded, ItemEnded

MAX_ITEMS = 64  # spans of one stream
MAX_TEMPLATES = 4096  # kept; there are few revisions, slots and codes
STAGES = ("receive", "queue", "prepare", "compute", "hand_over", "answer")
EXEMPLAR_SECONDS = 0.1  # between two
# Plain tuples: the garbage collector stops to visit them, unlike objects. An item: model, revision, device, slot, why a
# trial failed it; seconds, queued, prepared, computed, and when its outcome was known by the monotonic clock.
ItemFacts = tuple[str, str, str, str, str, float, float, float, float, float]
# A call: service, method, code, reason, request id, traceparent, update; seconds, and when it ended; its items.
CallFacts = tuple[str, str, str, str, str, str, str, float, float, tuple[ItemFacts, ...]]
_NANOS = 1e9
_CONTROL = ".ControlService"
K = TypeVar("K")
T = TypeVar("T")
_ID = 8  # bytes of a span id
_ID_MASK = (1 << 64) - 1
_HANDOVER = 1 << STAGES.index("hand_over")  # bit


class RecordedCall:
    """The facts of a call that is recorded; see `CallTrace`."""

    __slots__ = ("_is_sampled", "_items", "_request_id", "_traceparent", "_tracer")

    def __init__(self, tracer: "CallTracer", request_id: str, traceparent: str, *, is_sampled: bool) -> None:
        self._tracer, self._request_id, self._traceparent = tracer, request_id, traceparent
        self._is_sampled = is_sampled  # else it is recorded if it is of an update
        self._items: list[ItemFacts] = []

    def add_item(self, item: ItemEnded, now: float) -> None:
        """Note an item whose outcome is known; `now` is the monotonic clock."""
        if len(self._items) < MAX_ITEMS:
            times = (item.seconds, item.queued_seconds, item.prepared_seconds, item.computed_seconds, now)
            self._items.append((item.model, item.revision, item.device, item.slot, item.handover, *times))

    def end(self, call: CallEnded, now: float) -> None:
        """Record it; `now` is the monotonic clock."""
        update = "" if self._traceparent else _find_update(call)
        if update or self._is_sampled:
            named = (call.service, call.method, call.code, call.reason)
            ids = (self._request_id, self._traceparent, update)
            self._tracer.put((*named, *ids, call.seconds, now, tuple(self._items)))

    def take_exemplar(self) -> dict[str, str] | None:
        """Its trace, for the latency histogram; None if another call's was taken a moment before.

        A histogram keeps the last exemplar of each bucket, and one costs as much as two spans.
        """
        if not self._is_sampled or not self._tracer.is_exemplar_due():
            return None
        return {"trace_id": context_of(self._traceparent, self._request_id).trace_id.hex()}


class CallTracer:
    """Decides which calls are recorded. On the loop's thread."""

    def __init__(self, sampler: Sampler, clock: Clock, put: Callable[[CallFacts], None]) -> None:
        """Record nothing yet.

        Args:
            sampler: decides by the trace.
            clock: for exemplars.
            put: gets the facts of a call that has ended.
        """
        self._sampler, self._clock, self.put = sampler, clock, put
        self._next_exemplar_at = 0.0  # clock.monotonic()

    def sampled_below(self, service: str) -> str:
        """The sampling bound of a service: a call is recorded if the last RANDOM_DIGITS of its id are below it.

        `begin` decides on calls with ids of their callers.

        A call that is not recorded costs one comparison of texts.
        """
        return EVERY_ID if service.endswith(_CONTROL) else self._sampler.below

    def begin(self, service: str, request_id: str, traceparent: str) -> RecordedCall | None:
        """The trace of a call that begins; None: it is not recorded.

        Args:
            service: that is called.
            request_id: the caller's, or made by this server: 32 hexadecimal digits.
            traceparent: of the caller, in W3C's form, checked; empty: the trace begins here.
        """
        is_sampled = self._sampler.is_sampled(traceparent, request_id)
        if is_sampled or service.endswith(_CONTROL):
            return RecordedCall(self, request_id, traceparent, is_sampled=is_sampled)
        return None

    def is_exemplar_due(self) -> bool:
        """Whether the last exemplar is old enough; if so, one is taken now."""
        now = self._clock.monotonic()
        if now < self._next_exemplar_at:
            return False
        self._next_exemplar_at = now + EXEMPLAR_SECONDS
        return True


def count_items(call: CallFacts) -> int:
    """The items of a call that are to have spans."""
    return len(call[-1])


class CallEncoder:
    """Makes spans of the facts of calls. On one thread, the exporter's."""

    def __init__(self, clock: Clock) -> None:
        """Make none yet; the clock is for the times of spans."""
        self._clock = clock
        self._calls: dict[tuple[str, ...], SpanTemplate] = {}
        self._chains: dict[tuple[int | str, ...], ChainTemplate] = {}
        self._next_id = int.from_bytes(os.urandom(_ID))

    def encode(self, calls: Sequence[CallFacts]) -> bytes:
        """The spans of some calls, joined."""
        epoch = self._clock.now().timestamp() - self._clock.monotonic()
        return b"".join([part for call in calls for part in self._encode_call(call, epoch)])

    def _encode_call(self, call: CallFacts, epoch: float) -> list[bytes]:
        service, method, code, reason, request_id, traceparent, update, seconds, now, items = call
        context = context_of(traceparent, request_id)
        if update:  # its trace is recorded always
            trace_id = make_trace_id(update)
            context = TraceContext(trace_id, trace_id[:_ID])
        ends = int((epoch + now) * _NANOS)
        starts = ends - int(seconds * _NANOS)
        mine = self._take_ids(1).to_bytes(_ID, "little")
        more = _encode_request_id(request_id)  # by which its log line is found
        spans = [self._call_template(service, method, code, reason).encode(context, mine, starts, ends, more)]
        for item in items:
            done = int((epoch + item[-1]) * _NANOS)
            spans.append(self._encode_stages(context.trace_id, mine, item, (starts, done, ends)))
        return spans

    def _encode_stages(self, trace_id: bytes, parent_id: bytes, item: ItemFacts, call: tuple[int, int, int]) -> bytes:
        """The stages of one item, as children of its call: when this began, the item was done, and the call ended."""
        model, revision, device, slot, handover, seconds, queued_seconds, prepared_seconds, computed_seconds, _ = item
        starts, done, ends = call
        queued = done - int(seconds * _NANOS)
        prepared = queued + int(queued_seconds * _NANOS)
        computed = prepared + int(prepared_seconds * _NANOS)
        handed = computed + int(computed_seconds * _NANOS)
        nanos: list[tuple[int, int]] = []
        stages, bit, begins = 0, 1, starts
        for until in (queued, prepared, computed, handed, done, ends):
            if until > begins and (bit != _HANDOVER or handover):
                nanos.append((begins, until))
                stages |= bit
            begins, bit = until, bit << 1
        if not nanos:
            return b""
        chain = self._chain_of(stages, model, revision, device, slot, handover)
        return chain.encode(trace_id, parent_id, self._take_ids(len(nanos)), nanos)

    def _take_ids(self, count: int) -> int:
        """So many span ids in a row; returns the first. They begin with a random one, and count on."""
        first = self._next_id
        self._next_id = first + count & _ID_MASK
        return first

    def _call_template(self, *key: str) -> SpanTemplate:
        template = self._calls.get(key)
        if template is None:
            service, method, code, reason = key
            facts = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": method}
            error = "" if code == "OK" else f"{code} {reason}".strip()
            named = f"{service}/{method}"
            template = make_template(named, SpanKind.SERVER, {**facts, "hotslot.grpc_code": code}, error)
            _remember(self._calls, key, template)
        return template

    def _chain_of(self, stages: int, *named: str) -> ChainTemplate:
        """Of those of STAGES whose bits are set."""
        key: tuple[int | str, ...] = (stages, *named)
        found = self._chains.get(key)
        if found is None:
            names = ("hotslot.model", "hotslot.revision", "hotslot.device", "hotslot.slot", "hotslot.reason")
            facts = dict(zip(names, named, strict=True))
            chosen = [stage for number, stage in enumerate(STAGES) if stages >> number & 1]
            found = ChainTemplate([make_template(stage, SpanKind.INTERNAL, facts) for stage in chosen])
            _remember(self._chains, key, found)
        return found


def _encode_request_id(request_id: str) -> bytes:
    content = request_id.encode()
    return _find_request_id_head(len(content)) + content


@cache
def _find_request_id_head(size: int) -> bytes:
    """The encoded bytes before a request id of this length; cached, because few lengths occur."""
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
