"""Rates and latencies come from counters that only grow, until the server starts anew."""

from datetime import UTC, datetime

import pytest

from console.charts import draw_latencies, draw_rates
from console.history import MAX_SAMPLES, History, find_quantile
from hotslot.control.v1 import control_pb2

WALL = datetime(2026, 8, 21, 10, 15, tzinfo=UTC)
OLD, NEW = "sha256:old", "sha256:new"


def state(active: str, **answered: int) -> control_pb2.ModelState:
    """A model whose revisions have answered so often, all within 10 ms."""
    found = control_pb2.ModelState(model="shapes")
    found.slots.add(slot="a", bundle_digest=active, revision=active[7:], role="ACTIVE")
    for name, count in answered.items():
        row = found.stats.add(bundle_digest=f"sha256:{name}", device="cpu", answered=count)
        row.latency.add(count=count).at_most.FromMilliseconds(10)
        row.latency.add(count=0)
    return found


def tell(*samples: tuple[float, float, control_pb2.ModelState]) -> History:
    """A history of samples, each with its time and the server's start."""
    history = History()
    for at, started_at, one in samples:
        history.add(one, started_at, at, WALL)
    return history


def test_a_rate_is_the_difference_by_the_time() -> None:
    """50 answers in 5 s."""
    history = tell((0, 1, state(OLD, old=100)), (5, 1, state(OLD, old=150)))
    assert [(point.rates[OLD].answered, point.rates[OLD].p50) for point in history.points()] == [(10.0, 0.005)]


def test_a_restarted_server_counts_from_zero() -> None:
    """What it has answered since is the difference."""
    history = tell((0, 1, state(OLD, old=100)), (5, 2, state(OLD, old=20)))
    assert history.points()[0].rates[OLD].answered == 4.0


def test_a_swap_is_marked_even_within_a_step() -> None:
    """With the revision that answers since."""
    history = tell((0, 1, state(OLD, old=1)), (1, 1, state(OLD, old=2)), (2, 1, state(NEW, old=2, new=1)))
    assert [(point.at, point.swapped_to) for point in history.points()] == [(2, NEW)]


def test_an_hour_is_kept_and_no_more() -> None:
    """Though a console watches for a day."""
    history = tell(*((second * 5.0, 1, state(OLD, old=second)) for second in range(2000)))
    points = history.points()
    assert (len(points), points[-1].at - points[0].at <= 3600) == (MAX_SAMPLES - 1, True)


@pytest.mark.parametrize(
    ("share", "counts", "quantile"),
    [(0.5, (10, 0, 0), 0.005), (0.99, (0, 100, 0), 0.0199), (0.5, (0, 0, 5), 0.02), (0.5, (0, 0, 0), None)],
)
def test_a_quantile_lies_in_its_bucket(share: float, counts: tuple[int, ...], quantile: float | None) -> None:
    """Of the open last bucket its lower bound; of nothing none."""
    assert find_quantile(share, (0.01, 0.02), counts) == pytest.approx(quantile)


def test_charts_draw_a_line_for_each_revision_and_a_mark_for_a_swap() -> None:
    """And an empty hour as an empty chart."""
    history = tell((0, 1, state(OLD, old=1)), (5, 1, state(OLD, old=20)), (10, 1, state(NEW, old=30, new=9)))
    rates = draw_rates(history.points(), history.names, "Answers <a> second")
    empty = draw_latencies([], {}, "Latency")
    assert (rates.count("<polyline"), rates.count('class="swap"'), "<a>" in rates, empty.count("<polyline")) == (
        2,
        1,
        False,
        0,
    )
