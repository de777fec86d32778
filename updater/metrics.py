"""What happens, for those who watch: the log and the numbers."""

from collections.abc import Sequence
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge

from common.logs import Logger
from updater.core.breaker import BreakerState
from updater.core.record import Event, ModelRecord, Stage

_BREAKER_NUMBERS = {BreakerState.CLOSED: 0, BreakerState.HALF_OPEN: 1, BreakerState.OPEN: 2}


class Observer(Protocol):
    """Is told what was written."""

    def written(self, record: ModelRecord, events: Sequence[Event]) -> None:
        """A record and its events are durable."""
        ...

    def troubled(self, model: str, what: str, message: str) -> None:
        """The updater itself could not do something."""
        ...


def create_registry() -> CollectorRegistry:
    """An empty registry for the metrics of this process."""
    return CollectorRegistry()


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
        self._outcomes = Counter(
            "hotslot_updates_total", "Updates that have ended.", ["model", "outcome", "reason"], registry=registry
        )
        self._troubles = Counter(
            "hotslot_updater_troubles_total", "What the updater could not do.", ["model", "what"], registry=registry
        )

        def gauge(name: str, meaning: str, *labels: str) -> Gauge:
            return Gauge(f"hotslot_{name}", meaning, ["model", *labels], registry=registry)

        self._stage = gauge("update_stage", "1 for the stage that a model's updates are in.", "stage")
        self._quarantine = gauge("quarantined_revisions", "Source digests in quarantine.")
        self._hold = gauge("updates_paused", "1 while an operator holds updates.")
        self._committed = gauge("committed_info", "1 for the revision that is committed.", "revision")
        self._breakers = gauge("breaker_state", "0 closed, 1 half open, 2 open.", "breaker")
        meaning = "Open: until it may try again; half open: until its probe counts as failed; 0 closed."
        self._breaker_left = gauge("breaker_left_seconds", meaning, "breaker")
        meaning = "1 while a model is kept off its device because memory ran out there."
        self._fallback = gauge("cpu_fallback", meaning)
        self._hub = gauge("hub_answered_timestamp_seconds", "When the hub last answered.")
        meaning = "When the hub's listing was last another one: a mirror that has stopped answers, and never changes."
        self._changed = gauge("hub_listing_changed_timestamp_seconds", meaning)
        self._newest = gauge("hub_newest_listed_timestamp_seconds", "When the highest release was first listed.")
        self._snapshot: dict[str, str] = {}

    def written(self, record: ModelRecord, events: Sequence[Event]) -> None:
        """Follow a record."""
        model = record.model
        for stage in Stage:
            self._stage.labels(model, stage.value).set(stage is record.stage)
        for breaker in (record.hub, record.activation, record.device):
            self._breakers.labels(model, breaker.name.value).set(_BREAKER_NUMBERS[breaker.state])
            self._breaker_left.labels(model, breaker.name.value).set(breaker.left_seconds)
        self._fallback.labels(model).set(record.cpu_fallback is not None)
        watch = record.watch
        times = ((self._hub, watch.last_polled_at), (self._changed, watch.changed_at), (self._newest, watch.highest_at))
        for gauge, at in times:
            if at is not None:
                gauge.labels(model).set(at.timestamp())
        self._quarantine.labels(model).set(len(record.quarantine))
        self._hold.labels(model).set(record.paused)
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
        before = self._snapshot.get(record.model, "")
        if before and before != revision:
            self._committed.remove(record.model, before)
        if revision:
            self._committed.labels(record.model, revision).set(1)
        self._snapshot[record.model] = revision


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
