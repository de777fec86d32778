"""Metrics of the events."""

from collections.abc import Sequence
from dataclasses import dataclass

from common.metrics import (
    CounterSeries,
    HistogramSeries,
    create_counter,
    create_gauge,
    create_histogram,
    create_registry,
)
from inference.server import events
from inference.server import metric_catalog as catalog
from inference.wire import LABELS

_REVISION_LABELS = ("model", "revision")
MAX_REVISIONS = 32  # whose series are kept, over all models; revisions in slots are always kept


class EventMetrics:
    """Prometheus metrics of the events; those of calls have the names of go-grpc-prometheus."""

    def __init__(self) -> None:
        self.registry = registry = create_registry()
        self._started = create_counter(catalog.CALLS_STARTED, registry)
        self._handled = create_counter(catalog.CALLS_HANDLED, registry)
        self._received = create_counter(catalog.MESSAGES_RECEIVED, registry)
        self._sent = create_counter(catalog.MESSAGES_SENT, registry)
        self._seconds = create_histogram(catalog.CALL_SECONDS, registry)
        self._items = create_counter(catalog.ITEMS, registry)
        self._answers = create_counter(catalog.ANSWERS, registry)
        self._item_seconds = create_histogram(catalog.ITEM_SECONDS, registry)
        self._call_items = create_histogram(catalog.DEVICE_CALL_ITEMS, registry)
        self._call_rows = create_histogram(catalog.DEVICE_CALL_ROWS, registry)
        self._call_seconds = create_histogram(catalog.DEVICE_CALL_SECONDS, registry)
        self._swaps = create_counter(catalog.SWAPS, registry)
        self._handovers = create_counter(catalog.HANDOVERS, registry)
        self._slots = create_gauge(catalog.SLOT_INFO, registry)
        self._deaths = create_counter(catalog.RUNNER_DEATHS, registry)
        self._load_seconds = create_histogram(catalog.LOAD_SECONDS, registry)
        self._load_failures = create_counter(catalog.LOAD_FAILURES, registry)
        self._fallbacks = create_counter(catalog.CPU_FALLBACKS, registry)
        self._fallback = create_gauge(catalog.CPU_FALLBACK, registry)
        self._compared = create_counter(catalog.COMPARED_ANSWERS, registry)
        self._dropped = create_counter(catalog.COPIES_DROPPED, registry)
        counters = (self._items, self._answers, self._handovers, self._compared, self._dropped)
        calls = (self._call_items, self._call_rows, self._call_seconds)
        self._by_revision = (*counters, self._item_seconds, *calls)
        self._slot_labels: dict[tuple[str, str], tuple[str, ...]] = {}
        self._calls: dict[tuple[str, ...], _CallSeries] = {}
        self._answered: dict[tuple[str, str, str], _AnswerSeries] = {}  # by model, revision and device
        self._device_calls: dict[tuple[str, str], tuple[HistogramSeries, ...]] = {}  # by model and revision
        self._revisions: dict[tuple[str, str], None] = {}  # model and revision, in the order of their last change

    def handlers(self) -> events.Handlers:
        """The function that counts each kind of event."""
        return {
            events.CallStarted: self._call_started,
            events.CallEnded: self._call,
            events.ItemEnded: self._item,
            events.DeviceCallEnded: self._device_call,
            events.SlotChanged: self._slot,
            events.SwapDone: self._swap_done,
            events.CpuFallbackChanged: self._cpu_fallback_changed,
            events.RequestHandedOver: self._handed_over,
            events.AnswersCompared: self._answers_compared,
            events.CopyDropped: self._copy_dropped,
        }

    def _call_started(self, event: events.CallStarted) -> None:
        self._series(event.kind, event.service, event.method).started.value += 1

    def _swap_done(self, event: events.SwapDone) -> None:
        self._swaps.labels(event.model, event.change).inc()

    def _handed_over(self, event: events.RequestHandedOver) -> None:
        self._handovers.labels(event.model, event.revision, event.reason).inc()

    def _copy_dropped(self, event: events.CopyDropped) -> None:
        self._dropped.labels(event.model, event.revision, event.reason).inc()

    def _series(self, *key: str) -> "_CallSeries":
        """The series of a kind, service and method."""
        series = self._calls.get(key)
        if series is None:
            series = self._calls[key] = _CallSeries(
                self._started.labels(*key),
                self._handled.labels(*key, "OK"),
                self._received.labels(*key),
                self._sent.labels(*key),
                self._seconds.labels(*key),
            )
        return series

    def _call(self, event: events.CallEnded) -> None:
        series = self._series(event.kind, event.service, event.method)
        if event.code == "OK":
            series.ok.value += 1
        else:
            self._handled.labels(event.kind, event.service, event.method, event.code).inc()
        series.received.value += event.received
        series.sent.value += event.sent
        series.seconds.observe(event.seconds)

    def _item(self, event: events.ItemEnded) -> None:
        key = (event.model, event.revision, event.device)
        if event.outcome is not events.ItemOutcome.ANSWERED:
            self._items.labels(*key, event.outcome.value, event.reason).inc()
            return
        series = self._answered.get(key)
        if series is None:
            series = self._answered[key] = self._answer_series(*key, event.labels)
        series.items.value += 1
        for label in event.labels:
            answers = series.labels.get(label)
            if answers is None:
                answers = series.labels[label] = self._answers.labels(event.model, event.revision, label)
            answers.value += 1
        series.queue.observe(event.queued_seconds)
        series.prepare.observe(event.prepared_seconds)
        series.compute.observe(event.computed_seconds)
        series.total.observe(event.seconds, None if event.trace is None else event.trace.take_exemplar())

    def _answer_series(self, model: str, revision: str, device: str, labels: Sequence[str]) -> "_AnswerSeries":
        # The answers to statements begin at 0; kinds of parts are known only when the model finds them.
        first = LABELS if set(labels) <= set(LABELS) else ()
        stages = ("queue", "prepare", "compute", "total")
        return _AnswerSeries(
            self._items.labels(model, revision, device, events.ItemOutcome.ANSWERED.value, ""),
            {label: self._answers.labels(model, revision, label) for label in first},
            *(self._item_seconds.labels(model, revision, stage) for stage in stages),
        )

    def _device_call(self, event: events.DeviceCallEnded) -> None:
        key = (event.model, event.revision)
        series = self._device_calls.get(key)
        if series is None:
            metrics = (self._call_items, self._call_rows, self._call_seconds)
            series = self._device_calls[key] = tuple(metric.labels(*key) for metric in metrics)
        items, rows, seconds = series
        items.observe(event.items)
        rows.observe(event.rows)
        seconds.observe(event.seconds)

    def _answers_compared(self, event: events.AnswersCompared) -> None:
        for result, count in (("equal", event.equal), ("different", event.different)):
            self._compared.labels(event.model, event.revision, result).inc(count)

    def _cpu_fallback_changed(self, event: events.CpuFallbackChanged) -> None:
        labels = (event.model, event.device, event.fallback_device)
        if event.change == "cpu_fallback_taken":
            self._fallbacks.labels(*labels).inc()
        if event.change in ("cpu_fallback_taken", "cpu_fallback_kept", "cpu_fallback_ended"):
            self._fallback.labels(*labels).set(float(event.change != "cpu_fallback_ended"))

    def _slot(self, event: events.SlotChanged) -> None:
        slot = (event.model, event.slot)
        before = self._slot_labels.get(slot)
        if before is not None:
            self._slots.remove(*before)
        labels = (*slot, event.state, event.role, event.revision)
        self._slot_labels[slot] = labels
        self._slots.labels(*labels).set(1)
        self._deaths.labels(*slot)  # begins at 0, so that the first death is an increase
        if event.revision:
            self._keep(event.model, event.revision)
        if event.change == "runner_died":
            self._deaths.labels(*slot).inc()
        elif event.change == "load_failed":
            self._load_failures.labels(event.model, event.device, event.reason).inc()
        elif event.change == "load_ended":
            self._load_seconds.labels(event.model, event.device).observe(event.seconds)

    def forget_slots(self, model: str, is_served: bool) -> None:  # noqa: FBT001  a callback
        """Remove the slots of a model whose processes have ended; `is_served`: another one of this name is served."""
        if not is_served:
            self._fallback.remove_by_labels({"model": model})
        for slot in [slot for slot in self._slot_labels if slot[0] == model]:
            self._slots.remove(*self._slot_labels.pop(slot))

    def _keep(self, model: str, revision: str) -> None:
        """Record a revision in use; remove the series of those unused for longest beyond MAX_REVISIONS."""
        self._revisions.pop((model, revision), None)
        self._revisions[model, revision] = None
        in_slots = {(labels[0], labels[-1]) for labels in self._slot_labels.values()}
        gone = [key for key in self._revisions if key not in in_slots]
        for key in gone[: max(0, len(self._revisions) - MAX_REVISIONS)]:
            del self._revisions[key]
            self._device_calls.pop(key, None)
            for answered in [row for row in self._answered if row[:2] == key]:
                del self._answered[answered]
            for metric in self._by_revision:
                metric.remove_by_labels(dict(zip(_REVISION_LABELS, key, strict=True)))


@dataclass(frozen=True, slots=True)
class _CallSeries:
    """The metric series of one method, looked up once."""

    started: CounterSeries
    ok: CounterSeries
    received: CounterSeries
    sent: CounterSeries
    seconds: HistogramSeries


@dataclass(frozen=True, slots=True)
class _AnswerSeries:
    """The metric series of the answers of one revision on one device, looked up once."""

    items: CounterSeries
    labels: dict[str, CounterSeries]
    queue: HistogramSeries
    prepare: HistogramSeries
    compute: HistogramSeries
    total: HistogramSeries
