"""Damaged folders as both engines know them, each with a part of the sentence that refuses it.

The kinds are those that people publish: files that are something else, broken JSON, misspelt and contradictory keys,
weights. What only one engine's models have is in `damaged_models`.
"""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from dev.parity import folders as f
from dev.parity.damage import (
    CONFIG,
    PIPELINE,
    Damages,
    each,
    edit_bytes,
    edit_lines,
    edit_row,
    exchange,
    model_keys,
    move,
    put,
    renamed,
    replace,
)
from dev.parity.folders import BIN

_SMALL_BYTES = 1 << 20  # larger files are links to the base


@dataclass(frozen=True, slots=True)
class Names:
    """What one engine calls things."""

    vocabulary: str
    width: str
    misspelt_width: str
    layers: str
    heads: str
    ffn: str
    activation: str
    matrix: str  # a tensor of two dimensions
    model_type: str
    near_task: str  # a misspelling


OFA = Names(
    *("vocab.json", "d_model", "d_modle", "encoder_layers", "encoder_attention_heads", "encoder_ffn_dim"),
    *("activation_function", "encoder.layers.0.fc1.weight", "ofa", "visual_entailment"),
)
MGEO = Names(
    *("vocab.txt", "hidden_size", "hiden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"),
    *("hidden_act", "bert.text_encoder.encoder.layer.0.intermediate.dense.weight", "mgeo", "token_classification"),
)


def copy_base(base: Path, folder: Path) -> None:
    """Copy a model; changes write anew what is large, and so leave the base as it is."""
    for path in base.iterdir():
        if path.stat().st_size > _SMALL_BYTES:
            (folder / path.name).hardlink_to(path)
        else:
            shutil.copyfile(path, folder / path.name)


def _flip(raw: bytes) -> bytes:
    middle = len(raw) // 2
    return raw[:middle] + bytes([raw[middle] ^ 1]) + raw[middle + 1 :]


def _split(folder: Path) -> None:
    """Save two shards without an index."""
    tensors = f.read_weights(folder)
    f.remove(BIN)(folder)
    for number, names in enumerate((sorted(tensors)[::2], sorted(tensors)[1::2]), start=1):
        some = {name: tensors[name].clone() for name in names}
        save_file(some, folder / f"model-0000{number}-of-00002.safetensors")


def shared(names: Names) -> Damages:
    """Damages that both engines know."""
    return {**_files(names), **_json(), **_tasks(names), **_keys(names), **_missing_weights(), **_weights(names)}


def _files(names: Names) -> Damages:
    """Files that are something else."""
    vocabulary = names.vocabulary
    return {
        "a Git LFS pointer": (
            replace(BIN, "version https://git-lfs.github.com/spec/v1\n"),
            f"{BIN} is a Git LFS pointer",
        ),
        "a page": (replace(CONFIG, "<html><title>Sign in</title>"), "config.json is an HTML page ('Sign in')"),
        "an empty vocabulary": (replace(vocabulary, ""), f"{vocabulary} is empty: its upload was not finished"),
        "zeros": (replace(BIN, bytes(4096)), f"{BIN} holds only zeros: its download was not finished"),
        "an archive": (replace(vocabulary, b"\x1f\x8b" + bytes(9)), f"{vocabulary} is a gzip archive: unpack it"),
        "another encoding": (edit_bytes(CONFIG, lambda raw: raw.decode().encode("utf-16")), "config.json is not UTF-8"),
        "no vocabulary": (f.remove(vocabulary), f"the revision lacks {vocabulary}"),
        "a link that leads nowhere": (
            f.both(f.remove(BIN), lambda folder: (folder / BIN).symlink_to("../../blobs/1234abcd")),
            f"{BIN} is a link to ../../blobs/1234abcd, which does not exist: copy the folder with cp -rL",
        ),
        "a link to itself": (
            f.both(f.remove(CONFIG), lambda folder: (folder / CONFIG).symlink_to(CONFIG)),
            "config.json is a link to itself",
        ),
        "a folder for a file": (
            f.both(f.remove(PIPELINE), lambda folder: (folder / PIPELINE).mkdir()),
            "configuration.json is a folder, not a file",
        ),
        "a pipe": (
            f.both(f.remove(vocabulary), lambda folder: os.mkfifo(folder / vocabulary)),
            f"{vocabulary} is no regular file",
        ),
        "no config.json": (f.remove(CONFIG), "the revision lacks config.json"),
    }


