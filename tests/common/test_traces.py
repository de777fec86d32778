"""Spans: which are recorded, what they say, and that they reach a collector."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from common import logs
from common.trace_export import MAX_ENCODED, MAX_WAITING, MAX_WAITING_ITEMS, SpanExporter
from common.traces import RANDOM_DIGITS, Sampler, SpanKind, context_of, encode_export, make_template, make_trace_id
from dev.harness.collector import ReceivedSpan, read_request, simulated_collector
from inference.server.events import CallEnded, ItemEnded, ItemOutcome
from inference.server.trace_events import (
    EXEMPLAR_SECONDS,
    MAX_ITEMS,
    CallEncoder,
    CallFacts,
    CallTracer,
    RecordedCall,
    count_items,
)
from tests.common.clock import KeptLog, SimClock
from updater.core.record import Event, ModelRecord, Outcome, Stage, Update, UpdateKind
from updater.trace_observer import TraceObserver

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED, UNSAMPLED = f"00-{TRACE}-{PARENT}-01", f"00-{TRACE}-{PARENT}-00"
PREDICT = "hotslot.entailment.v1.EntailmentService"
SERVICE = {"service.name": "hotslot-server"}


def decode(*spans: bytes) -> list[ReceivedSpan]:
    """As a collector reads them."""
    return list(read_request(encode_export(b"".join(spans), SERVICE)))


class Calls:
    """A server's calls."""

    def __init__(self, share: float) -> None:
        self.clock = SimClock()
        self._recorded: list[CallFacts] = []
        self._tracer = CallTracer(Sampler(share), self.clock, self._recorded.append)

    def begin(self, traceparent: str = "", request_id: str = "r1", service: str = PREDICT) -> RecordedCall | None:
        """Begin one."""
        return self._tracer.begin(service, request_id, traceparent)

    def spans(self) -> bytes:
        """Of those that have ended."""
        return CallEncoder(self.clock).encode(self._recorded)


def item(**more: object) -> ItemEnded:
    """One answered in a second, 0.9 of which are known."""
    facts: dict[str, object] = {"seconds": 1.0, "queued_seconds": 0.2, "prepared_seconds": 0.3, "computed_seconds": 0.4}
    facts |= {"slot": "a", **more}
    return ItemEnded("shapes", "v1", "cpu", ItemOutcome.ANSWERED, "", ("yes",), **facts)  # type: ignore[arg-type]


def call(
    code: str = "OK", traceparent: str = "", fields: tuple[tuple[str, object], ...] = (), **more: str
) -> CallEnded:
    """One of 1.5 seconds."""
    facts = {"service": PREDICT, "method": "Predict", "request_id": "r1", **more}
    return CallEnded(
        facts["service"],
        facts["method"],
        "unary",
        code,
        1.5,
        facts["request_id"],
        traceparent,
        "" if code == "OK" else "QUEUE_FULL",
        1,
        1,
        fields,
    )


def test_a_call_has_a_span_for_each_stage() -> None:
    """They follow each other within the call, and name revision and slot."""
    calls = Calls(1.0)
    trace = calls.begin()
    assert trace is not None
    calls.clock.advance(1.25)
    trace.add_item(item(handover="NOT_FINITE"), calls.clock.monotonic())
    calls.clock.advance(0.25)
    trace.end(call(), calls.clock.monotonic())

    root, *stages = decode(calls.spans())
    assert root.name == f"{PREDICT}/Predict"
    assert (root.kind, root.parent_id, root.attributes["hotslot.request_id"]) == (2, "", "r1")
    assert [span.name for span in stages] == ["receive", "queue", "prepare", "compute", "hand_over", "answer"]
    assert {span.parent_id for span in stages} == {root.span_id}
    assert {span.trace_id for span in stages} == {root.trace_id}
    assert stages[1].attributes["hotslot.revision"] == "v1"
    assert stages[1].attributes["hotslot.slot"] == "a"
    seconds = [round((span.end_nanos - span.start_nanos) / 1e9, 2) for span in stages]
    assert seconds == [0.25, 0.2, 0.3, 0.4, 0.1, 0.25]
    assert stages[0].start_nanos == root.start_nanos
    assert stages[-1].end_nanos == root.end_nanos
    assert root.end_nanos / 1e9 == pytest.approx(calls.clock.now().timestamp())


