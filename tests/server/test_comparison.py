"""How two slots' answers to the same texts are compared and counted."""

from datetime import UTC, datetime

import pytest

from common.engine_files import Task
from inference.server.model import comparison as comparisons
from inference.server.model.comparison import (
    MAX_DIFFERING,
    Comparison,
    digest_questions,
    measure_distance,
    write_answer,
)
from inference.server.model.stats import MAX_LABELS
from inference.server.request import NO_TAGS, AddressInput, EntailmentInput, RequestTags
from inference.wire import AddressSpan, EntailmentScores, Picture

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


def test_an_address_that_was_compared_before_does_not_count_again() -> None:
    """The others of its request do, at their own positions."""
    comparison = compared(Task.ADDRESS_TAGGING)
    old, new = (PROVINCE, CITY, ROAD), (PROVINCE, CITY)
    for addresses in ((ADDRESS, ADDRESS, "1"), ("1", "1", "2"), ("2", ADDRESS, ADDRESS)):
        questions = digest_questions(AddressInput(addresses))
        positions = comparison.find_new(questions)
        if positions:
            comparison.add(addresses, (new,) * 3, (old,) * 3, NO_TAGS, positions)
            comparison.remember(questions)

    assert (comparison.requests, comparison.answers, comparison.equal_answers) == (2, 3, 0)
    assert [row.position for row in comparison.differing] == [0, 2, 2]


def test_a_question_is_a_statement_about_a_picture() -> None:
    """And its premise; of a long file both ends and the length are read."""
    long = bytes(1 << 20)
    files = (b"", b"one", b"two", long, long + b"\0", b"1" + long[1:], long[1:] + b"1")
    pictures: tuple[Picture, ...] = (*files, memoryview(b"three"))

    found = [digest_questions(EntailmentInput(picture, ("a", "b"), "")) for picture in pictures]
    again = [digest_questions(EntailmentInput(picture, ("b",), "")) for picture in pictures]
    premises = [EntailmentInput(b"one", (text,), premise) for text, premise in (("b", "a"), ("", "ab"), ("ab", ""))]

    assert len({one.picture for one in found}) == len(pictures)
    assert [one.picture for one in again] == [one.picture for one in found]
    assert [one.texts[0] for one in again] == [one.texts[1] for one in found]
    texts = [text for one in (*found, *(digest_questions(one) for one in premises)) for text in one.texts]
    assert len(set(texts)) == len(texts)


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes after that counts each time."""
    monkeypatch.setattr(comparisons, "MAX_REMEMBERED", 2)
    comparison = compared(Task.VISUAL_ENTAILMENT)
    questions = [digest_questions(EntailmentInput(b"%d" % number, ("a",), "")) for number in range(3)]
    for one in questions:
        comparison.remember(one)

    assert [comparison.find_new(one) for one in questions] == [(), (), (0,)]
    counted = [comparison.fail("NOT_FINITE", one, is_judged=True) for one in questions * 2]
    assert counted == [*(True, True, True), *(False, False, True)]


def test_one_bad_picture_or_address_is_no_reason_to_refuse_a_model() -> None:
    """However it is asked about: of the requests about a picture two count, and an address counts once."""
    pictures, addresses = compared(Task.VISUAL_ENTAILMENT), compared(Task.ADDRESS_TAGGING)
    about = [digest_questions(EntailmentInput(b"bad", (f"at {second}",), "")) for second in range(10)]
    among = [digest_questions(AddressInput(texts)) for texts in (("bad", "1"), ("2", "bad"), ("bad",), ("1", "2"))]

    assert sum(pictures.fail("NOT_FINITE", one, is_judged=True) for one in about) == 2
    assert sum(pictures.fail("NOT_FINITE", one, is_judged=False) for one in about) == 2
    assert [addresses.fail("NOT_FINITE", one, is_judged=True) for one in among] == [True, True, False, False]
    assert (pictures.judged_failed, addresses.judged_failed) == ({"NOT_FINITE": 2}, {"NOT_FINITE": 2})


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
