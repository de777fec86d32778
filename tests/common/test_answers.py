"""Answers of each task: how they are written, and how two of them compare."""

import pytest

from common.answers import TASK_ANSWERS, PartCounts, count_directions, measure_distribution, sum_parts
from common.engine_files import Task
from common.golden_set import GoldenBroken, format_item, parse

STATEMENTS, ADDRESSES = TASK_ANSWERS[Task.VISUAL_ENTAILMENT], TASK_ANSWERS[Task.ADDRESS_TAGGING]
ADDRESS = "浙江省杭州市杭州路"


def tagged(*parts: list[object], text: str = ADDRESS) -> str:
    """The answer with these parts."""
    return ADDRESSES.parse(text, list(parts))


def test_parts_get_their_places_from_the_address() -> None:
    """In reading order; a part that occurs twice is the one after the part before, or at the place that is given."""
    assert tagged(["prov", "浙江省"], ["city", "杭州市"]) == '[["prov", "浙江省", 0], ["city", "杭州市", 3]]'
    assert tagged(["city", "杭州市"], ["road", "杭州"]) == '[["city", "杭州市", 3], ["road", "杭州", 6]]'
    assert tagged(["road", "杭州", 6]) == '[["road", "杭州", 6]]'


def test_an_object_is_an_answer_too() -> None:
    """From kind to text, in any order, where no kind is repeated."""
    assert ADDRESSES.parse(ADDRESS, {"city": "杭州市", "prov": "浙江省"}) == tagged(
        ["prov", "浙江省"], ["city", "杭州市"]
    )


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("prov", "an object from kind to text, or a list of parts"),
        ([["prov"]], "an object from kind to text, or a list of parts"),
        ([["prov", 3]], "an object from kind to text, or a list of parts"),
        ([["prov", "江苏省"]], "the part '江苏省' is not in"),
        ([["city", "杭州市"], ["prov", "浙江省"]], "is not in '浙江省杭州市杭州路' after the one before"),
        ([["city", "杭州市", 4]], "is not at 4 in"),
        ({"prov": "浙江省", "city": "省杭州市"}, "overlap"),
    ],
)
def test_an_answer_that_is_none_is_refused(value: object, words: str) -> None:
    """The message says what an answer may be."""
    with pytest.raises(ValueError, match=words):
        ADDRESSES.parse(ADDRESS, value)


def test_a_line_of_addresses_is_read_and_written_alike() -> None:
    """Expected and recorded answers survive."""
    line = '{"item": "a", "addresses": ["杭州市"], "expected": [[["city", "杭州市", 0]]], "answers": [[]]}\n'

    item = parse(line, "token-classification").items[0]

    assert item.expected == ('[["city", "杭州市", 0]]',)
    assert format_item(item) == line


def test_a_wrong_answer_names_its_line() -> None:
    """In a set of addresses."""
    line = '{"item": "a", "addresses": ["杭州市"], "expected": [["city"]]}\n'
    with pytest.raises(GoldenBroken, match="line 1: each answer must be an object"):
        parse(line, "token-classification")


def test_directions_say_how_answers_differ() -> None:
    """By label: another kind, other characters, lost and new parts."""
    before = tagged(["prov", "浙江省"], ["city", "杭州市"], ["road", "杭州路"])
    after = tagged(["prov", "浙江"], ["district", "杭州市"])

    assert ADDRESSES.find_directions(before, before) == ()
    assert ADDRESSES.find_directions(before, after) == ("prov → other characters", "city → district", "road → none")
    assert ADDRESSES.find_directions(after, before)[-1] == "none → road"
    assert STATEMENTS.find_directions("yes", "no") == ("yes → no",)
    assert count_directions(STATEMENTS, [("yes", "no"), ("no", "no"), ("yes", "no")]) == [("yes → no", 2)]


def test_distributions_are_shares_of_labels() -> None:
    """Answers to statements, kinds of parts."""
    assert measure_distribution(STATEMENTS, ["yes", "no", "yes", "yes"]) == {"yes": 0.75, "no": 0.25}
    assert measure_distribution(ADDRESSES, [tagged(["prov", "浙江省"], ["city", "杭州市"])]) == {
        "prov": 0.5,
        "city": 0.5,
    }


def test_micro_f1_counts_exact_parts() -> None:
    """Kind, place and text must be right; an answer that failed has no parts."""
    expected = tagged(["prov", "浙江省"], ["city", "杭州市"])
    given = tagged(["prov", "浙江省"], ["district", "杭州市"], ["road", "杭州路"])

    assert sum_parts(ADDRESSES, [(expected, given), (expected, "")]) == PartCounts(1, 4, 3)
    assert sum_parts(ADDRESSES, [(expected, expected)]).f1 == 1.0
    assert sum_parts(ADDRESSES, []).f1 == 1.0
