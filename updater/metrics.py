"""Logs and metrics of the updater."""

from collections.abc import Sequence
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge

from common.logs import Logger
from updater.core.breaker import BreakerState
from updater.core.record import Event, ModelRecord, Stage

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


def create_registry() -> CollectorRegistry:
    """An empty registry for the metrics of this process."""
    return CollectorRegistry()


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


class MetricsObserver:
    """Exports Prometheus metrics."""

    def __init__(self, registry: CollectorRegistry) -> None:
        """Register the metrics."""
        self._outcomes = Counter(
            "hotslot_updates_total",
            "Updates that have ended, by outcome.",
            ["model", "outcome", "reason"],
            registry=registry,
        )
        self._errors = Counter(
            "hotslot_updater_errors_total", "Errors of the updater itself.", ["model", "error"], registry=registry
        )

        def gauge(name: str, meaning: str, *labels: str) -> Gauge:
            return Gauge(f"hotslot_{name}", meaning, ["model", *labels], registry=registry)

        self._stage = gauge("update_stage", "1 for the current stage of a model's updates.", "stage")
        self._quarantine = gauge("quarantined_revisions", "Source digests in quarantine.")
        self._paused = gauge("updates_paused", "1 while updates are paused.")
        self._committed = gauge("committed_info", "1 for the committed revision.", "revision")
        self._breakers = gauge("breaker_state", "0 closed, 1 half open, 2 open.", "breaker")
        meaning = "Open: time until the next attempt; half open: time until its attempt counts as failed; closed: 0."
        self._breaker_left = gauge("breaker_left_seconds", meaning, "breaker")
        meaning = "1 while a model runs on the CPU because its device ran out of memory."
        self._fallback = gauge("cpu_fallback", meaning)
        self._hub_answered = gauge("hub_answered_timestamp_seconds", "When the hub last answered.")
        meaning = "When the hub's listing last changed; a stale mirror answers but never changes."
        self._changed = gauge("hub_listing_changed_timestamp_seconds", meaning)
        self._newest = gauge("hub_newest_listed_timestamp_seconds", "When the highest release was first listed.")
        self._snapshot: dict[str, str] = {}

    def record_written(self, record: ModelRecord, events: Sequence[Event]) -> None:
        """Update the metrics."""
        model = record.model
        for stage in Stage:
            self._stage.labels(model, stage.value).set(stage is record.stage)
        for breaker in (record.hub, record.activation, record.device):
            self._breakers.labels(model, breaker.name.value).set(_BREAKER_NUMBERS[breaker.state])
            self._breaker_left.labels(model, breaker.name.value).set(breaker.left_seconds)
        self._fallback.labels(model).set(record.cpu_fallback is not None)
        watch = record.watch
        times = (
            (self._hub_answered, watch.last_polled_at),
            (self._changed, watch.changed_at),
            (self._newest, watch.highest_at),
        )
        for gauge, at in times:
            if at is not None:
                gauge.labels(model).set(at.timestamp())
        self._quarantine.labels(model).set(len(record.quarantine))
        self._paused.labels(model).set(record.paused)
        self._show_committed(record)
        for event in events:
            if event.outcome is not None:
                reason = event.update.reason if event.update is not None else ""
                self._outcomes.labels(model, event.outcome.value, reason).inc()

    def report_error(self, model: str, error: str, message: str) -> None:
        """Count the error."""
        del message
        self._errors.labels(model, error).inc()

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
