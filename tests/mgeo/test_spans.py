"""Labels become spans as in ModelScope's pipeline; long texts are read in windows."""

import math

import pytest

from inference.runner.engines.base import AddressItem, RowRange
from inference.runner.engines.mgeo.engine import MgeoEngine
from inference.runner.engines.mgeo.spans import LabelledWord, cut_windows, join_labels
from inference.runner.engines.mgeo.tokenizer import Words
from inference.wire import CHARACTERS_A_ROW


def joined(labels: str) -> list[tuple[str, int, int]]:
    """Spans of words of one character each; their labels, separated by blanks."""
    labelled = [LabelledWord(label, 0.5) for label in labels.split()]
    extents = [(place, place + 1) for place in range(len(labelled))]
    return [(span.kind, span.start, span.end) for span in join_labels(labelled, extents)]


@pytest.mark.parametrize(
    ("labels", "spans"),
    [
        ("B-prov I-prov E-prov", [("prov", 0, 3)]),
        ("S-city O S-road", [("city", 0, 1), ("road", 2, 3)]),
        ("B-prov B-city E-city", [("prov", 0, 1), ("city", 1, 3)]),
        ("B-prov S-city", [("prov", 0, 1), ("city", 1, 2)]),
        ("I-prov I-prov", [("prov", 0, 2)]),
        ("E-prov E-city", [("prov", 0, 1), ("city", 1, 2)]),
        ("B-prov I-city E-road", [("prov", 0, 3)]),
        ("B-prov O O E-city", [("prov", 0, 4)]),
        ("B-prov O O B-city", [("prov", 0, 1), ("city", 3, 4)]),
        ("O O", []),
    ],
)
def test_broken_sequences_are_joined_as_in_the_pipeline(labels: str, spans: list[tuple[str, int, int]]) -> None:
    """Every position may follow every other one."""
    assert joined(labels) == spans


def test_a_word_without_a_finite_number_is_no_answer_without_parts() -> None:
    """NaN has the first label, "O" in most models: the result must not look like an address without parts."""
    labelled = [LabelledWord("O", 1.0), LabelledWord("O", math.nan)]

    [span] = join_labels(labelled, [(0, 2), (2, 3)])

    assert (span.start, span.end, math.isnan(span.probability)) == (0, 3, True)


def test_the_probability_is_the_mean_of_the_span_s_words() -> None:
    """Words without a label of the span do not count."""
    labelled = [LabelledWord("B-a", 0.5), LabelledWord("O", 0.1), LabelledWord("E-a", 1.0)]

    spans = join_labels(labelled, [(0, 1), (1, 2), (2, 3)])

    assert [span.probability for span in spans] == [0.75]


def words_of(lengths: list[int]) -> Words:
    """Words with so many tokens each."""
    first = [sum(lengths[:number]) for number in range(len(lengths))]
    return Words(tuple(range(sum(lengths))), tuple(first), tuple((place, place + 1) for place in range(len(lengths))))


@pytest.mark.parametrize(
    "lengths", [[1] * 7, [1] * 40, [1] * 400, [3, 1, 9, 2, 1, 1, 14, 30, 1, 1, 2] * 5, [30], [5, 30]]
)
@pytest.mark.parametrize("max_tokens", [1, 4, 16, 126])
def test_every_word_counts_in_one_window(lengths: list[int], max_tokens: int) -> None:
    """The counting words of all windows are all words, in order; a window fits, but for a longer word."""
    words = words_of(lengths)

    windows = cut_windows(words, max_tokens)

    counted = [word for window in windows for word in range(window.counts_from, window.counts_to)]
    assert counted == list(range(len(lengths)))
    for window in windows:
        assert window.first <= window.counts_from <= window.counts_to <= window.stop
        assert sum(lengths[window.first : window.stop]) <= max(max_tokens, lengths[window.first])


def test_windows_overlap_by_a_quarter() -> None:
    """A word near the end of a window counts in the next one, which has words before it."""
    windows = cut_windows(words_of([1] * 40), 16)

    assert [(window.first, window.stop, window.counts_from, window.counts_to) for window in windows] == [
        (0, 16, 0, 14),
        (12, 28, 14, 26),
        (24, 40, 26, 40),
    ]


def test_a_long_address_is_read_to_its_end(plain: MgeoEngine) -> None:
    """An address of 450 characters gets spans up to its end; its first window's are those of its beginning alone."""
    beginning = "浙江省杭州市余杭区五常街道文一西路969号" * 3
    address = (beginning * 8)[:450]
    item = plain.prepare(AddressItem((address, "杭州")))

    rows = plain.compute([RowRange(item, 0, item.rows)])[0]
    long, short = (spans for spans in rows if isinstance(spans, tuple))
    alone = plain.tag(plain.prepare(AddressItem((address[:126],))).addresses)[0]

    assert item.rows == -(-450 // CHARACTERS_A_ROW) + 1
    assert [span for span in alone if span.end < 90] == [span for span in long if span.end < 90]
    assert max(span.end for span in long) > 440
    assert short != long


def test_an_item_split_within_an_address_is_computed_with_its_last_row(plain: MgeoEngine) -> None:
    """Rows before an address's last one have no result, so that a long address is one device call's work."""
    item = plain.prepare(AddressItem(("浙江省" * 30, "杭州")))

    first, rest = plain.compute([RowRange(item, 0, 2), RowRange(item, 2, item.rows)])

    assert [result is None for result in (*first, *rest)] == [True, True, False, False]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("𠀀路A座", ["𠀀", "路", "A", "座"]),
        ("e\u0301路", ["e", "路"]),  # a mark that the tokeniser strips is part of no word, as in the pipeline
        ("\uff19号", ["\uff19", "号"]),
        ("龘road12-3", ["龘", "road12", "-", "3"]),
        ("\u3000 杭\t州 ", ["杭", "州"]),
        ("\u200b杭\ufeff州", ["杭", "州"]),
        ("\u200b\n ", []),
    ],
)
def test_words_have_the_caller_s_code_points(plain: MgeoEngine, text: str, words: list[str]) -> None:
    """Astral, combining, full-width, unknown and hidden characters: each word is what the caller wrote."""
    found = plain.prepare(AddressItem((text,))).addresses[0]

    assert [text[start:end] for start, end in found.extents] == words


def test_a_text_without_words_has_no_spans(plain: MgeoEngine) -> None:
    """It is answered, not failed, beside others."""
    item = plain.prepare(AddressItem(("\u200b", "杭州市")))

    results = plain.compute([RowRange(item, 0, 2)])[0]

    assert results[0] == ()
    assert results[1] != ()


def test_a_spelled_special_token_is_text(plain: MgeoEngine) -> None:
    """The pipeline ends the text at a caller's "[SEP]"; here it is five characters."""
    found = plain.prepare(AddressItem(("杭[SEP]州",))).addresses[0]

    assert plain.config.end_token not in found.ids
    assert found.extents[-1] == (6, 7)
