"""What damages a copied model: changes of its files, of keys in them, and of its tensors."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from dev.parity import folders as f
from dev.parity.folders import Change, Tensors

CONFIG, PIPELINE, LABELS, ANSWERS = "config.json", "configuration.json", "label_mapping.json", "ans2label.json"
Damages = Mapping[str, tuple[Change, str]]


def replace(file: str, content: str | bytes) -> Change:
    """Write a file anew; one that is a link to its base leaves that as it is."""

    def change(folder: Path) -> None:
        (folder / file).unlink(missing_ok=True)
        (folder / file).write_bytes(content.encode() if isinstance(content, str) else content)

    return change


def edit_bytes(file: str, function: Callable[[bytes], bytes]) -> Change:
    """Replace a file's bytes."""
    return lambda folder: replace(file, function((folder / file).read_bytes()))(folder)


def edit_row(file: str, function: Callable[[dict[str, Any]], object]) -> Change:
    """Replace the content of a JSON file."""
    return f.edit(file, lambda text: json.dumps(function(json.loads(text)), ensure_ascii=False))


def values_as_text(file: str) -> Change:
    """Write the values of a JSON file in quotation marks."""
    return edit_row(file, lambda row: {key: str(value) for key, value in row.items()})


def keys_for_values(file: str) -> Change:
    """Exchange the keys and values of a JSON file."""
    return edit_row(file, lambda row: {str(value): key for key, value in row.items()})


def edit_lines(file: str, function: Callable[[str], str]) -> Change:
    """Change the text of a JSON file that has an entry a line."""
    return f.edit(file, lambda text: function(json.dumps(json.loads(text), indent=2)))


def renamed(old: str, new: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Another name for a key; for `edit_row`."""
    return lambda row: {new if key == old else key: value for key, value in row.items()}


def model_keys(**keys: object) -> Change:
    """Change keys of `model` in configuration.json, null included."""
    return edit_row(PIPELINE, lambda row: {**row, "model": {**row["model"], **keys}})


def move(old: str, new: str) -> Change:
    """Give a file another name."""
    return lambda folder: (folder / old).rename(folder / new)


def exchange(one: str, other: str) -> Change:
    """Exchange two files."""
    return f.both(move(one, "x"), move(other, one), move("x", other))


def put(name: str, value: float) -> Change:
    """Put a number into a tensor."""

    def put(tensors: Tensors) -> Tensors:
        tensors[name] = tensors[name].clone()
        tensors[name].view(-1)[3] = value
        return tensors

    return f.saved(put)


def each(function: Callable[[Tensor], Tensor]) -> Change:
    """Change every tensor."""
    return f.saved(lambda tensors: {name: function(tensor) for name, tensor in tensors.items()})


def rename_tensors(old: str, new: str) -> Change:
    """Names of tensors that begin with `old` begin with `new`."""
    return f.saved(
        lambda tensors: {
            new + name.removeprefix(old) if name.startswith(old) else name: tensor for name, tensor in tensors.items()
        }
    )
