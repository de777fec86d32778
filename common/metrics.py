"""Creates the metrics of a catalog."""

import itertools
import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Generic, TypeVar, cast

import prometheus_client
from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar
from prometheus_client.utils import floatToGoString

from common.clock import SystemClock
from common.metric_catalog import MetricKind, MetricSpec, Reading

Read = Callable[[], Iterable[Reading]]

# A second series for each counter and histogram, which Prometheus does not use. The function has no annotations.
prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]


def create_registry() -> CollectorRegistry:
    """An empty registry for the metrics of a process."""
    return CollectorRegistry()


def create_counter(spec: MetricSpec, registry: CollectorRegistry) -> "Counter":
    """A counter that the process counts itself."""
    return Counter(spec, registry)


def create_gauge(spec: MetricSpec, registry: CollectorRegistry) -> Gauge:
    """A gauge that the process sets itself."""
    return Gauge(spec.name, spec.meaning, spec.labels, registry=registry)


def create_histogram(spec: MetricSpec, registry: CollectorRegistry) -> "Histogram":
    """A histogram whose series are plain numbers, read at each scrape."""
    return Histogram(spec, registry)


class CounterSeries:
    """One series of a counter: whoever counts adds to `value`, on one thread."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0

    def inc(self, amount: float = 1.0) -> None:
        """Count."""
        self.value += amount


class HistogramSeries:
    """One series of a histogram; observed on one thread."""

    __slots__ = ("_bounds", "counts", "exemplars", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)  # by bucket; the last one has no upper bound
        self.exemplars: dict[int, Exemplar] = {}  # the latest one, by bucket
        self.sum = 0.0

    def observe(self, amount: float, exemplar: dict[str, str] | None = None) -> None:
        """Count a value; `exemplar` are labels of where it comes from."""
        bucket = bisect_left(self._bounds, amount)
        self.counts[bucket] += 1
        self.sum += amount
        if exemplar is not None:
            self.exemplars[bucket] = Exemplar(exemplar, amount, SystemClock().now().timestamp())


S = TypeVar("S", CounterSeries, HistogramSeries)


class _Family(Collector, Generic[S]):
    """A metric with its series by labels. Counting takes no lock and makes no objects: a scrape does that."""

    def __init__(self, spec: MetricSpec, registry: CollectorRegistry, make: Callable[[], S]) -> None:
        self.spec = spec
        self._make: Callable[[], S] = make
        self._series: dict[tuple[str, ...], S] = {}
        if not spec.labels:
            self.labels()
        registry.register(self)

    def labels(self, *values: str) -> S:
        """The series of these values of the labels, which may be kept; created at 0 if absent."""
        if len(values) != len(self.spec.labels):
            raise ValueError(f"{self.spec.name} has the labels {self.spec.labels}, not {values}")
        series = self._series.get(values)
        if series is None:
            series = self._series[values] = self._make()
        return series

    def remove_by_labels(self, labels: Mapping[str, str]) -> None:
        """Remove all series with these labels."""
        places = {self.spec.labels.index(name): value for name, value in labels.items()}
        gone = [key for key in self._series if all(key[place] == value for place, value in places.items())]
        for key in gone:
            del self._series[key]

    def describe(self) -> Iterable[Metric]:
        """Nothing: names are unique by the catalog."""
        return ()


class Counter(_Family[CounterSeries]):
    """A number that only grows."""

    def __init__(self, spec: MetricSpec, registry: CollectorRegistry) -> None:
        super().__init__(spec, registry, CounterSeries)

    def inc(self, amount: float = 1.0) -> None:
        """Count, without labels."""
        self.labels().inc(amount)

    def collect(self) -> Iterable[Metric]:
        """The values now."""
        family = CounterMetricFamily(self.spec.name, self.spec.meaning, labels=self.spec.labels)
        for labels, series in list(self._series.items()):
            family.add_metric(labels, series.value)
        return (family,)


class Histogram(_Family[HistogramSeries]):
    """A distribution."""

    def __init__(self, spec: MetricSpec, registry: CollectorRegistry) -> None:
        bounds = spec.buckets
        super().__init__(spec, registry, lambda: HistogramSeries(bounds))
        self._names = [floatToGoString(bound) for bound in (*bounds, math.inf)]  # type: ignore[no-untyped-call]

    def collect(self) -> Iterable[Metric]:
        """The values now."""
        family = HistogramMetricFamily(self.spec.name, self.spec.meaning, labels=self.spec.labels)
        for labels, series in list(self._series.items()):
            counts = itertools.accumulate(list(series.counts))
            rows = enumerate(zip(self._names, counts, strict=True))
            buckets = [(name, count, series.exemplars.get(place)) for place, (name, count) in rows]
            family.add_metric(labels, cast("Any", buckets), series.sum)
        return (family,)


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
