"""Write the demo model as an ordinary ModelScope OFA directory, in half precision."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from examples.shapes.layout import ANSWER_MAP, MADE_BY_THE_LOADER, MERGES, TABLE, TIED_TO_TABLE, VOCABULARY, WEIGHTS
from examples.shapes.model import SETTINGS, OFAConfig, OFAModel
from examples.shapes.tensors import INPUT_PIXELS
from examples.shapes.vocabulary import TOKENS, merges, used_ids, vocabulary

_CONFIGURATION: dict[str, Any] = {
    "framework": "pytorch",
    "task": "visual-entailment",
    "model": {
        "type": "ofa",
        "beam_search": {"beam_size": 5, "max_len_b": 16, "min_len": 1, "no_repeat_ngram_size": 0},
        "seed": 7,
        "max_src_length": 80,
        "language": "en",
        "gen_type": "traverse",
        "prompt_type": "prev_output",
        "patch_image_size": INPUT_PIXELS,
        "max_image_size": INPUT_PIXELS,
        "imagenet_default_mean_and_std": False,
        "answer2label": ANSWER_MAP,
        "valid_batch_size": 20,
    },
    "pipeline": {"type": "visual-entailment"},
    "preprocessor": {"type": "ofa-tasks-preprocessor"},
}


def write_directory(model: OFAModel, folder: Path) -> None:
    """Write everything but the model card; what was there under the same names is replaced."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / "configuration.json", _CONFIGURATION)
    _write_json(folder / "config.json", _config())
    _write_json(folder / ANSWER_MAP, {"no": 0, "yes": 1, "maybe": 2})
    _write_json(folder / VOCABULARY, vocabulary())
    lines = ["#version: 0.2", *(f"{left} {right}" for left, right in merges())]
    (folder / MERGES).write_text("\n".join(lines) + "\n", encoding="utf-8")
    torch.save(_half(model), folder / WEIGHTS)


def _config() -> dict[str, Any]:
    names = [name for name in inspect.signature(OFAConfig.__init__).parameters if name not in ("self", "kwargs")]
    whole = OFAConfig(**SETTINGS).to_dict()
    return {"model_type": "ofa", "architectures": SETTINGS["architectures"]} | {name: whole[name] for name in names}


def _half(model: OFAModel) -> dict[str, Tensor]:
    """The weights in float16, without index buffers, the tied table stored once under its three names."""
    weights = {
        name: tensor.half().contiguous() if tensor.is_floating_point() else tensor
        for name, tensor in model.state_dict().items()
        if not name.endswith(MADE_BY_THE_LOADER)
    }
    used = torch.tensor(used_ids())
    table = torch.zeros(TOKENS, weights[TABLE].shape[1], dtype=torch.float16)
    table[used] = weights[TABLE][used]  # rows that were never trained are zeros: an archive squeezes them out
    for name in (TABLE, *TIED_TO_TABLE):
        weights[name] = table
    return weights


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