def _json() -> Damages:
    """Broken JSON."""
    return {
        "a trailing comma": (
            edit_lines(CONFIG, lambda text: text[:-2] + ",\n}"),
            "remove the comma after the last entry",
        ),
        "single quotes": (f.edit(CONFIG, lambda text: text.replace('"', "'")), "JSON has double quotes"),
        "typographic quotes": (
            f.edit(CONFIG, lambda text: text.replace('"', "\u201c")),
            "these are typographic quotes",
        ),
        "Python's words": (
            edit_lines(CONFIG, lambda text: text[:-2] + ',\n"x": None\n}'),
            "JSON writes true, false and",
        ),
        "a comment": (edit_lines(PIPELINE, lambda text: "{\n// ours\n" + text[1:]), "JSON has no comments: remove it"),
        "a comma too few": (edit_lines(CONFIG, lambda text: text.replace(",\n", "\n", 1)), "put a comma before it"),
        "two objects": (f.edit(CONFIG, lambda text: text + text), "remove what follows the first object"),
        "a list": (f.edit(CONFIG, lambda text: f"[{text}]"), "config.json is not a JSON object: it holds a list"),
        "cut JSON": (edit_bytes(PIPELINE, lambda raw: raw[:-9]), "or the file is cut off"),
        "YAML": (replace(PIPELINE, "framework: pytorch\n"), "it looks like YAML: write it as JSON"),
    }


def _tasks(names: Names) -> Damages:
    """What configuration.json says that the folder is."""
    exchanged = exchange(CONFIG, PIPELINE)
    return {
        "exchanged files": (exchanged, "configuration.json lacks task and model.type"),
        "no task": (edit_row(PIPELINE, renamed("task", "tasks")), "configuration.json lacks task; supported: visual-"),
        "a misspelt task": (f.top(task=names.near_task), "has no engine: did you mean "),
        "capitals": (
            model_keys(type=names.model_type.upper()),
            f"did you mean {names.near_task.replace('_', '-')} with",
        ),
        "another framework": (f.top(framework="tensorflow"), 'framework is "tensorflow", supported: "pytorch"'),
    }


def _keys(names: Names) -> Damages:
    """Keys of config.json."""
    width, layers = names.width, names.layers
    other = {"model_type": "ofa" if names is OFA else "bert", width: 768, layers: 12, names.ffn: 3072}
    saved = f"but {BIN} was saved with"
    is_misspelt = f"{width} is missing and counts as {512 if names is OFA else 768} (is {names.misspelt_width} a missp"
    return {
        "a misspelt width": (edit_row(CONFIG, renamed(width, names.misspelt_width)), is_misspelt),
        "another width": (f.keys(CONFIG, **{width: 128}), f"config.json: {width} is 128, {saved} 64: tensor "),
        "a width as text": (f.keys(CONFIG, **{width: "64"}), f'{width} is "64", supported: an integer from 8 to 8192'),
        "a width with a point": (f.keys(CONFIG, **{width: 64.0}), f"{width} is 64.0, supported: an integer"),
        "null": (
            edit_row(CONFIG, lambda row: {**row, layers: None}),
            f"{layers} is null, supported: an integer from 1",
        ),
        "no heads": (f.keys(CONFIG, **{names.heads: 7}), f"{names.heads} is 7, supported: a divisor of {width} = 64"),
        "another ffn": (f.keys(CONFIG, **{names.ffn: 2048}), f"config.json: {names.ffn} is 2048, {saved} "),
        "more words": (f.keys(CONFIG, vocab_size=30522), f"config.json: vocab_size is 30522, {saved} "),
        "more positions": (f.keys(CONFIG, max_position_embeddings=600), f"max_position_embeddings is 600, {saved} "),
        "an activation": (f.keys(CONFIG, **{names.activation: "swish"}), f'{names.activation} is "swish", supported: '),
        "another model's sizes": (replace(CONFIG, json.dumps(other)), "is it the configuration of another model?"),
    }


