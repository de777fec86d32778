"""The updater's metrics are those of its catalog."""

from dataclasses import replace
from datetime import UTC, datetime

from common.clock import SystemClock
from common.logs import get_logger
from common.metric_catalog import MetricKind, Reading
from common.metrics import ReadingCollector, create_registry
from common.process_metrics import make_process_reader
from common.settings_reload import SETTINGS_METRICS
from tests.updater.core.world import MODEL, World
from updater.core.record import Event, ModelRecord, Stage
from updater.metric_catalog import CATALOG, GOLDEN_SET, LOOP_RUNNING
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
    models = [Reading(spec, {("shapes",): 1.0}) for spec in (LOOP_RUNNING, GOLDEN_SET)]  # as the daemon reads them
    ReadingCollector(lambda: models, registry)

    families = [(family.name, family.type) for family in registry.collect()]

    assert sorted(families) == sorted((spec.name.removesuffix("_total"), spec.kind.value) for spec in CATALOG.metrics)


def test_failed_downloads_are_counted_until_one_succeeds() -> None:
    """Three in a row are an alert; one success ends it."""
    registry = create_registry()
    observer = MetricsObserver(registry)

    def count_after(*names: str) -> float | None:
        events = [Event(datetime(2026, 1, 1, tzinfo=UTC), "shapes", Stage.STAGING, name, "") for name in names]
        observer.record_written(ModelRecord("shapes"), events)
        return registry.get_sample_value("hotslot_failed_downloads", {"model": "shapes"})

    assert count_after() == 0
    assert count_after("staging_failed", "content_mismatched", "staging_failed") == 3
    assert count_after("revision_staged") == 0


def test_a_removed_model_has_no_gauge_any_more() -> None:
    """Each gauge of a model goes with it: an alert on one would fire until the updater is restarted."""
    registry = create_registry()
    observer, world = MetricsObserver(registry), World()
    world.install("1.0.0")
    observer.record_written(world.record, [])
    observer.record_written(replace(world.record, model="other"), [])
    gauges = {spec.name for spec in CATALOG.metrics if spec.kind is MetricKind.GAUGE and "model" in spec.labels}

    def shown(model: str) -> set[str]:
        samples = [sample for family in registry.collect() for sample in family.samples]
        return {sample.name for sample in samples if sample.labels.get("model") == model}

    read_at_scrapes = {LOOP_RUNNING.name, GOLDEN_SET.name}
    assert shown(MODEL) == shown("other") == gauges - read_at_scrapes
    observer.forget(MODEL)
    assert shown(MODEL) == set()
    assert shown("other") == gauges - read_at_scrapes
