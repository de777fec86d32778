"""The demo model's addresses: how they are made, how spans become labels and back, how they are scored."""

import itertools
import json
from pathlib import Path

import pytest

from dev.parity.mgeo.ours import load_source
from examples.addresses.baseline import look_up
from examples.addresses.divisions import read_divisions
from examples.addresses.generate import generate, join
from examples.addresses.golden import golden_addresses
from examples.addresses.layout import KINDS, LABELS, OVERFLOWING, Address, Span
from examples.addresses.overflow import overflow_directory
from examples.addresses.score import score
from examples.addresses.worsen import worsen_directory
from inference.runner.engines.base import AddressItem, RowRange
from inference.runner.engines.mgeo.engine import MgeoEngine
from inference.runner.items import is_finite

FOLDER = Path(__file__).parents[2] / "examples" / "addresses"


def some(seed: int, count: int, *, is_unseen: bool = False) -> list[Address]:
    """Generated addresses."""
    return list(itertools.islice(generate(seed, is_unseen=is_unseen), count))


def test_the_same_seed_gives_the_same_addresses() -> None:
    """Another seed gives others."""
    assert some(1, 20) == some(1, 20)
    assert some(1, 20) != some(2, 20)


def test_spans_follow_each_other_and_are_of_known_kinds() -> None:
    """No span is empty, overlaps its neighbour or leaves the text."""
    for address in some(3, 500):
        ends = [0, *(span.end for span in address.spans)]
        assert all(end <= span.start < span.end for end, span in zip(ends, address.spans, strict=False))
        assert ends[-1] <= len(address.text)
        assert {span.kind for span in address.spans} <= set(KINDS)


def test_every_kind_is_written_and_most_addresses_differ() -> None:
    """A thousand addresses have all kinds of parts."""
    addresses = some(4, 1000)
    assert {span.kind for address in addresses for span in address.spans} == set(KINDS)
    assert len({address.text for address in addresses}) > 990


def test_what_is_unseen_is_never_written_for_training() -> None:
    """Districts, towns and names of the one side do not come in the other."""
    sides = [{one for one in read_divisions() if one.is_unseen is unseen} for unseen in (False, True)]
    assert len(sides[0]) > 4 * 500
    assert len(sides[1]) > 500
    roads = [
        {text for address in some(5, 2000, is_unseen=unseen) for kind, text in address.parts() if kind == "road"}
        for unseen in (False, True)
    ]
    assert not roads[0] & roads[1]


def test_the_golden_set_is_what_the_generator_writes() -> None:
    """200 addresses, none with the character on which the overflowing model fails."""
    lines = (FOLDER / "golden" / "golden.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["addresses"] for row in rows] == [[address.text] for address in golden_addresses()]
    assert len(rows) == 200
    assert not any(OVERFLOWING in row["addresses"][0] for row in rows)


@pytest.mark.parametrize("relative", ["worse", "overflowing"])
def test_a_bad_relative_is_whole_and_fails_where_it_should(tmp_path: Path, relative: str) -> None:
    """The worse one finds all parts of far fewer addresses; the overflowing one fails only on one character."""
    make = worsen_directory if relative == "worse" else overflow_directory
    make(FOLDER / "v1.1.0", tmp_path / relative)
    good, bad = load_source(FOLDER / "v1.1.0"), load_source(tmp_path / relative)
    texts = [address.text for address in golden_addresses()]
    same = sum(tag(good, text) == tag(bad, text) for text in texts) / len(texts)
    if relative == "worse":
        assert 0.1 < same < 0.6
        return
    assert same == 1.0
    assert tag(good, texts[0] + OVERFLOWING) is not None
    assert tag(bad, texts[0] + OVERFLOWING) is None


def tag(engine: MgeoEngine, text: str) -> object:
    """The parts that a model finds; None if its result is not finite."""
    item = engine.prepare(AddressItem((text,)))
    [rows] = engine.compute([RowRange(item, 0, item.rows)])
    if not all(is_finite(row) for row in rows):
        return None
    return [(span.kind, span.start, span.end) for row in rows if isinstance(row, tuple) for span in row]


def test_a_span_is_right_if_its_kind_and_both_ends_are() -> None:
    """One of three found is right, two were expected: F1 is 2 / 5."""
    address = join([("prov", "浙江省"), ("city", "杭州市")])
    found = [Span("prov", 0, 3), Span("city", 3, 5), Span("road", 5, 6)]

    measured = score([address], [found])

    assert (measured.right, measured.found, measured.expected) == (1, 3, 2)
    assert measured.f1 == pytest.approx(0.4)
    assert measured.whole == 0.0
    assert measured.by_kind == {"prov": 1.0, "city": 0.0, "road": 0.0}


def test_the_interval_surrounds_the_score() -> None:
    """And is wider for fewer addresses."""
    widths = []
    for count in (50, 800):
        addresses = some(6, count, is_unseen=True)
        measured = score(addresses, [look_up(address.text) for address in addresses])
        assert measured.low < measured.f1 < measured.high
        widths.append(measured.high - measured.low)
    assert widths[1] < widths[0] / 2


def test_a_dictionary_knows_divisions() -> None:
    """Those of unseen districts too."""
    text = "浙江省杭州市余杭区五常街道文一西路969号"
    assert [(span.kind, text[span.start : span.end]) for span in look_up(text)][:3] == [
        ("prov", "浙江省"),
        ("city", "杭州市"),
        ("district", "余杭区"),
    ]


def test_the_labels_are_bies_over_the_kinds() -> None:
    """And O for what is no part."""
    assert LABELS[:5] == ("O", "B-prov", "I-prov", "E-prov", "S-prov")
    assert len(LABELS) == 1 + 4 * len(KINDS)
