"""The metrics endpoint, read as Prometheus reads it."""

import urllib.request

from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from dev.harness.stack import DEADLINE_SECONDS, Stack


def families_of(stack: Stack) -> dict[str, Metric]:
    """All metric families by name."""
    return read_families(stack.metrics_port)


def read_families(port: int) -> dict[str, Metric]:
    """All metric families that a port of this machine serves, by name."""
    url = f"http://127.0.0.1:{port}/metrics"
    with urllib.request.urlopen(url, timeout=DEADLINE_SECONDS) as page:
        text = page.read().decode()
    return {family.name: family for family in text_string_to_metric_families(text)}


def value_of(stack: Stack, sample: str, **labels: str) -> float:
    """The sum of all samples of a name that have these labels; 0 if there are none."""
    rows = [row for family in families_of(stack).values() for row in family.samples if row.name == sample]
    return sum(row.value for row in rows if all(row.labels.get(key) == value for key, value in labels.items()))
