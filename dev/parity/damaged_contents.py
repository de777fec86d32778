"""Damaged folders whose files are others than they should be: downloads, kinds of numbers, vocabularies, duplicates."""

import json
import pickle
import re
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from dev.parity import folders as f
from dev.parity.damage import CONFIG, LABELS, PIPELINE, Damages, edit_row, exchange, move, replace
from dev.parity.damaged import Names
from dev.parity.folders import BIN, Change

_HUB_ERROR = '{"Code":10010205001,"Message":"model not found","RequestId":"6a1","Success":false}'


def _pack(folder: Path) -> None:
    """Put the weights into a zip archive of the same name."""
    raw = (folder / BIN).read_bytes()
    (folder / BIN).unlink()
    with zipfile.ZipFile(folder / BIN, "w") as archive:
        archive.writestr(BIN, raw)


def _cut(folder: Path) -> None:
    raw = (folder / f.FLAT).read_bytes()
    (folder / f.FLAT).unlink()
    (folder / f.FLAT).write_bytes(raw[:-1000])


def _save_with(matrix: str, tensor: object) -> Change:
    """Save another object in place of a tensor."""
    return f.saved(lambda tensors: {**tensors, matrix: tensor})


OTHERS = {
    "ofa": {"task": "token-classification", "model": {"type": "mgeo"}},
    "mgeo": {"task": "visual-entailment", "model": {"type": "ofa", "answer2label": "ans2label.json"}},
}


def _nest(folder: Path) -> None:
    """Two models below, as trainers leave them, and the weights alone missing above."""
    (folder / BIN).unlink()
    for name in ("output", "output_best"):
        (folder / name).mkdir()
        for file in (CONFIG, PIPELINE):
            (folder / name / file).write_bytes((folder / file).read_bytes())


def of_contents(names: Names) -> Damages:
    """Damages that both engines know."""
    float8: Tensor = torch.zeros(4).to(torch.float8_e4m3fn)
    flat = f.both(f.remove(BIN), replace(f.FLAT, struct.pack("<Q", 1 << 60) + bytes(40)))
    return {
        "a hub's error": (replace(BIN, _HUB_ERROR), f"{BIN} is an error message of the hub, not the file itself"),
        "a hub's error as JSON": (replace(PIPELINE, _HUB_ERROR), f"{PIPELINE} is an error message of the hub"),
        "a zip in a file": (_pack, f"{BIN} is a zip archive with '{BIN}' in it: unpack it"),
        "an absurd header": (flat, f"{f.FLAT} is cut off or damaged (has 48 bytes, by its first ones the header"),
        "a garbage header": (
            f.both(f.remove(BIN), replace(f.FLAT, struct.pack("<Q", 9) + b"x" * 99)),
            f"{f.FLAT} is damaged (Error while deserializing header: ",
        ),
        "a download that was not finished": (
            move(BIN, f"{BIN}.incomplete"),
            f"the download of '{BIN}.incomplete' was not finished: download it again",
        ),
        "a folder of a download": (
            f.both(f.remove(BIN), lambda folder: (folder / "._____temp").mkdir()),
            "; ._____temp means that the download was not finished: download it again",
        ),
        "another model's task": (
            replace(PIPELINE, json.dumps(OTHERS[names.model_type])),
            "is it another model's configuration.json? (the revision lacks ",
        ),
        "slashes": (
            f.saved(lambda tensors: {name.replace(".", "/"): tensor for name, tensor in tensors.items()}),
            "and the like; write a dot for each slash",
        ),
        "another model's weights": (
            f.saved(lambda _: {"conv.weight": torch.ones(2, 2)}),
            "holds no tensor of this model: it has 'conv.weight' and the like, expected ",
        ),
        "keys without quotes": (replace(PIPELINE, '{\n framework: "pytorch"\n}'), "JSON has its keys in double quotes"),
        "brackets": (replace(CONFIG, "[" * 100_000), "its brackets are nested too deeply"),
        "a copy's name": (
            move(CONFIG, "config (1).json"),
            "config.json; is it 'config (1).json'? then name it config",
        ),
        "a backup's name": (move(PIPELINE, f"{PIPELINE}.bak"), f"; is it '{PIPELINE}.bak'? then name it {PIPELINE}"),
        "models below": (_nest, "; other models are in the folders 'output', 'output_best': use one of them"),
        "cut safetensors": (f.both(f.flat, _cut), f"{f.FLAT} is cut off (has "),
        "float8": (_save_with(names.matrix, float8), "convert the tensors to bfloat16, and save again"),
        "complex numbers": (
            _save_with(names.matrix, torch.zeros(3, dtype=torch.complex64)),
            "the model has no complex numbers: save real ones",
        ),
        "numpy's arrays": (_save_with(names.matrix, torch.zeros(3).numpy()), "with torch.from_numpy, and save them"),
    }