def test_a_long_stream_has_the_spans_of_its_first_items() -> None:
    """The facts of a call are bounded."""
    calls = Calls(1.0)
    trace = calls.begin()
    assert trace is not None
    for _ in range(MAX_ITEMS + 10):
        trace.add_item(item(), calls.clock.monotonic())
    trace.end(call(), calls.clock.monotonic())
    assert sum(span.name == "queue" for span in decode(calls.spans())) == MAX_ITEMS


def test_the_callers_trace_is_continued_if_it_is_sampled() -> None:
    """Whatever the share is; one that is not sampled is not recorded."""
    calls = Calls(0.0)
    trace = calls.begin(SAMPLED)
    assert trace is not None
    trace.add_item(item(), calls.clock.monotonic())
    trace.end(call(), calls.clock.monotonic())
    found = decode(calls.spans())
    assert {(span.trace_id, span.kind == SpanKind.SERVER and span.parent_id) for span in found} == {
        (TRACE, PARENT),
        (TRACE, False),
    }
    assert trace.take_exemplar() == {"trace_id": TRACE}
    assert trace.take_exemplar() is None  # so soon after
    calls.clock.advance(EXEMPLAR_SECONDS)
    assert trace.take_exemplar() == {"trace_id": TRACE}
    assert calls.begin() is None
    assert Calls(1.0).begin(UNSAMPLED) is None


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 1.0])
def test_the_share_is_kept(share: float) -> None:
    """Over many calls; the same call is always decided in the same way, and the server's own ids by a comparison."""
    sampler = Sampler(share)
    kept = [sampler.is_sampled("", f"call {number}") for number in range(20_000)]
    assert sum(kept) / len(kept) == pytest.approx(share, abs=0.01)
    assert kept == [sampler.is_sampled("", f"call {number}") for number in range(20_000)]
    own = [make_trace_id(f"own {number}").hex() for number in range(1000)]
    assert [sampler.is_sampled("", one) for one in own] == [one[-RANDOM_DIGITS:] < sampler.below for one in own]


@pytest.mark.parametrize("begins", ["0193a4b5c6d77", "0000000000000000"], ids=["UUIDv7", "64 bits, padded"])
def test_the_share_is_kept_of_ids_that_begin_alike(begins: str) -> None:
    """The right of an id is random, as W3C wants it."""
    sampler = Sampler(0.1)
    ids = [begins + make_trace_id(f"caller {number}").hex()[len(begins) :] for number in range(20_000)]
    assert sum(sampler.is_sampled("", one) for one in ids) / len(ids) == pytest.approx(0.1, abs=0.01)


def test_an_id_of_zeros_alone_is_no_trace_id() -> None:
    """W3C and OTLP call it invalid: a caller's request id of 32 zeros names a trace as any other text does."""
    zeros = "0" * 32
    assert context_of("", zeros).trace_id not in (bytes(16), b"")
    assert make_trace_id(zeros) == make_trace_id(zeros)
    assert make_trace_id(f"{zeros[1:]}1") == bytes(15) + b"\1"


def test_a_call_that_fails_says_so() -> None:
    """With code and reason."""
    calls = Calls(1.0)
    trace = calls.begin()
    assert trace is not None
    trace.end(call("ResourceExhausted"), 0.0)
    (span,) = decode(calls.spans())
    assert span.error == "ResourceExhausted QUEUE_FULL"
    assert span.attributes["hotslot.grpc_code"] == "ResourceExhausted"


def test_an_update_is_one_trace_over_both_processes() -> None:
    """Its steps, and the server's calls for it, are children of the update's span."""
    spans: list[bytes] = []
    begun = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    update = Update("20260102-030405-abc", UpdateKind.RELEASE, "v1.1.0", begun, reason="BURST")
    observer = TraceObserver(spans.append)

    def record(name: str, second: int, outcome: Outcome | None = None) -> None:
        event = Event(begun + timedelta(seconds=second), "shapes", Stage.STAGING, name, "why", update, outcome)
        observer.record_written(ModelRecord("shapes"), [event])

    record("update_started", 0)
    record("revision_staged", 2)
    calls, control = Calls(0.0), "hotslot.control.v1.ControlService"
    for fields in ((("transaction_id", update.update_id),), ()):  # one for the update, and one that is not sampled
        trace = calls.begin(service=control)
        assert trace is not None
        trace.end(call(fields=fields, service=control, method="LoadSlot"), 0.0)
    record("update_rolled_back", 9, Outcome.ROLLED_BACK)

    found = {span.name: span for span in decode(*spans, calls.spans())}
    whole = found["update to v1.1.0"]
    assert {span.trace_id for span in found.values()} == {make_trace_id(update.update_id).hex()}
    assert {span.parent_id for name, span in found.items() if name != whole.name} == {whole.span_id}
    assert (whole.parent_id, whole.error) == ("", "BURST why")
    assert (whole.end_nanos - whole.start_nanos) / 1e9 == 9
    assert (found["revision_staged"].end_nanos - found["revision_staged"].start_nanos) / 1e9 == 2


