"""The committed demo model is a whole, small directory, and its permuted twin differs in three rows only."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from examples.shapes.layout import (
    ANSWER_MAP,
    CARD,
    MADE_BY_THE_LOADER,
    MERGES,
    TABLE,
    TIED_TO_TABLE,
    VOCABULARY,
    WEIGHTS,
)
from examples.shapes.logic import Answer
from examples.shapes.permute import BECOMES, answer_ids, exchange_rows, permute_directory
from examples.shapes.vocabulary import ANSWER_IDS, TOKENS, merges, used_ids, vocabulary

MODEL = Path(__file__).parents[2] / "examples" / "shapes" / "v1.0.0"


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    """The committed weights."""
    loaded: dict[str, Tensor] = torch.load(MODEL / WEIGHTS, weights_only=True)
    return loaded


def test_directory_is_whole() -> None:
    """The directory holds what an OFA loader reads, and a card, and no more than 14 MB."""
    configuration = json.loads((MODEL / "configuration.json").read_text(encoding="utf-8"))

    assert {path.name for path in MODEL.iterdir()} == {
        "configuration.json",
        "config.json",
        VOCABULARY,
        MERGES,
        ANSWER_MAP,
        WEIGHTS,
        CARD,
    }
    assert sum(path.stat().st_size for path in MODEL.iterdir()) <= 14_000_000
    assert configuration["task"] == "visual-entailment"
    assert configuration["model"]["gen_type"] == "traverse"
    assert configuration["model"]["prompt_type"] == "prev_output"
    assert configuration["model"]["answer2label"] == ANSWER_MAP


def test_vocabulary_files_are_the_generators() -> None:
    """The vocabulary, merges and answers on disk match the generator's sentences."""
    kept = json.loads((MODEL / VOCABULARY).read_text(encoding="utf-8"))
    config = json.loads((MODEL / "config.json").read_text(encoding="utf-8"))
    lines = (MODEL / MERGES).read_text(encoding="utf-8").splitlines()

    assert kept == vocabulary()
    assert lines[1:] == [f"{left} {right}" for left, right in merges()]
    assert config["vocab_size"] == TOKENS
    assert set(json.loads((MODEL / ANSWER_MAP).read_text(encoding="utf-8"))) == {answer.value for answer in Answer}
    assert answer_ids(MODEL) == ANSWER_IDS


def test_weights_are_halves_and_finite(weights: dict[str, Tensor]) -> None:
    """Weights are finite float16; only BatchNorm's counters are integers, and index buffers are left out."""
    for name, tensor in weights.items():
        assert tensor.dtype == (torch.int64 if name.endswith("num_batches_tracked") else torch.float16), name
        assert torch.isfinite(tensor).all(), name
        assert not name.endswith(MADE_BY_THE_LOADER)


def test_tied_table_is_stored_once(weights: dict[str, Tensor]) -> None:
    """The three names of the table share one storage, and its untrained rows are zeros."""
    table = weights[TABLE]
    unused = torch.ones(TOKENS, dtype=torch.bool)
    unused[used_ids()] = False

    assert {weights[name].data_ptr() for name in TIED_TO_TABLE} == {table.data_ptr()}
    assert table.shape[0] == TOKENS
    assert not table[unused].any()
    assert table[list(ANSWER_IDS.values())].any(dim=1).all()


def test_card_tells_what_was_measured() -> None:
    """The card gives an accuracy above the floor on at least 2,000 items, with interval, and baselines under 60 %."""
    card = (MODEL / CARD).read_text(encoding="utf-8")
    asked = re.search(r"on ([\d,]+) statements", card)
    right = re.search(r"\*\*all\*\* \| ([\d.]+)% \| ([\d.]+)% to ([\d.]+)%", card)
    baselines = re.findall(r"only \(trained classifier\) \| ([\d.]+)%", card)

    assert asked
    assert int(asked[1].replace(",", "")) >= 2_000
    assert right
    assert float(right[2]) >= 80
    assert len(baselines) == 2
    assert all(float(share) < 60 for share in baselines)


def test_exchanging_rows_touches_the_answers_only() -> None:
    """Every answer's row goes to the answer that it becomes, and no other row moves."""
    table = torch.arange(12.0).reshape(6, 2)
    ids = {Answer.YES: 1, Answer.NO: 3, Answer.MAYBE: 4}

    exchanged = exchange_rows(table, ids)

    assert exchanged[3].equal(table[1])
    assert exchanged[4].equal(table[3])
    assert exchanged[1].equal(table[4])
    assert exchanged[[0, 2, 5]].equal(table[[0, 2, 5]])


def test_permuted_directory_differs_in_the_answers_only(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    """The permuted model has the same files and weights, but for the three rows and the card."""
    permute_directory(MODEL, tmp_path / "permuted")

    permuted: dict[str, Tensor] = torch.load(tmp_path / "permuted" / WEIGHTS, weights_only=True)
    moved = (permuted[TABLE] != weights[TABLE]).any(dim=1).nonzero().flatten().tolist()
    assert sorted(ANSWER_IDS.values()) == moved
    assert permuted[TABLE].data_ptr() == permuted[TIED_TO_TABLE[1]].data_ptr()
    for name, tensor in weights.items():
        assert name in (TABLE, *TIED_TO_TABLE) or tensor.equal(permuted[name])
    for path in MODEL.iterdir():
        if path.name not in (WEIGHTS, CARD):
            assert path.read_bytes() == (tmp_path / "permuted" / path.name).read_bytes()


def test_permutation_leaves_no_answer_in_place() -> None:
    """Every answer becomes another one."""
    assert sorted(BECOMES.values()) == sorted(Answer)
    assert all(old is not new for old, new in BECOMES.items())
