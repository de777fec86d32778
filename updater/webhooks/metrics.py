"""Logs and metrics of webhook deliveries."""

from collections.abc import Callable
from typing import Protocol

from prometheus_client import CollectorRegistry

from common.logs import Logger
from common.metrics import create_counter, create_gauge
from updater import metric_catalog as catalog


class DeliveryObserver(Protocol):
    """Receives the results of deliveries, from the delivery threads."""

    def delivered(self, hook: str) -> None:
        """An event was delivered."""
        ...

    def failed(self, hook: str, reason: str) -> None:
        """One delivery attempt failed; the event may be sent again."""
        ...

    def given_up(self, hook: str, event: str, reason: str) -> None:
        """An event was refused too often and will not be sent again."""
        ...

    def dropped(self, hook: str, count: int) -> None:
        """The queue was full: the oldest events were deleted."""
        ...


class DeliveryReporter:
    """Writes delivery results to the log and to Prometheus metrics."""

    def __init__(self, log: Logger, registry: CollectorRegistry, hooks: tuple[str, ...]) -> None:
        """Register the metrics; without receivers there are none.

        Args:
            log: of the process.
            registry: of its metrics.
            hooks: names of all receivers; their counters start at 0.
        """
        self.log = log
        self._failing: set[str] = set()  # a failure of these has been logged
        if not hooks:
            return
        self._waiting = create_gauge(catalog.WEBHOOK_QUEUED, registry)
        self._delivered = create_counter(catalog.WEBHOOK_DELIVERED, registry)
        self._failed = create_counter(catalog.WEBHOOK_FAILURES, registry)
        self._lost = create_counter(catalog.WEBHOOK_LOST, registry)
        for hook in hooks:
            self._delivered.labels(hook)
            for reason in ("refused", "overflow"):
                self._lost.labels(hook, reason)

    def watch(self, hook: str, waiting: Callable[[], float]) -> None:
        """Export the queue length of a receiver; `waiting` is called at each scrape, from any thread."""
        self._waiting.labels(hook).set_function(waiting)

    def delivered(self, hook: str) -> None:
        """Count a delivery; log it if it is the first after a failure."""
        self._delivered.labels(hook).inc()
        if hook in self._failing:
            self._failing.discard(hook)
            self.log.info("webhook_recovered", hook=hook)

    def failed(self, hook: str, reason: str) -> None:
        """Count a failed attempt; log only the first of consecutive ones."""
        self._failed.labels(hook, reason).inc()
        if hook not in self._failing:
            self._failing.add(hook)
            self.log.warning("webhook_failed", hook=hook, reason=reason)

    def given_up(self, hook: str, event: str, reason: str) -> None:
        """Count and log an event that will not be sent again."""
        self._lost.labels(hook, "refused").inc()
        self.log.error("webhook_event_refused", hook=hook, lost=event, reason=reason)

    def dropped(self, hook: str, count: int) -> None:
        """Count and log dropped events."""
        self._lost.labels(hook, "overflow").inc(count)
        self.log.error("webhook_events_dropped", hook=hook, count=count)
