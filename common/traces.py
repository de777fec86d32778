"""Trace contexts of W3C, and spans in OTLP's encoding. Pure.

Spans are written as bytes at once: a message object for each would cost a server that answers thousands of calls a
second a tenth of them. Field numbers are those of opentelemetry.proto.trace.v1; `make test-watch` reads what is sent
with the protos of OpenTelemetry's SDK.
"""

import hashlib
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum

from common.records import record

NO_PARENT = b""
EVERY_ID, NO_ID = "g", ""  # texts after and before all hexadecimal digits
RANDOM_DIGITS = 8  # the last ones of a trace id: W3C lets an id begin with a time or with zeros
_SAMPLED_FLAG = 1
_LONG = 128
_TRACE_ID = re.compile(r"(?!0{32})[0-9a-f]{32}")  # W3C: an id of zeros alone is invalid
_CHILD = struct.Struct("<2s16s2s8s2s8s1sQ1sQ")  # ids with their tags, then start and end as fixed64
_TIMES = struct.Struct("<1sQ1sQ")
_ID_MASK = (1 << 64) - 1


class SpanKind(IntEnum):
    """OTLP's numbers."""

    INTERNAL = 1
    SERVER = 2


@record
class TraceContext:
    """The trace that a call belongs to."""

    trace_id: bytes  # 16
    parent_id: bytes  # 8; NO_PARENT for a trace that begins here


class Sampler:
    """Decides which traces are recorded: the caller's decision counts; without one, a share of all, by the trace id.

    Attributes:
        below: an id whose last RANDOM_DIGITS are less, as texts, is recorded.
    """

    def __init__(self, share: float) -> None:
        if share in (0.0, 1.0):
            self.below = EVERY_ID if share else NO_ID
        else:
            self.below = f"{int(share * (1 << 32)):08x}"

    def is_sampled(self, traceparent: str, key: str) -> bool:
        """Whether a call is recorded.

        Args:
            traceparent: of the caller, in W3C's form, checked; empty: the trace begins here.
            key: names the call; the same key gives the same decision. One of 32 hexadecimal digits is the trace id.
        """
        if traceparent:
            return bool(int(traceparent[-1], 16) & _SAMPLED_FLAG)
        if self.below in (EVERY_ID, NO_ID):
            return self.below == EVERY_ID
        return make_trace_id(key).hex()[-RANDOM_DIGITS:] < self.below


def context_of(traceparent: str, key: str) -> TraceContext:
    """The trace of a call: the caller's, or one that begins here and is named by the call's key."""
    if traceparent:
        return TraceContext(bytes.fromhex(traceparent[3:35]), bytes.fromhex(traceparent[36:52]))
    return TraceContext(make_trace_id(key), NO_PARENT)


def make_trace_id(key: str) -> bytes:
    """The trace id of what a key names: an update, or a call without a trace. A key of 32 hex digits is the id.

    Zeros alone are none.
    """
    if _TRACE_ID.fullmatch(key):
        return bytes.fromhex(key)
    return hashlib.blake2b(key.encode(), digest_size=16).digest()


@dataclass(frozen=True, slots=True)
class SpanTemplate:
    """What many spans share: name, kind, attributes and status, encoded once."""

    tail: bytes
    child_head: bytes  # tag and length of a span with a parent and this tail

    def encode_child(
        self, trace_id: bytes, span_id: bytes, parent_id: bytes, start_nanos: int, end_nanos: int
    ) -> bytes:
        """A span with a parent, as a field of ScopeSpans."""
        ids = _CHILD.pack(
            b"\x0a\x10", trace_id, b"\x12\x08", span_id, b"\x22\x08", parent_id, b"9", start_nanos, b"A", end_nanos
        )
        return self.child_head + ids + self.tail

    def encode(
        self, context: TraceContext, span_id: bytes, start_nanos: int, end_nanos: int, more: bytes = b""
    ) -> bytes:
        """A span with or without a parent; `more` are further attributes, encoded."""
        parent = b"\x22\x08" + context.parent_id if context.parent_id else b""
        times = _TIMES.pack(b"9", start_nanos, b"A", end_nanos)
        body = b"\x0a\x10" + context.trace_id + b"\x12\x08" + span_id + parent + times + self.tail + more
        return b"\x12" + encode_length(len(body)) + body


