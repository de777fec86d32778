"""Write the demo model as an ordinary ModelScope MGeo directory, in half precision."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from examples.addresses.layout import LABELS, MAX_TOKENS, VOCABULARY, WEIGHTS
from examples.addresses.tokens import vocabulary

SETTINGS: dict[str, int] = {
    "hidden_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 384,
    "max_position_embeddings": MAX_TOKENS,
}
_CONFIGURATION: dict[str, Any] = {
    "framework": "pytorch",
    "task": "token-classification",
    "model": {"type": "mgeo", "finetune_mode": "single-modal"},
    "preprocessor": {"type": "token-cls-tokenizer", "padding": "max_length", "max_length": MAX_TOKENS},
    "pipeline": {"type": "token-classification"},
}


def write_directory(config: dict[str, Any], weights: dict[str, Tensor], folder: Path) -> None:
    """Write everything but the model card; what was there under the same names is replaced.

    Args:
        config: of the stock model class.
        weights: its state.
        folder: made if it is not there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / "configuration.json", _CONFIGURATION)
    _write_json(folder / "config.json", config)
    _write_json(folder / "label_mapping.json", {label: number for number, label in enumerate(LABELS)})
    _write_json(
        folder / "tokenizer_config.json",
        {"do_lower_case": True, "tokenizer_class": "BertTokenizer", "use_fast": True, "model_max_length": MAX_TOKENS},
    )
    write_vocabulary(folder)
    half = {
        name: tensor.half().contiguous() if tensor.is_floating_point() else tensor for name, tensor in weights.items()
    }
    torch.save(half, folder / WEIGHTS)


def write_vocabulary(folder: Path) -> Path:
    """Write `vocab.txt`; returns its path."""
    path = folder / VOCABULARY
    path.write_text("\n".join(vocabulary()) + "\n", encoding="utf-8")
    return path


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
