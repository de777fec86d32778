"""The operations of the address model, counted from shapes."""

import pytest

from dev.bench.mgeo_texts import LENGTHS, count_operations, make_texts
from inference.runner.engines.mgeo.config import EngineConfig, WordRules

BASE = EngineConfig(
    width=768,
    layers=12,
    heads=12,
    ffn=3072,
    vocabulary=21128,
    activation="gelu",
    norm_epsilon=1e-12,
    window=128,
    labels=("O",) * 85,
    begin_token=2,
    end_token=3,
    words=WordRules(lowercase=True, strip_accents=True, split_ideographs=True, by_character=False, unknown="[UNK]"),
)


def test_an_address_costs_two_operations_a_weight_and_token() -> None:
    """85 million weights in the layers, 27 tokens; attention adds less than a hundredth."""
    assert count_operations(BASE, 25) == pytest.approx(2 * 85e6 * 27, rel=0.01)


@pytest.mark.parametrize("kind", LENGTHS)
def test_texts_have_the_lengths_of_their_kind(kind: str) -> None:
    """Mixed ones take turns; the same at each call."""
    texts = make_texts(kind, 12)

    assert [len(text) for text in texts[: len(LENGTHS[kind])]] == list(LENGTHS[kind])
    assert texts == make_texts(kind, 12)
