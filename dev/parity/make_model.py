"""Generate an OFA folder of the real architecture from a seed: all parameters are random, none has its default.

Batch norms, biases, norms, heads' scales and tables of distances all matter then, so an engine that
forgets one disagrees with the oracle. Numbers come from PCG64's raw output, which no version changes,
in a stream of its own for each tensor; nothing here needs modelscope.

    python -m dev.parity.make_model --size tiny --out DIR [--seed 7]
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

from dev.parity.words import merges, vocabulary
from inference.runner.conversion.ofa_config import Architecture, read_architecture
from inference.runner.conversion.ofa_plan import DECODER_EMBEDDING, EMBEDDING, OUTPUT, expected_tensors

ADDED_TOKENS = 8192 + 1000  # <code_…> and <bin_…>, which the loader adds and no file holds
ANSWERS_FILE = Path(__file__).with_name("answer_rows.json")
_TINY: Mapping[str, object] = {
    "d_model": 64,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_ffn_dim": 128,
    "decoder_ffn_dim": 96,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 2,
    "resnet_type": "resnet18",
    "image_bucket_size": 8,
    "token_bucket_size": 32,
    "max_position_embeddings": 256,
    "code_image_size": 64,
    "vocab_size": 1024 + ADDED_TOKENS,
}
_LARGE: Mapping[str, object] = {
    "d_model": 1024,
    "encoder_layers": 12,
    "decoder_layers": 12,
    "encoder_ffn_dim": 4096,
    "decoder_ffn_dim": 4096,
    "encoder_attention_heads": 16,
    "decoder_attention_heads": 16,
    "resnet_type": "resnet152",
    "vocab_size": 50265 + ADDED_TOKENS,
}
_PIPELINES: Mapping[str, Mapping[str, object]] = {
    "tiny": {"patch_image_size": 96, "max_src_length": 40},
    "large": {"patch_image_size": 480, "max_src_length": 80},
}


@dataclass(frozen=True, slots=True)
class Recipe:
    """The parameters of a generated model."""

    size: str = "tiny"  # or "large"
    variant: str = ""  # whose rows of answers it gets; empty for rows that are drawn
    seed: int = 7
    architecture: Mapping[str, object] = field(default_factory=dict)  # more keys of config.json
    pipeline: Mapping[str, object] = field(default_factory=dict)  # more keys of configuration.json: model
    dtype: torch.dtype = torch.float32  # of the stored weights
    as_safetensors: bool = False
    answers: tuple[str, str, str] = ("no", "yes", "maybe")
    is_fresh: bool = False  # as an untrained model is: norms, biases and scales at their defaults


def make_model(folder: Path, recipe: Recipe) -> None:
    """Write a model into an empty folder."""
    config = {**(_TINY if recipe.size == "tiny" else _LARGE), **recipe.architecture}
    tokens = int(str(config["vocab_size"])) - ADDED_TOKENS
    config |= {"model_type": "ofa", "architectures": ["OFAModel"], "dropout": 0.0}
    _write_json(folder / "config.json", config)
    _write_json(folder / "configuration.json", _configuration(recipe))
    _write_json(folder / "ans2label.json", {answer: label for label, answer in enumerate(recipe.answers)})
    _write_json(folder / "vocab.json", vocabulary(tokens))
    lines = "".join(f"{left} {right}\n" for left, right in merges())
    (folder / "merges.txt").write_text("#version: 0.2\n" + lines, encoding="utf-8")
    tensors = draw_tensors(read_architecture(folder), recipe)
    if recipe.as_safetensors:
        # Aliases would be refused; the loader reads each name, so each gets its own copy.
        save_file(
            {name: tensor.clone() for name, tensor in tensors.items()}, folder / "model.safetensors", {"format": "pt"}
        )
    else:
        torch.save(tensors, folder / "pytorch_model.bin")


def draw_tensors(architecture: Architecture, recipe: Recipe) -> dict[str, Tensor]:
    """All parameters except the index tables, which are computed on load."""
    expected = expected_tensors(architecture)
    tensors = {name: _draw(name, shape, recipe).to(recipe.dtype) for name, shape in expected.required.items()}
    if recipe.variant:
        _put_answer_rows(tensors[OUTPUT if OUTPUT in tensors else EMBEDDING], recipe.variant)
    for name in expected.tied:
        tensors[name] = tensors[EMBEDDING]
    tensors.setdefault(DECODER_EMBEDDING, tensors[EMBEDDING])
    return tensors


def _configuration(recipe: Recipe) -> dict[str, object]:
    model: dict[str, object] = {
        "type": "ofa",
        "beam_search": {"beam_size": 3, "max_len_b": 16, "min_len": 1, "no_repeat_ngram_size": 0},
        "seed": 7,
        "language": "en",
        "gen_type": "traverse",
        "prompt_type": "prev_output",
        "imagenet_default_mean_and_std": False,
        "answer2label": "ans2label.json",
        "valid_batch_size": 20,
        **_PIPELINES[recipe.size],
        **recipe.pipeline,
    }
    return {
        "framework": "pytorch",
        "task": "visual-entailment",
        "model": model,
        "pipeline": {"type": "visual-entailment"},
        "preprocessor": {"type": "ofa-tasks-preprocessor"},
    }


def _put_answer_rows(table: Tensor, variant: str) -> None:
    """Replace the rows of the tokens by which answers part by those that `dev.parity.answer_rows` chose.

    With random rows, nearly every question has the same answer.
    """
    words = vocabulary(1024)
    chosen = json.loads(ANSWERS_FILE.read_text(encoding="utf-8"))[variant]
    for token, row in chosen.items():
        table[words[token]] = torch.tensor(row, dtype=table.dtype)


def _draw(name: str, shape: tuple[int, ...], recipe: Recipe) -> Tensor:
    """One parameter, scaled so that activations stay bounded."""
    center, deviation = _size(name, shape)
    if recipe.is_fresh and (len(shape) == 1 or "rel_pos_table" in name):
        return torch.full(shape, 0.0 if name.endswith(("bias", "mean")) or len(shape) > 1 else center)
    key = int.from_bytes(hashlib.sha256(f"{recipe.seed} {name}".encode()).digest()[:16], "little")
    raw = np.random.PCG64(key).random_raw(math.prod(shape))
    uniform = ((raw >> np.uint64(40)).astype(np.float32) / np.float32(1 << 24) - np.float32(0.5)).reshape(shape)
    return torch.from_numpy(uniform * np.float32(12**0.5 * deviation) + np.float32(center))


def _size(name: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """Typical mean and deviation of a tensor with this name in trained models."""
    named = {
        "running_var": (1.0, 0.3),
        "running_mean": (0.0, 0.1),
        "bn3.weight": (0.3, 0.1),  # keeps the untrained stack of residuals tame
        "bias": (0.0, 0.1),
    }
    for ending, size in named.items():
        if name.endswith(ending):
            return size
    if "rel_pos_table" in name:
        return 0.0, 0.4
    if len(shape) == 1:
        return 1.0, 0.2
    gain = 2.0 if len(shape) == 4 else 1.0  # behind a convolution a bend takes half
    return 0.0, (gain / math.prod(shape[1:])) ** 0.5


def _write_json(path: Path, row: object) -> None:
    path.write_text(json.dumps(row, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def main(arguments: Sequence[str]) -> int:
    """Make a model and return the exit code."""
    parser = argparse.ArgumentParser(prog="make_model", description="Make an OFA directory from a seed.")
    parser.add_argument("--size", choices=("tiny", "large"), default="tiny")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    make_model(options.out, Recipe(size=options.size, seed=options.seed))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
