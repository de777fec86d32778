"""What becomes of events on their way out, for those who watch: the log and the numbers."""

from collections.abc import Callable
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge

from common.logs import Logger


class DeliveryObserver(Protocol):
    """What delivery workers report, from their threads."""

    def delivered(self, hook: str) -> None:
        """A receiver has taken one."""
        ...

    def failed(self, hook: str, reason: str) -> None:
        """It has not, this time."""
        ...

    def given_up(self, hook: str, event: str, reason: str) -> None:
        """It was refused too often; it is not sent again."""
        ...

    def dropped(self, hook: str, count: int) -> None:
        """Too many waited: the oldest are forgotten."""
        ...


class DeliveryReporter:
    """Tells the log and the metrics."""

    def __init__(self, log: Logger, registry: CollectorRegistry, hooks: tuple[str, ...]) -> None:
        """Put the numbers into a registry; with no receivers there are none.

        Args:
            log: of the process.
            registry: of its metrics.
            hooks: names of all receivers, each of which has its numbers from the beginning.
        """
        self._log = log
        self._failing: set[str] = set()  # told in the log already
        if not hooks:
            return
        meaning = "Events that wait for a webhook's receiver."
        self._waiting = Gauge("hotslot_webhook_queued_events", meaning, ["hook"], registry=registry)
        meaning = "Events that a webhook's receiver has taken."
        self._delivered = Counter("hotslot_webhook_delivered_total", meaning, ["hook"], registry=registry)
        meaning = "Deliveries that did not succeed; the same event may be tried again."
        self._failed = Counter("hotslot_webhook_failures_total", meaning, ["hook", "reason"], registry=registry)
        meaning = "Events that a webhook's receiver will never get: refused too often, or too many waited."
        self._lost = Counter("hotslot_webhook_lost_total", meaning, ["hook", "why"], registry=registry)
        for hook in hooks:
            self._delivered.labels(hook)
            for why in ("refused", "overflow"):
                self._lost.labels(hook, why)

    def watch(self, hook: str, waiting: Callable[[], float]) -> None:
        """Show how many wait for a receiver, as it is whenever somebody looks; called from any thread."""
        self._waiting.labels(hook).set_function(waiting)

    def delivered(self, hook: str) -> None:
        """Count it; the first after failures is told."""
        self._delivered.labels(hook).inc()
        if hook in self._failing:
            self._failing.discard(hook)
            self._log.info("webhook_recovered", hook=hook)

    def failed(self, hook: str, reason: str) -> None:
        """Count it; the first in a row is told."""
        self._failed.labels(hook, reason).inc()
        if hook not in self._failing:
            self._failing.add(hook)
            self._log.warning("webhook_failed", hook=hook, reason=reason)

    def given_up(self, hook: str, event: str, reason: str) -> None:
        """Tell and count it."""
        self._lost.labels(hook, "refused").inc()
        self._log.error("webhook_event_refused", hook=hook, lost=event, reason=reason)

    def dropped(self, hook: str, count: int) -> None:
        """Tell and count it."""
        self._lost.labels(hook, "overflow").inc(count)
        self._log.error("webhook_events_dropped", hook=hook, count=count)
