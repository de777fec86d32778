"""Creates the metrics of a catalog."""

from collections.abc import Callable, Iterable

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from common.metric_catalog import MetricKind, MetricSpec, Reading

Read = Callable[[], Iterable[Reading]]

# A second series for each counter and histogram, which Prometheus does not use. The function has no annotations.
prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]


def create_registry() -> CollectorRegistry:
    """An empty registry for the metrics of a process."""
    return CollectorRegistry()


def create_counter(spec: MetricSpec, registry: CollectorRegistry) -> Counter:
    """A counter that the process counts itself."""
    return Counter(spec.name, spec.meaning, spec.labels, registry=registry)


def create_gauge(spec: MetricSpec, registry: CollectorRegistry) -> Gauge:
    """A gauge that the process sets itself."""
    return Gauge(spec.name, spec.meaning, spec.labels, registry=registry)


def create_histogram(spec: MetricSpec, registry: CollectorRegistry) -> Histogram:
    """A histogram."""
    return Histogram(spec.name, spec.meaning, spec.labels, buckets=spec.buckets, registry=registry)


class ReadingCollector(Collector):
    """Metrics whose values are read at each scrape, on the scrape's thread."""

    def __init__(self, read: Read, registry: CollectorRegistry) -> None:
        """Register it; `read` may be called from any thread."""
        self._read = read
        registry.register(self)

    def describe(self) -> Iterable[Metric]:
        """Nothing: names are unique by the catalog, and nothing is read at registration."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """The values now."""
        for reading in self._read():
            spec = reading.metric
            make = CounterMetricFamily if spec.kind is MetricKind.COUNTER else GaugeMetricFamily
            family = make(spec.name, spec.meaning, labels=spec.labels)
            for labels, value in reading.values.items():
                family.add_metric(labels, value)
            yield family
