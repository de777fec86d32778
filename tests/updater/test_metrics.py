"""The updater's metrics are those of its catalog."""

from common.clock import SystemClock
from common.logs import get_logger
from common.metric_catalog import Reading
from common.metrics import ReadingCollector, create_registry
from common.process_metrics import make_process_reader
from common.settings_reload import SETTINGS_METRICS
from updater.metric_catalog import CATALOG, LOOP_RUNNING
from updater.metrics import MetricsObserver
from updater.webhooks.metrics import DeliveryReporter


def test_the_catalog_lists_every_metric_once() -> None:
    """With a webhook: the metrics of deliveries too."""
    registry = create_registry()
    MetricsObserver(registry)
    DeliveryReporter(get_logger(), registry, ("hook",))
    ReadingCollector(make_process_reader("1.2.3"), registry)
    at = SystemClock().now().timestamp()
    ReadingCollector(lambda: [Reading(spec, {(): at}) for spec in SETTINGS_METRICS], registry)
    ReadingCollector(lambda: [Reading(LOOP_RUNNING, {("shapes",): 1.0})], registry)  # as the daemon reads its loops

    families = [(family.name, family.type) for family in registry.collect()]

    assert sorted(families) == sorted((spec.name.removesuffix("_total"), spec.kind.value) for spec in CATALOG.metrics)
