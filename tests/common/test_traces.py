"""Spans: which are recorded, what they say, and that they reach a collector."""

from datetime import UTC, datetime, timedelta

import pytest

from common import logs
from common.trace_export import MAX_WAITING, SpanExporter
from common.traces import Sampler, SpanKind, context_of, encode_export, make_template, make_trace_id
from dev.harness.collector import ReceivedSpan, read_request, simulated_collector
from inference.server.events import CallEnded, ItemEnded, ItemOutcome
from inference.server.trace_events import EventTracer
from tests.common.clock import SimClock
from updater.core.record import Event, ModelRecord, Outcome, Stage, Update, UpdateKind
from updater.trace_observer import TraceObserver

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED, UNSAMPLED = f"00-{TRACE}-{PARENT}-01", f"00-{TRACE}-{PARENT}-00"
SERVICE = {"service.name": "hotslot-server"}


def decode(spans: list[bytes]) -> list[ReceivedSpan]:
    """As a collector reads them."""
    return list(read_request(encode_export(b"".join(spans), SERVICE)))


def item(**more: object) -> ItemEnded:
    """One answered in a second, 0.9 of which are known."""
    facts: dict[str, object] = {"seconds": 1.0, "queued_seconds": 0.2, "prepared_seconds": 0.3, "computed_seconds": 0.4}
    facts |= {"slot": "a", "request_id": "r1", **more}
    return ItemEnded("shapes", "v1", "cpu", ItemOutcome.ANSWERED, "", ("yes",), **facts)  # type: ignore[arg-type]


def call(
    code: str = "OK", traceparent: str = "", fields: tuple[tuple[str, object], ...] = (), **more: str
) -> CallEnded:
    """One of 1.5 seconds."""
    facts = {"service": "hotslot.entailment.v1.EntailmentService", "method": "Predict", "request_id": "r1", **more}
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
    spans: list[bytes] = []
    clock = SimClock()
    tracer = EventTracer(Sampler(1.0), clock, spans.append)
    tracer(item(handover="NOT_FINITE"))
    clock.advance(0.25)
    tracer(call(traceparent=""))

    root, *stages = decode(spans)
    assert root.name == "hotslot.entailment.v1.EntailmentService/Predict"
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


def test_the_callers_trace_is_continued_if_it_is_sampled() -> None:
    """Whatever the share is; one that is not sampled is not recorded."""
    spans: list[bytes] = []
    tracer = EventTracer(Sampler(0.0), SimClock(), spans.append)
    tracer(item(traceparent=SAMPLED))
    tracer(call(traceparent=SAMPLED))
    assert {(span.trace_id, span.name.partition("/")[2] and span.parent_id) for span in decode(spans)} == {
        (TRACE, PARENT),
        (TRACE, ""),
    }
    spans.clear()
    everything = EventTracer(Sampler(1.0), SimClock(), spans.append)
    everything(item(traceparent=UNSAMPLED))
    everything(call(traceparent=UNSAMPLED))
    assert spans == []
    assert everything.exemplar_of(item(traceparent=UNSAMPLED)) is None
    assert everything.exemplar_of(item(traceparent=SAMPLED)) == {"trace_id": TRACE}


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 1.0])
def test_the_share_is_kept(share: float) -> None:
    """Over many calls; the same call is always decided in the same way."""
    sampler = Sampler(share)
    kept = [sampler.is_sampled("", f"call {number}") for number in range(20_000)]
    assert sum(kept) / len(kept) == pytest.approx(share, abs=0.01)
    assert kept == [sampler.is_sampled("", f"call {number}") for number in range(20_000)]


def test_a_call_that_fails_says_so() -> None:
    """With code and reason."""
    spans: list[bytes] = []
    EventTracer(Sampler(1.0), SimClock(), spans.append)(call("ResourceExhausted"))
    (span,) = decode(spans)
    assert span.error == "ResourceExhausted QUEUE_FULL"
    assert span.attributes["hotslot.grpc_code"] == "ResourceExhausted"


def test_an_update_is_one_trace_over_both_processes() -> None:
    """Its steps, and the server's calls for it, are children of the update's span."""
    spans: list[bytes] = []
    begun = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    update = Update("20260102-030405-abc", UpdateKind.RELEASE, "v1.1.0", begun, reason="ERROR_BURST")
    observer = TraceObserver(spans.append)

    def record(name: str, second: int, outcome: Outcome | None = None) -> None:
        event = Event(begun + timedelta(seconds=second), "shapes", Stage.STAGING, name, "why", update, outcome)
        observer.record_written(ModelRecord("shapes"), [event])

    record("update_started", 0)
    record("revision_staged", 2)
    EventTracer(Sampler(0.0), SimClock(), spans.append)(
        call(
            fields=(("transaction_id", update.update_id),),
            service="hotslot.control.v1.ControlService",
            method="LoadSlot",
        )
    )
    record("update_rolled_back", 9, Outcome.ROLLED_BACK)

    found = {span.name: span for span in decode(spans)}
    whole = found["update to v1.1.0"]
    assert {span.trace_id for span in found.values()} == {make_trace_id(update.update_id).hex()}
    assert {span.parent_id for name, span in found.items() if name != whole.name} == {whole.span_id}
    assert (whole.parent_id, whole.error) == ("", "ERROR_BURST why")
    assert (whole.end_nanos - whole.start_nanos) / 1e9 == 9
    assert (found["revision_staged"].end_nanos - found["revision_staged"].start_nanos) / 1e9 == 2


def test_spans_reach_a_collector_over_grpc() -> None:
    """What waits is sent before the end."""
    with simulated_collector() as collector:
        exporter = SpanExporter(f"127.0.0.1:{collector.port}", None, SERVICE, logs.get_logger())
        exporter.start()
        context = context_of("", "call")
        template = make_template("one", SpanKind.INTERNAL, {"text": "é" * 200, "number": 300})
        exporter.put(template.encode(context, b"12345678", 5, 7))
        exporter.stop()
        (span,) = collector.spans()
    assert (span.service, span.name, span.start_nanos, span.end_nanos) == ("hotslot-server", "one", 5, 7)
    assert span.attributes == {"text": "é" * 200, "number": "300"}


def test_a_collector_that_is_away_costs_no_memory() -> None:
    """The queue is bounded."""
    exporter = SpanExporter("127.0.0.1:9", None, SERVICE, logs.get_logger())
    for _ in range(MAX_WAITING + 10):
        exporter.put(b"")
    assert exporter.dropped == 10