def _missing_weights() -> Damages:
    """Weights under another name."""
    lacks = "the revision lacks its weights (pytorch_model.bin, or model.safetensors"
    shards = "the shards, such as 'model-00001-of-00002.safetensors', need their index model.safetensors.index.json"
    return {
        "no weights": (f.remove(BIN), f"{lacks})"),
        "another name": (move(BIN, "best.ckpt"), f"{lacks}: is it 'best.ckpt'? then name it pytorch_model.bin)"),
        "another program's": (move(BIN, "model.onnx"), "'model.onnx' is for another program"),
        "shards without an index": (_split, shards),
        "safetensors as .bin": (f.both(f.flat, move(f.FLAT, BIN)), "it is a safetensors file, so name it model.saf"),
        "torch as .safetensors": (move(BIN, f.FLAT), "torch.save wrote it, so name it pytorch_model.bin"),
    }


def _weights(names: Names) -> Damages:
    """Contents of the weight file."""
    matrix, plain = names.matrix, names.matrix.removeprefix("bert.")
    bad = f"{BIN}: tensor {plain} holds NaN or infinity"
    bfloat16 = f.both(put(matrix, float("nan")), each(lambda tensor: tensor.bfloat16()))
    return {
        "NaN": (put(matrix, float("nan")), bad),
        "infinity": (put(matrix, float("inf")), bad),
        "infinity as float16": (
            f.both(each(lambda tensor: tensor.half()), put(matrix, float("inf"))),
            f"tensor {plain} holds an infinite value (float16 overflows above 65504): save it again as float32",
        ),
        "NaN as float16": (f.both(each(lambda tensor: tensor.half()), put(matrix, float("nan"))), bad),
        "NaN as bfloat16": (bfloat16, bad),
        "beyond float32": (f.both(each(lambda tensor: tensor.double()), put(matrix, 1e300)), bad),
        "a flipped bit": (edit_bytes(BIN, _flip), f"{BIN} is damaged: the content of record"),
        "cut weights": (edit_bytes(BIN, lambda raw: raw[: len(raw) // 2]), f"{BIN} is cut off or damaged"),
        "integers": (each(lambda tensor: tensor.to(torch.int8)), "is int8, supported: float32"),
        "turned": (
            f.saved(lambda all_: {**all_, matrix: all_[matrix].t().contiguous()}),
            f"config.json: {names.ffn} is",
        ),
        "a tensor too few": (f.saved(f.without(matrix.replace(".", r"\."))), f"{BIN} lacks tensor {plain}: it has"),
        "a layer too few": (f.saved(f.without(r"encoder\.layers?\.0\.")), f"{BIN} lacks "),
        "a list of tensors": (f.saved(lambda all_: [all_]), f"{BIN} holds a list, supported: named tensors"),
        "an optimizer": (
            f.saved(lambda _: {"state": {"step": torch.ones(1)}}),
            "holds no tensor of this model: it has 's",
        ),
        "a module": (
            f.saved(lambda _: torch.nn.Linear(1, 1)),
            "save the weights alone, with torch.save(model.state_di",
        ),
        "two models": (f.saved(lambda all_: {"a": all_, "b": f.moved(all_)}), "under the keys 'a', 'b'; publish one"),
        "an adapter": (f.saved(lambda _: {"a.lora_A.weight": torch.ones(1)}), "merge the LoRA adapter into its model"),
    }
