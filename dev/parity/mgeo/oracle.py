"""The stock pipeline of a published MGeo, and what its model computes for each word.

Runs in the parity environment only.
"""

import importlib.metadata
import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from examples.shapes import stock_imports  # noqa: F401 - makes modelscope importable

# isort: split
from modelscope.pipelines import pipeline
from modelscope.utils.constant import Tasks

VERSIONED = ("modelscope", "torch", "transformers", "tokenizers", "numpy")


def versions() -> dict[str, str]:
    """Versions of the oracle's packages."""
    return {name: importlib.metadata.version(name) for name in VERSIONED}


@dataclass(frozen=True, slots=True)
class StockAnswer:
    """What the pipeline says about a text."""

    spans: list[tuple[str, int, int]]  # kind, first code point, the one after the last
    stock_probabilities: list[float]  # that the pipeline returns, from the wrong row
    probabilities: list[float]  # of the label of each word, from the right row
    labels: list[str]  # of each word
    ids: list[int]  # without begin, end and padding
    extents: list[tuple[int, int]]  # of each word


class MgeoOracle:
    """The stock pipeline of one folder."""

    def __init__(self, folder: Path) -> None:
        """Load the folder."""
        warnings.filterwarnings("ignore")
        logging.disable(logging.WARNING)
        self.pipeline: Any = pipeline(Tasks.token_classification, model=str(folder.resolve()), device="cpu")

    def weights(self) -> dict[str, torch.Tensor]:
        """The loaded parameters."""
        found: dict[str, torch.Tensor] = self.pipeline.model.state_dict()
        return found

    def tokenize(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids without begin, end and padding, and the extent of each word."""
        encoded = self.pipeline.preprocessor(text)
        kept = encoded["attention_mask"][0].bool()
        count = int(encoded["label_mask"][0].sum())
        extents = [(int(start), int(end)) for start, end in encoded["offset_mapping"][0][:count]]
        return encoded["input_ids"][0][kept].tolist()[1:-1], extents

    def ask(self, text: str) -> StockAnswer:
        """Tag one text."""
        said = self.pipeline(text)["output"]
        encoded = self.pipeline.preprocessor(text)
        encoded.pop("text")
        mask = encoded["label_mask"][0].bool()
        with torch.no_grad():
            logits = self.pipeline.model(**encoded)["logits"][0]
        probabilities, labels = logits[mask].softmax(-1).max(-1)
        ids, extents = self.tokenize(text)
        return StockAnswer(
            [(str(row["type"]), int(row["start"]), int(row["end"])) for row in said],
            [float(row["prob"]) for row in said],
            probabilities.tolist(),
            [self.pipeline.id2label[int(label)] for label in labels],
            ids,
            extents,
        )

    def ask_batch(self, texts: Sequence[str], size: int) -> list[list[tuple[str, int, int]]]:
        """Tag texts in batches; the spans of each."""
        return [
            [(str(row["type"]), int(row["start"]), int(row["end"])) for row in answer["output"]]
            for answer in self.pipeline(list(texts), batch_size=size)
        ]
