"""Logs and metrics of the events. Only this module imports the metrics library."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from inference.server import events
from inference.wire import LABELS

_CALL_LABELS = ("grpc_type", "grpc_service", "grpc_method")
_MODEL_LABELS = ("model", "revision")
_ITEM_LABELS = (*_MODEL_LABELS, "device", "outcome", "reason")
_FALLBACK_LABELS = ("model", "device", "fallback_device")
MAX_REVISIONS = 32  # whose series are kept, over all models; revisions in slots are always kept
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64)
_QUIET_SERVICES = ("grpc.health.v1.Health", "hotslot.status.v1.StatusService")  # logged only on errors
_QUIET_METHODS = ("GetStatus",)  # logged only on errors: the updater calls it every second


class LogPort(Protocol):
    """The part of a structured logger that EventLogger uses."""

    def info(self, event: str, **fields: Any) -> Any:  # noqa: ANN401  structlog's type
        """Write a line."""
        ...

    def warning(self, event: str, **fields: Any) -> Any:  # noqa: ANN401
        """Write a line that an operator should see."""
        ...


class EventLogger:
    """Writes one log line per event, with a fixed name in past tense."""

    def __init__(self, log: LogPort) -> None:
        self._log = log

    def __call__(self, event: events.Event) -> None:
        """Record an event."""
        if isinstance(event, events.CallEnded):
            self._call(event)
        elif isinstance(event, events.SlotChanged):
            fields = asdict(event)
            name = fields.pop("change")
            is_bad = name in ("runner_died", "load_failed")
            shown = {key: value for key, value in fields.items() if value not in ("", 0)}
            (self._log.warning if is_bad else self._log.info)(name, **shown)
        elif isinstance(event, events.SwapDone):
            fields = asdict(event)
            self._log.info(fields.pop("change"), **fields)
        elif isinstance(event, events.RequestHandedOver):
            self._log.warning("request_handed_over", **asdict(event))
        elif isinstance(event, events.CpuFallbackChanged):
            fields = asdict(event)
            name = fields.pop("change")
            (self._log.info if name == "cpu_fallback_ended" else self._log.warning)(name, **fields)

    def _call(self, event: events.CallEnded) -> None:
        is_quiet = event.service in _QUIET_SERVICES or event.method in _QUIET_METHODS
        if is_quiet and event.code == "OK":
            return
        fields: dict[str, Any] = {
            "rpc_service": event.service,
            "rpc_method": event.method,
            "grpc_code": event.code,
            "request_id": event.request_id,
            "seconds": round(event.seconds, 6),
            **dict(event.fields),
        }
        if event.traceparent:
            fields["traceparent"] = event.traceparent
        if event.reason:
            fields["reason"] = event.reason
        if event.kind != "unary":
            fields["received"], fields["sent"] = event.received, event.sent
        self._log.info("call_ended", **fields)


class EventMetrics:
    """Prometheus metrics of the events; those of calls have the names of go-grpc-prometheus."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        count, spread = self._counter, self._histogram
        self._started = count("grpc_server_started", "Calls started.", *_CALL_LABELS)
        self._handled = count("grpc_server_handled", "Calls completed, by code.", *_CALL_LABELS, "grpc_code")
        self._received = count("grpc_server_msg_received", "Messages received.", *_CALL_LABELS)
        self._sent = count("grpc_server_msg_sent", "Messages sent.", *_CALL_LABELS)
        self._seconds = spread("grpc_server_handling_seconds", "Duration of calls.", _SECONDS, *_CALL_LABELS)
        text = "Items (unary requests and stream items), each counted once by what became of it."
        self._items = count("hotslot_items", text, *_ITEM_LABELS)
        self._answers = count("hotslot_answers", "Statements answered, by answer.", *_MODEL_LABELS, "label")
        self._item_seconds = spread(
            "hotslot_item_seconds", "Time of answered items, by stage.", _SECONDS, *_MODEL_LABELS, "stage"
        )
        self._batch_items = spread("hotslot_batch_items", "Items per batch.", _SIZES, *_MODEL_LABELS)
        self._swaps = count("hotslot_swaps", "Changes of the active slot and ends of trials.", "model", "change")
        self._handed_over = count(
            "hotslot_handed_over", "Requests handed over from a trial to the previous slot.", *_MODEL_LABELS, "reason"
        )
        labels = ("model", "slot", "state", "role", "revision")
        self._slots = Gauge("hotslot_slot_info", "State and role of each slot.", labels, registry=self.registry)
        self._deaths = count("hotslot_runner_deaths", "Runner processes that ended unexpectedly.", "model", "slot")
        self._load_seconds = spread("hotslot_load_seconds", "Duration of loads.", _SECONDS, "model", "device")
        self._loads_failed = count("hotslot_loads_failed", "Loads that failed.", "model", "device", "reason")
        self._fallbacks = count("hotslot_cpu_fallbacks", "CPU fallbacks taken.", *_FALLBACK_LABELS)
        text = "1 while a model runs on the CPU because its device ran out of memory."
        self._fallback = Gauge("hotslot_cpu_fallback", text, _FALLBACK_LABELS, registry=self.registry)
        self._slot_labels: dict[tuple[str, str], tuple[str, ...]] = {}
        self._calls: dict[tuple[str, str, str], _CallSeries] = {}
        self._answered: dict[tuple[str, str, str], _AnswerSeries] = {}  # by model, revision and device
        self._revisions: dict[tuple[str, str], None] = {}  # model and revision, in the order of their last change

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(name, text, labels, buckets=buckets, registry=self.registry)

    def __call__(self, event: events.Event) -> None:
        """Record an event."""
        if isinstance(event, events.CallStarted):
            self._series(event).started.inc()
        elif isinstance(event, events.CallEnded):
            self._call(event)
        elif isinstance(event, events.ItemEnded):
            self._item(event)
        elif isinstance(event, events.BatchSent):
            self._batch_items.labels(event.model, event.revision).observe(event.items)
        elif isinstance(event, events.SlotChanged):
            self._slot(event)
        elif isinstance(event, events.SwapDone):
            self._swaps.labels(event.model, event.change).inc()
        elif isinstance(event, events.CpuFallbackChanged):
            self._cpu_fallback_changed(event)
        else:
            self._handed_over.labels(event.model, event.revision, event.reason).inc()

    def _series(self, event: events.CallStarted | events.CallEnded) -> "_CallSeries":
        key = (event.kind, event.service, event.method)
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
        series = self._series(event)
        if event.code == "OK":
            series.ok.inc()
        else:
            self._handled.labels(event.kind, event.service, event.method, event.code).inc()
        series.received.inc(event.received)
        series.sent.inc(event.sent)
        series.seconds.observe(event.seconds)

    def _item(self, event: events.ItemEnded) -> None:
        key = (event.model, event.revision, event.device)
        if event.outcome is not events.ItemOutcome.ANSWERED:
            self._items.labels(*key, event.outcome.value, event.reason).inc()
            return
        series = self._answered.get(key)
        if series is None:
            series = self._answered[key] = self._answer_series(*key)
        series.items.inc()
        for label in event.labels:
            series.labels[label].inc()
        series.queue.observe(event.queued_seconds)
        series.prepare.observe(event.prepared_seconds)
        series.compute.observe(event.computed_seconds)
        series.total.observe(event.seconds)

    def _answer_series(self, model: str, revision: str, device: str) -> "_AnswerSeries":
        stages = ("queue", "prepare", "compute", "total")
        return _AnswerSeries(
            self._items.labels(model, revision, device, events.ItemOutcome.ANSWERED.value, ""),
            {label: self._answers.labels(model, revision, label) for label in LABELS},
            *(self._item_seconds.labels(model, revision, stage) for stage in stages),
        )

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
        if event.revision:
            self._keep(event.model, event.revision)
        if event.change == "runner_died":
            self._deaths.labels(*slot).inc()
        elif event.change == "load_failed":
            self._loads_failed.labels(event.model, event.device, event.reason).inc()
        elif event.change == "load_ended":
            self._load_seconds.labels(event.model, event.device).observe(event.seconds)

    def _keep(self, model: str, revision: str) -> None:
        """Record a revision in use; remove the series of those unused for longest beyond MAX_REVISIONS."""
        self._revisions.pop((model, revision), None)
        self._revisions[model, revision] = None
        in_slots = {(labels[0], labels[-1]) for labels in self._slot_labels.values()}
        gone = [key for key in self._revisions if key not in in_slots]
        for key in gone[: max(0, len(self._revisions) - MAX_REVISIONS)]:
            del self._revisions[key]
            for answered in [row for row in self._answered if row[:2] == key]:
                del self._answered[answered]
            for metric in (self._items, self._answers, self._item_seconds, self._batch_items, self._handed_over):
                metric.remove_by_labels(dict(zip(_MODEL_LABELS, key, strict=True)))


class _CallSeries:
    """The metric series of one method, looked up once."""

    __slots__ = ("ok", "received", "seconds", "sent", "started")

    def __init__(self, started: Counter, ok: Counter, received: Counter, sent: Counter, seconds: Histogram) -> None:
        self.started, self.ok, self.received, self.sent, self.seconds = started, ok, received, sent, seconds


@dataclass(frozen=True, slots=True)
class _AnswerSeries:
    """The metric series of the answers of one revision on one device, looked up once."""

    items: Counter
    labels: dict[str, Counter]
    queue: Histogram
    prepare: Histogram
    compute: Histogram
    total: Histogram


def add_gauges(registry: CollectorRegistry, gauges: dict[str, tuple[str, Callable[[], float]]]) -> None:
    """Add gauges whose functions are called at each scrape: name → (help text, function)."""
    for name, (text, read) in gauges.items():
        Gauge(name, text, registry=registry).set_function(read)


def emit_to_all(listeners: list[events.Emit]) -> events.Emit:
    """An emit function that passes each event to all listeners."""

    def emit(event: events.Event) -> None:
        for listener in listeners:
            listener(event)

    return emit