def of_vocabularies() -> Damages:
    """Vocabularies of a model for pictures that are not its own."""

    def turn(row: dict[str, int]) -> dict[str, int]:
        return {token: len(row) - 1 - number for token, number in row.items()}

    def halve(row: dict[str, int]) -> dict[str, int]:
        return dict(list(row.items())[:8])

    exchanged = exchange("vocab.json", "merges.txt")
    return {
        "exchanged vocabulary": (exchanged, "it is a merges.txt: are the two files exchanged?"),
        "an answer map with a path": (
            f.edit(PIPELINE, lambda text: text.replace("ans2label.json", "./ans2label.json")),
            "./ans2label.json (which configuration.json names and the folder has as 'ans2label.json': write the plain",
        ),
        "a pickled answer map": (
            replace("ans2label.json", pickle.dumps({"yes": 0})),
            "ans2label.json is a pickle, ",
        ),
        "old norms": (
            f.saved(
                lambda tensors: {
                    re.sub(r"(layer_norm|_ln)\.weight$", r"\1.gamma", name): tensor for name, tensor in tensors.items()
                }
            ),
            "tensors of norms end with 'gamma' or 'beta', expected 'weight' or 'bias': rename them",
        ),
        "a vocab.txt": (replace("vocab.json", "[PAD]\n[UNK]\n"), "it is a vocab.txt, with a token a line: is it of"),
        "another order": (edit_row("vocab.json", turn), "are the tokens in another order than in training?"),
        "half a vocabulary": (edit_row("vocab.json", halve), "it lacks the tokens of the answer 'yes': is it cut off?"),
    }


def _swap(file: str) -> Change:
    """Exchange the numbers of the first two entries."""

    def swap(row: dict[str, int]) -> dict[str, int]:
        (one, first), (other, second), *rest = row.items()
        return dict([(one, second), (other, first), *rest])

    return edit_row(file, swap)


def _repeat(file: str, key: str) -> Change:
    """Put a key with another value before the others."""
    return f.edit(file, lambda text: text.replace("{", f'{{"{key}": 999, ', 1))


def noted() -> Mapping[str, tuple[str, Change, str]]:
    """Folders that can be imported, with the engine and a part of a note that says what is probably wrong."""
    sort = f.edit("vocab.txt", lambda text: "".join(sorted(text.splitlines(keepends=True))))
    zero = f.saved(lambda tensors: {name: torch.zeros_like(tensor) for name, tensor in tensors.items()})
    foreign = replace("merges.txt", "#version: 0.2\nzq xj\nqq jj\n")
    return {
        "a key twice": ("ofa", _repeat(CONFIG, "d_model"), "config.json: d_model is there twice, 999 and 64; the last"),
        "a task twice": ("mgeo", _repeat(PIPELINE, "task"), "configuration.json: task is there twice, 999 and "),
        "another model's merges": (
            "ofa",
            foreign,
            "merges.txt: 2 of 2 pairs make words that vocab.json lacks: is",
        ),
        "no pairs": ("ofa", replace("merges.txt", "#version: 0.2\n"), "merges.txt has no pairs"),
        "equal numbers": (
            "ofa",
            replace("ans2label.json", '{"yes": 0, "no": 0, "maybe": 0}'),
            "ans2label.json: two answers have the same number",
        ),
        "a sorted vocabulary": ("mgeo", sort, "are the tokens in another order than in training?"),
        "zeros": ("mgeo", zero, f"{BIN}: all weights are zero"),
        "other numbers": ("mgeo", _swap(LABELS), "the same labels have other numbers in config.json and label_mapping"),
        "no label file": (
            "mgeo",
            f.remove(LABELS),
            "label_mapping.json is missing: the labels are those of config",
        ),
        "a misspelt label file": (
            "mgeo",
            move(LABELS, "label_maping.json"),
            "; is label_maping.json a misspelling of it?",
        ),
    }
