"""Two revisions of a model with random weights, which differ in one word of the configuration."""

import json
import os
import shutil
from pathlib import Path

from dev.bench.large_model import FOLDER, large_source, say
from dev.parity.make_model import Recipe, make_model

SIZES = ("tiny", "middle", "large")
_MIDDLE = Recipe(
    size="large",
    architecture={
        "d_model": 256,
        "encoder_layers": 4,
        "decoder_layers": 4,
        "encoder_ffn_dim": 1024,
        "decoder_ffn_dim": 1024,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "resnet_type": "resnet50",
    },
    pipeline={"patch_image_size": 224},
)


def first_revision(size: str) -> Path:
    """Folder of a model, generated at the first call: 18 MB, 136 MB, or the published size of 1.96 GB."""
    if size == "large":
        return large_source()
    folder = FOLDER / size
    if not (folder / "complete").exists():
        say(f"making a {size} model (once)")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        make_model(folder, _MIDDLE if size == "middle" else Recipe())
        (folder / "complete").touch()
    return folder


def next_revision(first: Path, folder: Path) -> Path:
    """The same weights with another configuration: a declared file differs, so it is another revision."""
    folder.mkdir(parents=True)
    for path in first.iterdir():
        if path.name == "configuration.json":
            row = json.loads(path.read_text(encoding="utf-8"))
            row["model"]["seed"] = 8  # nothing that answers depends on it
            (folder / path.name).write_text(json.dumps(row), encoding="utf-8")
        elif path.name != "complete":
            os.link(path, folder / path.name)
    return folder
