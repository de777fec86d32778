"""Counters and histograms of a process are shown as the library's own would be."""

from typing import Any

import prometheus_client
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics import exposition

from common.metric_catalog import counter, histogram
from common.metrics import create_counter, create_histogram, create_registry

generate_openmetrics: Any = exposition.generate_latest
SECONDS = (0.1, 0.5, 2.5)
ANSWERS = counter("hotslot_answers_total", "Answers.", "model", "revision", use="")
LOST = counter("hotslot_lost_total", "Lost.", use="")
LATENCY = histogram("hotslot_seconds", "Seconds.", "model", "revision", buckets=SECONDS, use="")
VALUES = (0.0, 0.05, 0.1, 0.100001, 0.5, 2.5, 2.6, 100.0)
LABELS = [("shapes", "v1"), ("shapes", "v2"), ('odd"\n\\', "")]


def count_with_ours() -> CollectorRegistry:
    """What this project counts with."""
    registry = create_registry()
    answers, latency = create_counter(ANSWERS, registry), create_histogram(LATENCY, registry)
    create_counter(LOST, registry)
    for number, labels in enumerate(LABELS):
        answers.labels(*labels).value += number
        answers.labels(*labels).inc()
        for value in VALUES[number:]:
            latency.labels(*labels).observe(value)
    return registry


def count_with_the_librarys() -> CollectorRegistry:
    """The same with the library's own metrics."""
    registry = CollectorRegistry()
    answers = prometheus_client.Counter(ANSWERS.name, ANSWERS.meaning, ANSWERS.labels, registry=registry)
    latency = prometheus_client.Histogram(
        LATENCY.name, LATENCY.meaning, LATENCY.labels, buckets=SECONDS, registry=registry
    )
    prometheus_client.Counter(LOST.name, LOST.meaning, registry=registry)
    for number, labels in enumerate(LABELS):
        answers.labels(*labels).inc(number)
        answers.labels(*labels).inc()
        for value in VALUES[number:]:
            latency.labels(*labels).observe(value)
    return registry


def test_both_formats_are_the_librarys() -> None:
    """To the last character, in the order of registration."""
    ours, librarys = count_with_ours(), count_with_the_librarys()

    assert sorted(generate_latest(ours).splitlines()) == sorted(generate_latest(librarys).splitlines())
    assert sorted(generate_openmetrics(ours).splitlines()) == sorted(generate_openmetrics(librarys).splitlines())


def test_a_removed_series_begins_again_at_zero() -> None:
    """And those of other labels stay."""
    registry = create_registry()
    answers = create_counter(ANSWERS, registry)
    for revision in ("v1", "v2"):
        answers.labels("shapes", revision).inc(3)
    answers.remove_by_labels({"revision": "v1"})
    answers.labels("shapes", "v1").inc()

    assert registry.get_sample_value(ANSWERS.name, {"model": "shapes", "revision": "v1"}) == 1
    assert registry.get_sample_value(ANSWERS.name, {"model": "shapes", "revision": "v2"}) == 3


def test_the_latest_exemplar_of_a_bucket_is_shown() -> None:
    """With its value, in the format that has exemplars."""
    registry = create_registry()
    latency = create_histogram(LATENCY, registry).labels("shapes", "v1")
    latency.observe(0.2, {"trace_id": "old"})
    latency.observe(0.3, {"trace_id": "new"})

    (line,) = (line for line in generate_openmetrics(registry).decode().splitlines() if "trace_id" in line)
    assert line.startswith('hotslot_seconds_bucket{le="0.5",model="shapes",revision="v1"} 2.0 # {trace_id="new"} 0.3 ')


def test_a_wrong_number_of_labels_is_refused() -> None:
    """A series that nobody finds would be counted otherwise."""
    with pytest.raises(ValueError, match="has the labels"):
        create_counter(ANSWERS, create_registry()).labels("shapes")
