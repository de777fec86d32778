"""Logs and metrics of the alert relay."""

from collections.abc import Callable, Iterable

from prometheus_client import generate_latest

from cli.monitoring.relay import metric_catalog as catalog
from cli.monitoring.relay.channels import DeliveryAttempt
from common.logs import Logger
from common.metric_catalog import Reading
from common.metrics import ReadingCollector, create_counter, create_registry
from common.process_metrics import installed_version, make_process_reader


class RelayReporter:
    """Counts and logs deliveries; from any thread."""

    def __init__(self, log: Logger, targets: Iterable[str], count_waiting: Callable[[str], int]) -> None:
        self._log = log
        self._registry = registry = create_registry()
        names = tuple(targets)
        self._delivered = create_counter(catalog.DELIVERED, registry)
        self._failures = create_counter(catalog.FAILURES, registry)
        self._lost = create_counter(catalog.LOST, registry)
        self._failing: set[str] = set()
        for name in names:  # begin at 0
            self._delivered.labels(name)
            self._lost.labels(name)
        ReadingCollector(
            lambda: [Reading(catalog.WAITING, {(name,): float(count_waiting(name)) for name in names})], registry
        )
        ReadingCollector(make_process_reader(installed_version()), registry)

    def delivered(self, target: str, notifications: int) -> None:
        """A message was accepted."""
        self._delivered.labels(target).inc(notifications)
        recovered = target in self._failing
        self._failing.discard(target)
        self._log.info("alerts_delivered", target=target, notifications=notifications, recovered=recovered)

    def failed(self, target: str, answer: DeliveryAttempt) -> None:
        """A message was not accepted."""
        self._failing.add(target)
        self._failures.labels(target, answer.reason).inc()
        self._log.warning("alerts_not_delivered", target=target, reason=answer.reason, detail=answer.detail)

    def lost(self, target: str, notifications: int, answer: DeliveryAttempt) -> None:
        """A message was given up."""
        self._lost.labels(target).inc(notifications)
        self._log.error("alerts_lost", target=target, notifications=notifications, detail=answer.detail)

    def render(self) -> bytes:
        """All metrics as Prometheus reads them."""
        return generate_latest(self._registry)
