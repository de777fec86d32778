"""What happens, for those who watch: the log and the numbers."""

from collections.abc import Sequence
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge

from common.logs import Logger
from updater.breaker import BreakerState
from updater.record import Event, ModelRecord, Stage

__all__ = ["CollectorRegistry", "LogObserver", "MetricsObserver", "Observer", "ToAll"]

_BREAKER_NUMBERS = {BreakerState.CLOSED: 0, BreakerState.HALF_OPEN: 1, BreakerState.OPEN: 2}


class Observer(Protocol):
    """Is told what was written."""

    def written(self, record: ModelRecord, events: Sequence[Event]) -> None:
        """A record and its events are durable."""
        ...

    def troubled(self, model: str, what: str, message: str) -> None:
        """The updater itself could not do something."""
        ...


class LogObserver:
    """One event, one line."""

    def __init__(self, log: Logger) -> None:
        """Speak to a log."""
        self._log = log

    def written(self, record: ModelRecord, events: Sequence[Event]) -> None:
        """Tell each event of the audit trail."""
        del record
        for event in events:
            update = event.update
            named = {} if update is None else {"update_id": update.update_id, "revision": update.revision}
            digests = {} if update is None else {"source": update.source_digest, "bundle": update.bundle_digest}
            outcome = {} if event.outcome is None else {"outcome": event.outcome.value}
            fields = {**named, **digests, **outcome}
            self._log.info(event.name, model=event.model, stage=event.stage.value, detail=event.message, **fields)

    def troubled(self, model: str, what: str, message: str) -> None:
        """Tell it as an error."""
        self._log.error(what, model=model, detail=message)


class MetricsObserver:
    """Numbers for Prometheus."""

    def __init__(self, registry: CollectorRegistry) -> None:
        """Put them into a registry."""
        self._stage = Gauge(
            "hotslot_update_stage",
            "1 for the stage that a model's updates are in.",
            ["model", "stage"],
            registry=registry,
        )
        self._outcomes = Counter(
            "hotslot_updates_total", "Updates that have ended.", ["model", "outcome", "reason"], registry=registry
        )
        self._breakers = Gauge(
            "hotslot_breaker_state", "0 closed, 1 half open, 2 open.", ["model", "breaker"], registry=registry
        )
        self._hub = Gauge(
            "hotslot_hub_answered_timestamp_seconds", "When the hub last answered.", ["model"], registry=registry
        )
        self._changed = Gauge(
            "hotslot_hub_listing_changed_timestamp_seconds",
            "When the hub's listing was last another one: a mirror that has stopped answers, and never changes.",
            ["model"],
            registry=registry,
        )
        self._newest = Gauge(
            "hotslot_hub_newest_listed_timestamp_seconds",
            "When the highest release was first listed.",
            ["model"],
            registry=registry,
        )
        self._breaker_left = Gauge(
            "hotslot_breaker_left_seconds",
            "Open: until it may try again; half open: until its probe counts as failed; 0 closed.",
            ["model", "breaker"],
            registry=registry,
        )
        self._fallback = Gauge(
            "hotslot_device_fallback",
            "1 while a model is kept off its device because memory ran out there.",
            ["model"],
            registry=registry,
        )
        self._quarantine = Gauge(
            "hotslot_quarantined_revisions", "Source digests in quarantine.", ["model"], registry=registry
        )
        self._hold = Gauge(
            "hotslot_updates_on_hold", "1 while an operator holds updates.", ["model"], registry=registry
        )
        self._committed = Gauge(
            "hotslot_committed_info", "1 for the revision that is committed.", ["model", "revision"], registry=registry
        )
        self._troubles = Counter(
            "hotslot_updater_troubles_total", "What the updater could not do.", ["model", "what"], registry=registry
        )
        self._shown: dict[str, str] = {}

    def written(self, record: ModelRecord, events: Sequence[Event]) -> None:
        """Follow a record."""
        model = record.model
        for stage in Stage:
            self._stage.labels(model, stage.value).set(stage is record.stage)
        for breaker in (record.hub, record.activation, record.device):
            self._breakers.labels(model, breaker.name.value).set(_BREAKER_NUMBERS[breaker.state])
            self._breaker_left.labels(model, breaker.name.value).set(breaker.left_seconds)
        self._fallback.labels(model).set(record.fallback is not None)
        watch = record.watch
        times = ((self._hub, watch.last_looked_at), (self._changed, watch.changed_at), (self._newest, watch.highest_at))
        for gauge, at in times:
            if at is not None:
                gauge.labels(model).set(at.timestamp())
        self._quarantine.labels(model).set(len(record.quarantine))
        self._hold.labels(model).set(record.on_hold)
        self._show_committed(record)
        for event in events:
            if event.outcome is not None:
                reason = event.update.reason if event.update is not None else ""
                self._outcomes.labels(model, event.outcome.value, reason).inc()

    def troubled(self, model: str, what: str, message: str) -> None:
        """Count it."""
        del message
        self._troubles.labels(model, what).inc()

    def _show_committed(self, record: ModelRecord) -> None:
        revision = "" if record.committed is None else record.committed.revision
        before = self._shown.get(record.model, "")
        if before and before != revision:
            self._committed.remove(record.model, before)
        if revision:
            self._committed.labels(record.model, revision).set(1)
        self._shown[record.model] = revision


class ToAll:
    """Several observers as one."""

    def __init__(self, *observers: Observer) -> None:
        """Tell these."""
        self._observers = observers

    def written(self, record: ModelRecord, events: Sequence[Event]) -> None:
        """Tell each."""
        for observer in self._observers:
            observer.written(record, events)

    def troubled(self, model: str, what: str, message: str) -> None:
        """Tell each."""
        for observer in self._observers:
            observer.troubled(model, what, message)
