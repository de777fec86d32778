"""The engine's answers equal those of ModelScope's pipeline, recorded in fixtures/."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from dev.parity.mgeo.make_model import VARIANTS, Recipe, make_model
from dev.parity.mgeo.ours import load_source
from dev.parity.mgeo.record import FOLDER, TOKENS_FILE, read_record
from inference.runner.engines.base import AddressItem, RowRange
from inference.runner.engines.mgeo.engine import MgeoEngine
from inference.runner.engines.mgeo.tokenizer import Words
from inference.wire import AddressSpan

TOLERANCE = 1e-5
ROUGH_TOLERANCE = 5e-2  # of bfloat16
Engines = Callable[[str], MgeoEngine]


def recorded(variant: str) -> list[dict[str, Any]]:
    """The oracle's items of a variant."""
    items: list[dict[str, Any]] = read_record(FOLDER / f"{variant}.json.gz")["items"]
    return items


def words_of(engine: MgeoEngine, texts: Sequence[str]) -> list[Words]:
    """The words of texts."""
    return [words for text in texts for words in engine.prepare(AddressItem((text,))).addresses]


def places_of(spans: Sequence[AddressSpan]) -> list[list[object]]:
    """Spans as they are recorded."""
    return [[span.kind, span.start, span.end] for span in spans]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("together", [1, 32])
def test_spans_and_probabilities_agree(variant: str, together: int, engines: Engines) -> None:
    """Alone and in batches of mixed lengths, spans are the oracle's and each word's probability is within 1e-5."""
    items, engine = recorded(variant), engines(variant)
    for start in range(0, len(items), together):
        some = items[start : start + together]
        words = words_of(engine, [item["text"] for item in some])
        labelled, spans = engine.label(words), engine.tag(words)

        gaps = [
            abs(one.probability - probability)
            for item, row in zip(some, labelled, strict=True)
            for one, probability in zip(row, item["probabilities"], strict=True)
        ]
        assert max(gaps) <= TOLERANCE
        assert [[one.label for one in row] for row in labelled] == [item["labels"] for item in some]
        assert [places_of(row) for row in spans] == [item["spans"] for item in some]


def test_texts_have_the_oracle_s_tokens_and_words(tmp_path: Path) -> None:
    """Of more than 5,000 odd texts, the tokens and the first and last code point of each word are the oracle's."""
    rows = read_record(TOKENS_FILE)["texts"]
    make_model(tmp_path, Recipe())
    engine = load_source(tmp_path)

    wrong = [text for text, ids, places in rows if not has_tokens(engine, text, ids, places)]

    assert len(rows) > 5000
    assert wrong == []


def has_tokens(engine: MgeoEngine, text: str, ids: str, places: str) -> bool:
    """Whether a text has the recorded tokens and words; of one that the pipeline cut, those before the last word."""
    words, limit = words_of(engine, [text])[0], 158
    kept = words.extents
    if len(words.ids) > limit:
        kept = kept[: sum(first < limit for first in words.first) - 1]
    found = " ".join(str(place) for extent in kept for place in extent)
    is_cut = len(kept) < len(words.extents)
    return " ".join(map(str, words.ids[:limit])) == ids and (places.startswith(found) if is_cut else places == found)


def test_the_pipeline_s_probability_is_another_token_s() -> None:
    """The pipeline returns the probability that the token before has for the label; ours is that of the label's own."""
    items = recorded("plain")

    far = sum(
        abs(item["stock"][0] - item["probabilities"][0]) > 0.01
        for item in items
        if item["spans"] and item["labels"][0] != "O"
    )

    assert far > 50


def test_an_item_of_many_addresses_agrees(plain: MgeoEngine) -> None:
    """Addresses of one request get the same spans as alone, also when the request is split into row ranges."""
    items = recorded("plain")[:40]
    whole = plain.prepare(AddressItem(tuple(item["text"] for item in items)))

    first, rest = plain.compute([RowRange(whole, 0, 7), RowRange(whole, 7, whole.rows)])

    found = [places_of(spans) for spans in (*first, *rest) if isinstance(spans, tuple)]
    assert found == [item["spans"] for item in items]


def test_bfloat16_agrees_roughly(sources: Callable[[str], Path]) -> None:
    """In bfloat16 a word's label changes only where two labels are close, and its probability by little."""
    items = recorded("plain")
    engine = load_source(sources("plain"), "bfloat16")

    labelled = engine.label(words_of(engine, [item["text"] for item in items]))

    pairs = [
        (one, label, probability)
        for item, row in zip(items, labelled, strict=True)
        for one, label, probability in zip(row, item["labels"], item["probabilities"], strict=True)
    ]
    gaps = [abs(one.probability - probability) for one, label, probability in pairs if one.label == label]
    flips = sum(one.label != label for one, label, _ in pairs)
    assert max(gaps) <= ROUGH_TOLERANCE
    assert flips <= len(pairs) * 0.02
