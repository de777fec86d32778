"""Generate an MGeo folder of the real architecture from a seed: all parameters are random, none has its default.

Numbers come from PCG64's raw output, which no version changes, in a stream of its own for each tensor; nothing here
needs modelscope.

    python -m dev.parity.mgeo.make_model --size tiny --out DIR [--seed 7]
"""

import argparse
import hashlib
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from dev.parity.mgeo.texts import vocabulary
from inference.runner.conversion.mgeo_config import read_architecture
from inference.runner.conversion.mgeo_plan import MODEL_PREFIX, expected_tensors

KINDS = (
    *("prov", "city", "district", "devzone", "town", "community", "village_group", "road", "roadno", "poi", "subpoi"),
    *("houseno", "cellno", "floorno", "roomno", "detail", "assist", "distance", "intersection", "redundant", "others"),
)
LABELS = ("O", *(f"{position}-{kind}" for kind in KINDS for position in "BIES"))
_TINY: Mapping[str, object] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "max_position_embeddings": 160,
}
_BASE: Mapping[str, object] = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "max_position_embeddings": 512,
}
_O_BIAS = 2.0  # so that words without a kind are frequent, as in addresses
_BASE_TOKENS = 21128  # of the Chinese BERT


@dataclass(frozen=True, slots=True)
class Recipe:
    """The parameters of a generated model."""

    size: str = "tiny"  # or "base"
    seed: int = 7
    architecture: Mapping[str, object] = field(default_factory=dict)  # more keys of config.json
    preprocessor: Mapping[str, object] = field(default_factory=dict)  # more keys of configuration.json: preprocessor
    tokenizer: Mapping[str, object] = field(default_factory=dict)  # more keys of tokenizer_config.json
    labels: tuple[str, ...] = LABELS
    dtype: torch.dtype = torch.float32  # of the stored weights
    as_safetensors: bool = False
    has_prefix: bool = True  # of the names of the encoder's tensors
    has_old_norms: bool = False  # gamma and beta


VARIANTS: Mapping[str, Recipe] = {
    "plain": Recipe(),
    "characters": Recipe(seed=8, preprocessor={"is_split_into_words": True}),
    "cased": Recipe(
        seed=9,
        architecture={"hidden_act": "relu", "fusion_layer": 1, "type_vocab_size": 3, "layer_norm_eps": 1e-5},
        tokenizer={"do_lower_case": False, "strip_accents": True},
        preprocessor={"max_length": 64},
        labels=LABELS[:41][::-1],
        as_safetensors=True,
    ),
    "old": Recipe(seed=10, tokenizer={"strip_accents": False}, has_old_norms=True),
}


def make_model(folder: Path, recipe: Recipe) -> None:
    """Write a model into an empty folder."""
    tokens = vocabulary()
    if recipe.size == "base":
        tokens = [*tokens, *(f"[unused{number}]" for number in range(_BASE_TOKENS - len(tokens)))]
    sizes = _TINY if recipe.size == "tiny" else _BASE
    config: dict[str, object] = {
        "model_type": "bert",
        "vocab_size": len(tokens),
        "gis_embedding": 0,
        "encoder_width": 768,
        "fusion_layer": sizes["num_hidden_layers"],
        "add_cross_attention": False,
        "layer_norm_eps": 1e-12,
        "label2id": {label: number for number, label in enumerate(recipe.labels)},
        "id2label": {str(number): label for number, label in enumerate(recipe.labels)},
        **sizes,
        **recipe.architecture,
    }
    _write_json(folder / "config.json", config)
    _write_json(folder / "label_mapping.json", {label: number for number, label in enumerate(recipe.labels)})
    tokenizer = {"do_lower_case": True, "tokenizer_class": "BertTokenizer", "use_fast": True, **recipe.tokenizer}
    _write_json(folder / "tokenizer_config.json", tokenizer)
    preprocessor = {"type": "token-cls-tokenizer", "padding": "max_length", "max_length": 128, **recipe.preprocessor}
    _write_json(
        folder / "configuration.json",
        {
            "framework": "pytorch",
            "task": "token-classification",
            "model": {"type": "mgeo", "finetune_mode": "single-modal"},
            "preprocessor": preprocessor,
            "pipeline": {"type": "token-classification"},
        },
    )
    (folder / "vocab.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")
    _write_weights(folder, recipe)


def _write_weights(folder: Path, recipe: Recipe) -> None:
    architecture = read_architecture(folder)
    shapes = expected_tensors(architecture, len(recipe.labels))
    tensors = {_stored_name(name, recipe): _draw(name, shape, recipe) for name, shape in shapes.items()}
    tensors["classifier.bias"][recipe.labels.index("O")] += _O_BIAS
    if recipe.as_safetensors:
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    else:
        torch.save(tensors, folder / "pytorch_model.bin")


def _stored_name(name: str, recipe: Recipe) -> str:
    if recipe.has_old_norms:
        name = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
    return MODEL_PREFIX + name if recipe.has_prefix and not name.startswith("classifier") else name


def _draw(name: str, shape: tuple[int, ...], recipe: Recipe) -> Tensor:
    """One parameter, scaled so that activations stay bounded."""
    center, deviation = 0.0, 0.1
    if len(shape) == 1:
        center, deviation = (1.0, 0.2) if name.endswith("LayerNorm.weight") else (0.0, 0.1)
    elif "embeddings" in name:
        deviation = 0.5
    else:
        deviation = math.prod(shape[1:]) ** -0.5 * (4.0 if name.startswith("classifier") else 1.0)
    key = int.from_bytes(hashlib.sha256(f"{recipe.seed} {name}".encode()).digest()[:16], "little")
    raw = np.random.PCG64(key).random_raw(math.prod(shape))
    uniform = ((raw >> np.uint64(40)).astype(np.float32) / np.float32(1 << 24) - np.float32(0.5)).reshape(shape)
    return torch.from_numpy(uniform * np.float32(12**0.5 * deviation) + np.float32(center)).to(recipe.dtype)


def _write_json(path: Path, row: object) -> None:
    path.write_text(json.dumps(row, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def main(arguments: Sequence[str]) -> int:
    """Make a model and return the exit code."""
    parser = argparse.ArgumentParser(prog="make_model", description="Make an MGeo directory from a seed.")
    parser.add_argument("--size", choices=("tiny", "base"), default="tiny")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    make_model(options.out, Recipe(size=options.size, seed=options.seed))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
