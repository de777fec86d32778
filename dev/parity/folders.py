"""Folders as people publish them: each is a copy of a model with one thing changed.

`dev.parity.compare_folders` asks ModelScope's pipeline and this engine the same questions about each. The names of the
groups say what is varied.
"""

import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dev.parity.make_model import make_model
from dev.parity.variants import VARIANTS
from inference.runner.conversion.ofa_targets import image_distances, text_distances

SHAPES = Path(__file__).resolve().parents[2] / "examples" / "shapes"
TRAINED = ("shapes", "shapes-1.1", "shapes-1.2")  # bases with trained weights
BIN, FLAT, INDEX = "pytorch_model.bin", "model.safetensors", "model.safetensors.index.json"
MATRIX = 2  # dimensions
Tensors = dict[str, Tensor]
Change = Callable[[Path], object]


@dataclass(frozen=True, slots=True)
class Folder:
    """One folder of the comparison."""

    group: str
    name: str
    base: str  # one of VARIANTS or TRAINED
    change: Change

    @property
    def is_trained(self) -> bool:
        """Whether its weights are trained."""
        return self.base in TRAINED


def make_base(base: str, folder: Path) -> None:
    """Write an unchanged base into an empty folder."""
    if base in TRAINED:
        version = {"shapes": "v1.0.0", "shapes-1.1": "v1.1.0", "shapes-1.2": "v1.2.0"}[base]
        shutil.copytree(SHAPES / version, folder, dirs_exist_ok=True)
    else:
        make_model(folder, VARIANTS[base])


def keys(file: str, **changes: object) -> Change:
    """Change keys of a JSON file, of `model` in configuration.json; None takes a key away."""

    def change(folder: Path) -> None:
        path = folder / file
        row: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        target = row["model"] if file == "configuration.json" else row
        for key, value in changes.items():
            target[key] = value
            if value is None:
                del target[key]
        path.write_text(json.dumps(row, ensure_ascii=False), encoding="utf-8")

    return change


def top(**changes: object) -> Change:
    """Change keys at the top level of configuration.json."""

    def change(folder: Path) -> None:
        path = folder / "configuration.json"
        path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **changes}), encoding="utf-8")

    return change


def write(file: str, content: str | bytes) -> Change:
    """Write a file."""

    def change(folder: Path) -> None:
        (folder / file).write_bytes(content.encode() if isinstance(content, str) else content)

    return change


def edit(file: str, function: Callable[[str], str]) -> Change:
    """Change a text file."""

    def change(folder: Path) -> None:
        with (folder / file).open(encoding="utf-8", newline="") as opened:
            text = opened.read()
        with (folder / file).open("w", encoding="utf-8", newline="") as opened:
            opened.write(function(text))

    return change


def remove(*files: str) -> Change:
    """Take files away."""

    def change(folder: Path) -> None:
        for file in files:
            (folder / file).unlink(missing_ok=True)

    return change


def both(*changes: Change) -> Change:
    """Several changes in order."""
    return lambda folder: [change(folder) for change in changes]


def read_weights(folder: Path) -> Tensors:
    """The tensors of a base."""
    if (folder / FLAT).is_file():
        return load_file(folder / FLAT)
    return dict(torch.load(folder / BIN))


def saved(function: Callable[[Tensors], object], *, old: bool = False) -> Change:
    """Replace the weights by what a function makes of them, saved with torch."""

    def change(folder: Path) -> None:
        content = function(read_weights(folder))
        remove(FLAT, BIN)(folder)
        torch.save(content, folder / BIN, _use_new_zipfile_serialization=not old)

    return change


def prefixed(prefix: str) -> Callable[[Tensors], Tensors]:
    """Put a prefix before all names."""
    return lambda tensors: {prefix + name: tensor for name, tensor in tensors.items()}


def with_tables(tensors: Tensors) -> Tensors:
    """Add the index tables that a loaded model has."""
    tables = {"token_rp_bucket": text_distances(32), "image_rp_bucket": image_distances(8)}
    return {**tensors, **{f"{side}.{name}": table for side in ("encoder", "decoder") for name, table in tables.items()}}


def flat(folder: Path, dtype: torch.dtype | None = None, prefix: str = "") -> None:
    """Save the weights as one safetensors file."""
    tensors = {prefix + name: tensor.clone() for name, tensor in read_weights(folder).items()}
    tensors = {name: tensor.to(dtype or tensor.dtype) for name, tensor in tensors.items()}
    remove(BIN)(folder)
    save_file(tensors, folder / FLAT, {"format": "pt"})


def keep_both(folder: Path) -> None:
    """Save the weights as safetensors, and others beside them with torch."""
    tensors = read_weights(folder)
    flat(folder)
    torch.save(moved(tensors), folder / BIN)


def sharded(folder: Path, prefix: str = "", suffix: str = ".safetensors") -> None:
    """Save the weights as two shards with an index."""
    tensors = {prefix + name: tensor.clone() for name, tensor in read_weights(folder).items()}
    remove(BIN, FLAT)(folder)
    names, files = sorted(tensors), (f"model-00001-of-00002{suffix}", f"model-00002-of-00002{suffix}")
    parts = {files[0]: names[: len(names) // 2], files[1]: names[len(names) // 2 :]}
    for file, held in parts.items():
        part = {name: tensors[name] for name in held}
        if suffix == ".bin":
            torch.save(part, folder / file)
        else:
            save_file(part, folder / file, {"format": "pt"})
    index = {"metadata": {"total_size": 1}, "weight_map": {name: file for file, held in parts.items() for name in held}}
    name = INDEX if suffix == ".safetensors" else f"{BIN}.index.json"
    (folder / name).write_text(json.dumps(index), encoding="utf-8")


def cast(dtype: torch.dtype) -> Callable[[Tensors], Tensors]:
    """Convert all floating tensors."""
    return lambda tensors: {
        name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in tensors.items()
    }


def without(pattern: str) -> Callable[[Tensors], Tensors]:
    """Leave out tensors by name."""
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if not re.search(pattern, name)}


def moved(tensors: Tensors) -> Tensors:
    """Other values under the same names, such as an average."""
    return {name: tensor + 0.5 if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}


def add_words(words: Mapping[str, int]) -> Change:
    """Write added_tokens.json; the vocabulary gives up the numbers."""
    return both(free_numbers(set(words.values())), write("added_tokens.json", json.dumps(dict(words))))


def free_numbers(numbers: set[int]) -> Change:
    """Take words away from the vocabulary by their numbers."""

    def change(folder: Path) -> None:
        path = folder / "vocab.json"
        words = json.loads(path.read_text(encoding="utf-8"))
        kept = {word: number for word, number in words.items() if number not in numbers}
        path.write_text(json.dumps(kept, ensure_ascii=False), encoding="utf-8")

    return change


def number(folders: Iterator[Folder]) -> list[Folder]:
    """All folders, with unique names.

    Raises:
        RuntimeError: a name is there twice.
    """
    found = list(folders)
    names = [(one.base, one.name) for one in found]
    if len(set(names)) < len(names):
        raise RuntimeError(f"twice: {sorted(name for name in names if names.count(name) > 1)}")
    return found