class ChainTemplate:
    """Children of one span, encoded by one call: a call's stages cost a server less than each by itself.

    Args:
        templates: of the children, in order.
    """

    def __init__(self, templates: Sequence[SpanTemplate]) -> None:
        heads, before = [], b""
        for template in templates:
            heads.append(before + template.child_head)
            before = template.tail
        self._heads, self._last = tuple(heads), before
        layout = "".join(f"{len(head)}s30sQ1sQ1sQ" for head in heads)  # 30: trace and parent, and the tag of the id
        self._pack = struct.Struct(f"<{layout}{len(before)}s").pack

    def encode(self, trace_id: bytes, parent_id: bytes, first_id: int, nanos: Sequence[tuple[int, int]]) -> bytes:
        """The spans, as fields of ScopeSpans.

        Args:
            trace_id: of all.
            parent_id: of all.
            first_id: span id of the first as a little-endian number; the others count on.
            nanos: start and end of each.
        """
        ids = b"\x0a\x10" + trace_id + b"\x22\x08" + parent_id + b"\x12\x08"
        parts: list[bytes | int] = []
        for number, (start, end) in enumerate(nanos):
            parts += (self._heads[number], ids, first_id + number & _ID_MASK, b"9", start, b"A", end)
        return self._pack(*parts, self._last)


def make_template(name: str, kind: SpanKind, attributes: Mapping[str, str | int], error: str = "") -> SpanTemplate:
    """Encode what many spans share.

    Args:
        name: of the span.
        kind: of the span.
        attributes: empty texts are left out.
        error: why it failed; empty: no status.
    """
    tail = _encode_text(5, name) + b"\x30" + bytes((kind,))
    for key, value in attributes.items():
        if value != "":
            tail += encode_attribute(key, value)
    if error:
        tail += b"\x7a" + _prefixed(_encode_text(2, error) + b"\x18\x02")  # STATUS_CODE_ERROR
    return SpanTemplate(tail, b"\x12" + encode_length(_CHILD.size + len(tail)))


def encode_attribute(key: str, value: str | int) -> bytes:
    """One attribute of a span, to be put after a template's."""
    return b"\x4a" + _prefixed(_encode_attribute(key, value))


def encode_export(spans: bytes, service: Mapping[str, str]) -> bytes:
    """An ExportTraceServiceRequest.

    Args:
        spans: encoded ones, joined.
        service: attributes of the resource: service.name, service.version, host.name …
    """
    resource = b"".join(b"\x0a" + _prefixed(_encode_attribute(key, value)) for key, value in service.items())
    scope_spans = b"\x0a" + _prefixed(_encode_text(1, "hotslot")) + spans
    resource_spans = b"\x0a" + _prefixed(resource) + b"\x12" + _prefixed(scope_spans)
    return b"\x0a" + _prefixed(resource_spans)


def encode_length(size: int) -> bytes:
    """A varint."""
    if size < _LONG:
        return bytes((size,))
    parts = bytearray()
    while size >= _LONG:
        parts.append(size & 0x7F | 0x80)
        size >>= 7
    parts.append(size)
    return bytes(parts)


def _encode_attribute(key: str, value: str | int) -> bytes:
    encoded = _encode_text(1, value) if isinstance(value, str) else b"\x18" + encode_length(value)
    return _encode_text(1, key) + b"\x12" + _prefixed(encoded)


def _encode_text(number: int, text: str) -> bytes:
    return bytes((number << 3 | 2,)) + _prefixed(text.encode())


def _prefixed(content: bytes) -> bytes:
    return encode_length(len(content)) + content
