"""How two slots' answers to the same texts are compared and counted."""

from datetime import UTC, datetime

import pytest

from common.engine_files import Task
from inference.server.model.comparison import MAX_DIFFERING, Comparison, measure_distance, write_answer
from inference.server.model.stats import MAX_LABELS
from inference.server.request import RequestTags
from inference.wire import AddressSpan, EntailmentScores

START = datetime(2030, 1, 1, tzinfo=UTC)
ADDRESS = "浙江省杭州市文一西路"
PROVINCE, CITY, ROAD = AddressSpan("prov", 0, 3, 0.9), AddressSpan("city", 3, 6, 0.8), AddressSpan("road", 6, 10, 0.7)


def compared(task: Task) -> Comparison:
    """A comparison that has counted nothing."""
    return Comparison(task, "sha256:new", "sha256:old", START)


def test_parts_of_addresses_are_compared_by_kind_and_place() -> None:
    """Directions are those of golden sets; an address is equal if all its parts are."""
    comparison = compared(Task.ADDRESS_TAGGING)
    other_kind = (PROVINCE, CITY, AddressSpan("poi", 6, 10, 0.7))
    shorter = (PROVINCE, CITY, AddressSpan("road", 6, 8, 0.7))

    old = (PROVINCE, CITY, ROAD)
    different = comparison.add((ADDRESS,) * 3, (old, other_kind, shorter), (old,) * 3, RequestTags("id"))

    assert different == 2
    assert comparison.directions.counts == {"road → poi": 1, "road → other characters": 1}
    assert (comparison.requests, comparison.equal_requests) == (1, 0)
    assert (comparison.answers, comparison.equal_answers) == (3, 1)
    assert [(row.position, row.directions) for row in comparison.differing] == [
        (1, ("road → poi",)),
        (2, ("road → other characters",)),
    ]
    assert write_answer(ADDRESS, (PROVINCE,)) == '[["prov", "浙江省", 0]]'


@pytest.mark.parametrize(
    ("before", "after", "distance"),
    [
        (EntailmentScores(0.7, 0.2, 0.1), EntailmentScores(0.7, 0.2, 0.1), 0.0),
        (EntailmentScores(0.7, 0.2, 0.1), EntailmentScores(0.2, 0.7, 0.1), 0.5),
        (EntailmentScores(1.0, 0.0, 0.0), EntailmentScores(0.0, 0.0, 1.0), 1.0),
        ((PROVINCE, CITY), (PROVINCE, CITY), 0.0),
        ((PROVINCE,), (AddressSpan("prov", 0, 3, 0.5),), 0.4),
        ((PROVINCE,), (CITY,), 1.0),
        ((), (), 0.0),
    ],
)
def test_the_distance_of_scores_is_zero_to_one(before: object, after: object, distance: float) -> None:
    """Half the sum of the labels' differences; the mean difference of the parts'."""
    assert measure_distance(before, after) == pytest.approx(distance)  # type: ignore[arg-type]


def test_what_is_counted_is_bounded() -> None:
    """A model with many kinds of parts, and many calls that differ, do not fill the memory."""
    comparison = compared(Task.ADDRESS_TAGGING)
    for number in range(MAX_DIFFERING + 50):
        after = (AddressSpan(f"kind {number}", 0, 3, 0.9),)
        comparison.add((ADDRESS,), (after,), ((PROVINCE,),), RequestTags(f"id {number}"))

    assert len(comparison.directions.counts) == len(comparison.labels.counts) == MAX_LABELS
    assert comparison.directions.counts["other → other"] == MAX_DIFFERING + 50 - (MAX_LABELS - 1)
    assert sum(comparison.labels.counts.values()) == MAX_DIFFERING + 50
    assert (len(comparison.differing), comparison.differing[-1].request_id) == (MAX_DIFFERING, "id 149")