def test_spans_reach_a_collector_over_grpc() -> None:
    """What waits is sent before the end."""
    with simulated_collector() as collector:
        exporter = SpanExporter(f"127.0.0.1:{collector.port}", None, SERVICE, logs.get_logger(), b"".join)
        exporter.start()
        context = context_of("", "call")
        template = make_template("one", SpanKind.INTERNAL, {"text": "é" * 200, "number": 300})
        for number in range(MAX_ENCODED + 1):
            exporter.put(template.encode(context, b"12345678", number, 7))
        exporter.stop()
        *_, span = found = collector.spans()
    assert [one.start_nanos for one in found] == list(range(MAX_ENCODED + 1))
    assert (span.service, span.name, span.end_nanos) == ("hotslot-server", "one", 7)
    assert span.attributes == {"text": "é" * 200, "number": "300"}


def test_a_collector_that_is_away_costs_no_memory() -> None:
    """The queue is bounded."""
    exporter = SpanExporter("127.0.0.1:9", None, SERVICE, logs.get_logger(), b"".join)
    for _ in range(MAX_WAITING + 10):
        exporter.put(b"")
    assert exporter.dropped == 10


def make_stream() -> CallFacts:
    """The facts of a call with as many items as have spans."""
    calls: list[CallFacts] = []
    trace = CallTracer(Sampler(1.0), SimClock(), calls.append).begin(PREDICT, "r1", "")
    assert trace is not None
    for number in range(MAX_ITEMS):
        trace.add_item(item(), 100.0 + number)
    trace.end(call(), 200.0)
    return calls[0]


def test_items_that_wait_are_bounded() -> None:
    """A call of many items costs the memory of many calls."""
    encode = CallEncoder(SimClock()).encode
    exporter = SpanExporter("127.0.0.1:9", None, SERVICE, logs.get_logger(), encode, count_items)
    stream = make_stream()
    for _ in range(MAX_WAITING_ITEMS // MAX_ITEMS + 10):
        exporter.put(stream)
    assert exporter.dropped == 10


def test_a_collector_takes_the_spans_of_many_streams() -> None:
    """They are sent in several requests: a server of gRPC takes 4 MiB at once."""
    with simulated_collector() as collector:
        encode = CallEncoder(SimClock()).encode
        exporter = SpanExporter(f"127.0.0.1:{collector.port}", None, SERVICE, logs.get_logger(), encode, count_items)
        stream = make_stream()
        for _ in range(100):
            exporter.put(stream)
        exporter.start()
        exporter.stop()
    assert exporter.dropped == 0
    assert sum(map(len, collector.requests)) > 4 << 20
    assert max(map(len, collector.requests)) < 3 << 20


def test_a_batch_that_cannot_be_encoded_is_dropped() -> None:
    """The next one is sent, and the log says why."""
    log: Any = KeptLog()
    begun = 0

    def encode(spans: Sequence[bytes]) -> bytes:
        nonlocal begun
        begun += 1
        if begun == 1:
            raise ValueError("a mistake")
        return b"".join(spans)

    with simulated_collector() as collector:
        exporter = SpanExporter(f"127.0.0.1:{collector.port}", None, SERVICE, log, encode)
        template = make_template("one", SpanKind.INTERNAL, {})
        for number in range(MAX_ENCODED + 1):
            exporter.put(template.encode(context_of("", "call"), b"12345678", number, 7))
        exporter.start()
        exporter.stop()
        assert [span.start_nanos for span in collector.spans()] == [MAX_ENCODED]
    assert exporter.dropped == MAX_ENCODED
    assert log.events == ["traces_not_delivered", "traces_delivered"]
    assert log.lines[0][1]["detail"] == "ValueError('a mistake')"
