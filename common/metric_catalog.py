"""What each metric is, as data: metrics are created from it, and docs/metrics.md is made from it."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class MetricKind(StrEnum):
    """Prometheus's type of a metric."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class MetricSpec:
    """The entry of a metric: its name, kind and labels, and when an operator looks at it."""

    name: str  # as Prometheus shows it
    kind: MetricKind
    meaning: str
    labels: tuple[str, ...]
    use: str  # when an operator looks at it, or what to alert on
    buckets: tuple[float, ...] = ()  # of a histogram, upper bounds


@dataclass(frozen=True, slots=True)
class MetricCatalog:
    """The metrics of one process."""

    title: str
    setting: str  # of the port
    labels: Mapping[str, str]  # name → meaning and values
    metrics: tuple[MetricSpec, ...]


@dataclass(frozen=True, slots=True)
class Reading:
    """The values of one metric at a scrape, by the values of its labels."""

    metric: MetricSpec
    values: Mapping[tuple[str, ...], float]


def counter(name: str, meaning: str, *labels: str, use: str) -> MetricSpec:
    """A number that only grows; its name ends with _total."""
    return MetricSpec(name, MetricKind.COUNTER, meaning, labels, use)


def gauge(name: str, meaning: str, *labels: str, use: str) -> MetricSpec:
    """A number that rises and falls."""
    return MetricSpec(name, MetricKind.GAUGE, meaning, labels, use)


def histogram(name: str, meaning: str, *labels: str, buckets: tuple[float, ...], use: str) -> MetricSpec:
    """A distribution."""
    return MetricSpec(name, MetricKind.HISTOGRAM, meaning, labels, use, buckets)
