"""Logs and metrics of the updater."""

from collections.abc import Sequence
from typing import Protocol

from prometheus_client import CollectorRegistry, Gauge

from common.logs import Logger
from common.metric_catalog import MetricSpec
from common.metrics import create_counter, create_gauge
from updater import metric_catalog as catalog
from updater.core.breaker import BreakerState
from updater.core.record import Event, ModelRecord, Stage

_DOWNLOAD_FAILED = ("staging_failed", "content_mismatched")
_BREAKER_NUMBERS = {BreakerState.CLOSED: 0, BreakerState.HALF_OPEN: 1, BreakerState.OPEN: 2}


class Observer(Protocol):
    """Receives written records and errors, from the models' threads."""

    def record_written(self, record: ModelRecord, events: Sequence[Event]) -> None:
        """A record and its events were written to the journal."""
        ...

    def report_error(self, model: str, error: str, message: str) -> None:
        """The updater itself failed at something.

        Args:
            model: name; empty if it concerns all.
            error: name in snake_case, for logs and metrics.
            message: for people.
        """
        ...

    def report_crash(self, model: str, error: Exception, failures: int, retry_in_seconds: float) -> None:
        """The loop of a model failed, or could not be built; it is tried again.

        Args:
            model: name.
            error: what ended it.
            failures: in a row, with this one.
            retry_in_seconds: until it is tried again.
        """
        ...


class LogObserver:
    """Writes each event of the audit trail, and each error, as one log line."""

    def __init__(self, log: Logger) -> None:
        self._log = log

    def record_written(self, record: ModelRecord, events: Sequence[Event]) -> None:
        """Log the events."""
        del record
        for event in events:
            update = event.update
            named = {} if update is None else {"update_id": update.update_id, "revision": update.revision}
            digests = {} if update is None else {"source": update.source_digest, "bundle": update.bundle_digest}
            outcome = {} if event.outcome is None else {"outcome": event.outcome.value}
            fields = {**named, **digests, **outcome}
            self._log.info(event.name, model=event.model, stage=event.stage.value, detail=event.message, **fields)

    def report_error(self, model: str, error: str, message: str) -> None:
        """Log the error."""
        self._log.error(error, model=model, detail=message)

    def report_crash(self, model: str, error: Exception, failures: int, retry_in_seconds: float) -> None:
        """Log it with its traceback."""
        fields = {"failures": failures, "retry_in_seconds": retry_in_seconds}
        self._log.error("loop_crashed", model=model, **fields, exc_info=error)


class MetricsObserver:
    """Exports Prometheus metrics."""

    def __init__(self, registry: CollectorRegistry) -> None:
        """Register the metrics."""
        self._registry = registry
        self._gauges: list[Gauge] = []  # all of them have the label model
        self._outcomes = create_counter(catalog.UPDATES, registry)
        self._errors = create_counter(catalog.ERRORS, registry)
        self._stage = self._add_gauge(catalog.STAGE)
        self._quarantine = self._add_gauge(catalog.QUARANTINED)
        self._paused = self._add_gauge(catalog.PAUSED)
        self._committed = self._add_gauge(catalog.COMMITTED_INFO)
        self._breakers = self._add_gauge(catalog.BREAKER_STATE)
        self._breaker_left = self._add_gauge(catalog.BREAKER_LEFT)
        self._hub_answered = self._add_gauge(catalog.HUB_ANSWERED)
        self._changed = self._add_gauge(catalog.HUB_CHANGED)
        self._newest = self._add_gauge(catalog.HUB_NEWEST)
        self._names = self._add_gauge(catalog.HUB_NAMES)
        self._left_out = self._add_gauge(catalog.HUB_LEFT_OUT)
        self._mix_distance = self._add_gauge(catalog.MIX_DISTANCE)
        self._republished = self._add_gauge(catalog.REPUBLISHED)
        self._failed_downloads = self._add_gauge(catalog.FAILED_DOWNLOADS)
        self._snapshot: dict[str, str] = {}

    def record_written(self, record: ModelRecord, events: Sequence[Event]) -> None:
        """Update the metrics."""
        model = record.model
        for stage in Stage:
            self._stage.labels(model, stage.value).set(stage is record.stage)
        for breaker in (record.hub, record.activation, record.device):
            self._breakers.labels(model, breaker.name.value).set(_BREAKER_NUMBERS[breaker.state])
            self._breaker_left.labels(model, breaker.name.value).set(breaker.left_seconds)
        watch = record.watch
        times = (
            (self._hub_answered, watch.last_polled_at),
            (self._changed, watch.changed_at),
            (self._newest, watch.highest_at),
        )
        for gauge, at in times:
            if at is not None:
                gauge.labels(model).set(at.timestamp())
        if watch.last_polled_at is not None:
            self._names.labels(model).set(watch.names)
            self._left_out.labels(model).set(watch.left_out)
        self._mix_distance.labels(model).set(record.mix_distance)
        self._republished.labels(model).set(len(watch.republished))
        self._quarantine.labels(model).set(len(record.quarantine))
        self._paused.labels(model).set(record.paused)
        self._show_committed(record)
        downloads = self._failed_downloads.labels(model)
        for event in events:
            if event.name in _DOWNLOAD_FAILED:
                downloads.inc()
            elif event.name == "revision_staged":
                downloads.set(0)
            if event.outcome is not None:
                reason = event.update.reason if event.update is not None else ""
                self._outcomes.labels(model, event.outcome.value, reason).inc()

    def forget(self, model: str) -> None:
        """Remove what is shown of a model that is not kept up to date any more; counters stay."""
        for gauge in self._gauges:
            gauge.remove_by_labels({"model": model})
        self._snapshot.pop(model, None)

    def report_error(self, model: str, error: str, message: str) -> None:
        """Count the error."""
        del message
        self._errors.labels(model, error).inc()

    def report_crash(self, model: str, error: Exception, failures: int, retry_in_seconds: float) -> None:
        """Count it."""
        del error, failures, retry_in_seconds
        self._errors.labels(model, "loop_crashed").inc()

    def _add_gauge(self, spec: MetricSpec) -> Gauge:
        """A gauge from which `forget` removes a model."""
        gauge = create_gauge(spec, self._registry)
        self._gauges.append(gauge)
        return gauge

    def _show_committed(self, record: ModelRecord) -> None:
        revision = "" if record.committed is None else record.committed.revision
        before = self._snapshot.get(record.model, "")
        if before and before != revision:
            self._committed.remove(record.model, before)
        if revision:
            self._committed.labels(record.model, revision).set(1)
        self._snapshot[record.model] = revision


class BroadcastObserver:
    """Passes everything on to several observers."""

    def __init__(self, *observers: Observer) -> None:
        self._observers = observers

    def record_written(self, record: ModelRecord, events: Sequence[Event]) -> None:
        """Pass it on."""
        for observer in self._observers:
            observer.record_written(record, events)

    def report_error(self, model: str, error: str, message: str) -> None:
        """Pass it on."""
        for observer in self._observers:
            observer.report_error(model, error, message)

    def report_crash(self, model: str, error: Exception, failures: int, retry_in_seconds: float) -> None:
        """Pass it on."""
        for observer in self._observers:
            observer.report_crash(model, error, failures, retry_in_seconds)
