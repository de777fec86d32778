"""Damaged folders of both engines, each with a part of the sentence that refuses it.

The kinds are those that people publish: files that are something else, broken JSON, misspelt and contradictory keys,
labels and answers, vocabularies, weights.
"""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from dev.parity import folders as f
from dev.parity.folders import BIN, Change, Tensors

CONFIG, PIPELINE, LABELS, ANSWERS = "config.json", "configuration.json", "label_mapping.json", "ans2label.json"
Damages = Mapping[str, tuple[Change, str]]
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


def _write(file: str, content: str | bytes) -> Change:
    def change(folder: Path) -> None:
        (folder / file).unlink(missing_ok=True)
        (folder / file).write_bytes(content.encode() if isinstance(content, str) else content)

    return change


def _raw(file: str, function: Callable[[bytes], bytes]) -> Change:
    """Replace a file's bytes."""
    return lambda folder: _write(file, function((folder / file).read_bytes()))(folder)


def _row(file: str, function: Callable[[dict[str, Any]], object]) -> Change:
    """Replace the content of a JSON file."""
    return f.edit(file, lambda text: json.dumps(function(json.loads(text)), ensure_ascii=False))


def _lines(file: str, function: Callable[[str], str]) -> Change:
    """Change the text of a JSON file that has an entry a line."""
    return f.edit(file, lambda text: function(json.dumps(json.loads(text), indent=2)))


def _renamed(old: str, new: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda row: {new if key == old else key: value for key, value in row.items()}


def _model(**keys: object) -> Change:
    """Change keys of `model` in configuration.json, null included."""
    return _row(PIPELINE, lambda row: {**row, "model": {**row["model"], **keys}})


def _move(old: str, new: str) -> Change:
    return lambda folder: (folder / old).rename(folder / new)


def _put(name: str, value: float) -> Change:
    """Put a number into a tensor."""

    def put(tensors: Tensors) -> Tensors:
        tensors[name] = tensors[name].clone()
        tensors[name].view(-1)[3] = value
        return tensors

    return f.saved(put)


def _each(function: Callable[[Tensor], Tensor]) -> Change:
    return f.saved(lambda tensors: {name: function(tensor) for name, tensor in tensors.items()})


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
            _write(BIN, "version https://git-lfs.github.com/spec/v1\n"),
            f"{BIN} is a Git LFS pointer",
        ),
        "a page": (_write(CONFIG, "<html><title>Sign in</title>"), "config.json is an HTML page ('Sign in')"),
        "an empty vocabulary": (_write(vocabulary, ""), f"{vocabulary} is empty: its upload was not finished"),
        "zeros": (_write(BIN, bytes(4096)), f"{BIN} holds only zeros: its download was not finished"),
        "an archive": (_write(vocabulary, b"\x1f\x8b" + bytes(9)), f"{vocabulary} is a gzip archive: unpack it"),
        "another encoding": (_raw(CONFIG, lambda raw: raw.decode().encode("utf-16")), "config.json is not UTF-8"),
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
        "a trailing comma": (_lines(CONFIG, lambda text: text[:-2] + ",\n}"), "remove the comma after the last entry"),
        "single quotes": (f.edit(CONFIG, lambda text: text.replace('"', "'")), "JSON has double quotes"),
        "typographic quotes": (
            f.edit(CONFIG, lambda text: text.replace('"', "\u201c")),
            "these are typographic quotes",
        ),
        "Python's words": (_lines(CONFIG, lambda text: text[:-2] + ',\n"x": None\n}'), "JSON writes true, false and"),
        "a comment": (_lines(PIPELINE, lambda text: "{\n// ours\n" + text[1:]), "JSON has no comments: remove it"),
        "a comma too few": (_lines(CONFIG, lambda text: text.replace(",\n", "\n", 1)), "put a comma before it"),
        "two objects": (f.edit(CONFIG, lambda text: text + text), "remove what follows the first object"),
        "a list": (f.edit(CONFIG, lambda text: f"[{text}]"), "config.json is not a JSON object: it holds a list"),
        "cut JSON": (_raw(PIPELINE, lambda raw: raw[:-9]), "or the file is cut off"),
        "YAML": (_write(PIPELINE, "framework: pytorch\n"), "it looks like YAML: write it as JSON"),
    }


def _tasks(names: Names) -> Damages:
    """What configuration.json says that the folder is."""
    exchanged = f.both(_move(CONFIG, "x"), _move(PIPELINE, CONFIG), _move("x", PIPELINE))
    return {
        "exchanged files": (exchanged, "configuration.json lacks task and model.type"),
        "no task": (_row(PIPELINE, _renamed("task", "tasks")), "configuration.json lacks task; supported: visual-"),
        "a misspelt task": (f.top(task=names.near_task), "has no engine: did you mean "),
        "capitals": (_model(type=names.model_type.upper()), f"did you mean {names.near_task.replace('_', '-')} with"),
        "another framework": (f.top(framework="tensorflow"), 'framework is "tensorflow", supported: "pytorch"'),
    }


def _keys(names: Names) -> Damages:
    """Keys of config.json."""
    width, layers = names.width, names.layers
    other = {"model_type": "ofa" if names is OFA else "bert", width: 768, layers: 12, names.ffn: 3072}
    saved = f"but {BIN} was saved with"
    is_misspelt = f"{width} is missing and counts as {512 if names is OFA else 768} (is {names.misspelt_width} a missp"
    return {
        "a misspelt width": (_row(CONFIG, _renamed(width, names.misspelt_width)), is_misspelt),
        "another width": (f.keys(CONFIG, **{width: 128}), f"config.json: {width} is 128, {saved} 64: tensor "),
        "a width as text": (f.keys(CONFIG, **{width: "64"}), f'{width} is "64", supported: an integer from 8 to 8192'),
        "a width with a point": (f.keys(CONFIG, **{width: 64.0}), f"{width} is 64.0, supported: an integer"),
        "null": (_row(CONFIG, lambda row: {**row, layers: None}), f"{layers} is null, supported: an integer from 1"),
        "no heads": (f.keys(CONFIG, **{names.heads: 7}), f"{names.heads} is 7, supported: a divisor of {width} = 64"),
        "another ffn": (f.keys(CONFIG, **{names.ffn: 2048}), f"config.json: {names.ffn} is 2048, {saved} "),
        "more words": (f.keys(CONFIG, vocab_size=30522), f"config.json: vocab_size is 30522, {saved} "),
        "more positions": (f.keys(CONFIG, max_position_embeddings=600), f"max_position_embeddings is 600, {saved} "),
        "an activation": (f.keys(CONFIG, **{names.activation: "swish"}), f'{names.activation} is "swish", supported: '),
        "another model's sizes": (_write(CONFIG, json.dumps(other)), "is it the configuration of another model?"),
    }


def _missing_weights() -> Damages:
    """Weights under another name."""
    lacks = "the revision lacks its weights (pytorch_model.bin, or model.safetensors"
    shards = "the shards, such as 'model-00001-of-00002.safetensors', need their index model.safetensors.index.json"
    return {
        "no weights": (f.remove(BIN), f"{lacks})"),
        "another name": (_move(BIN, "best.ckpt"), f"{lacks}: is it 'best.ckpt'? then name it pytorch_model.bin)"),
        "another program's": (_move(BIN, "model.onnx"), "'model.onnx' is for another program"),
        "shards without an index": (_split, shards),
        "safetensors as .bin": (f.both(f.flat, _move(f.FLAT, BIN)), "it is a safetensors file, so name it model.saf"),
        "torch as .safetensors": (_move(BIN, f.FLAT), "torch.save wrote it, so name it pytorch_model.bin"),
    }


def _weights(names: Names) -> Damages:
    """Contents of the weight file."""
    matrix, plain = names.matrix, names.matrix.removeprefix("bert.")
    bad = f"{BIN}: tensor {plain} holds NaN or infinity"
    bfloat16 = f.both(_put(matrix, float("nan")), _each(lambda tensor: tensor.bfloat16()))
    return {
        "NaN": (_put(matrix, float("nan")), bad),
        "infinity": (_put(matrix, float("inf")), bad),
        "infinity as float16": (
            f.both(_each(lambda tensor: tensor.half()), _put(matrix, float("inf"))),
            f"tensor {plain} holds an infinite value (float16 overflows above 65504): save it again as float32",
        ),
        "NaN as float16": (f.both(_each(lambda tensor: tensor.half()), _put(matrix, float("nan"))), bad),
        "NaN as bfloat16": (bfloat16, bad),
        "beyond float32": (f.both(_each(lambda tensor: tensor.double()), _put(matrix, 1e300)), bad),
        "a flipped bit": (_raw(BIN, _flip), f"{BIN} is damaged: the content of record"),
        "cut weights": (_raw(BIN, lambda raw: raw[: len(raw) // 2]), f"{BIN} is cut off or damaged"),
        "integers": (_each(lambda tensor: tensor.to(torch.int8)), "is int8, supported: float32"),
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


def _rename(old: str, new: str) -> Change:
    """Names of tensors that begin with `old` begin with `new`."""
    return f.saved(
        lambda tensors: {
            new + name.removeprefix(old) if name.startswith(old) else name: tensor for name, tensor in tensors.items()
        }
    )


def of_ofa() -> Damages:
    """Damages that only a model for pictures can have."""
    return {**_weights_of_ofa(), **_tables_of_ofa()}


def _weights_of_ofa() -> Damages:
    running = "encoder.embed_images.layer1.0.bn2.running_var"
    return {
        "more layers": (
            f.keys(CONFIG, decoder_layers=6),
            f"decoder_layers is 6, but {BIN} was saved with 2: it has no",
        ),
        "a prefix on one part": (
            _rename("decoder.", "module.decoder."),
            f"{BIN}: only the names of decoder.… (92) begin with 'module.': save all with one prefix",
        ),
        "a layer's other name": (
            _rename("encoder.layers.0.", "encoder.layer.0."),
            "encoder.layer.0.… (21 tensors) have the names and shapes of encoder.layers.0.…: rename them",
        ),
        "one other name": (
            _rename("encoder.layers.0.fc1.", "encoder.layers.0.fc_1."),
            "encoder.layers.0.fc_1.… (2 tensors) have the names and shapes of encoder.layers.0.fc1.…: rename them",
        ),
        "another ResNet": (
            f.keys(CONFIG, resnet_type="resnet152"),
            "was saved with resnet18: it has no tensor encoder.e",
        ),
        "a larger grid": (f.keys(CONFIG, image_bucket_size=42), f"image_bucket_size is 42, but {BIN} was saved with 8"),
        "a variance": (_put(running, -2.0), f"tensor {running} holds a negative variance"),
        "a larger picture": (_model(patch_image_size=480), "is 480, supported: at most 16 × image_bucket_size = 128"),
    }


def _tables_of_ofa() -> Damages:
    """Of answers and vocabulary."""
    vocabulary = "vocab.json"
    return {
        "no answer map": (f.remove(ANSWERS), "the revision lacks ans2label.json (which configuration.json names)"),
        "two answers": (
            _write(ANSWERS, '{"yes": 0, "no": 1}'),
            "ans2label.json: the answers are no, yes, supported: one",
        ),
        "no answers": (_write(ANSWERS, "{}"), "ans2label.json: the answers are none, supported: one answer for each"),
        "misspelt answers": (
            _row(PIPELINE, lambda row: {**row, "model": _renamed("answer2label", "answer2lable")(row["model"])}),
            "model.answer2label is missing, supported: the name of a file of the revision (is answer2lable a misspelli",
        ),
        "an id twice": (
            _row(vocabulary, lambda row: {**row, "zz": 5}),
            "vocab.json: the vocabulary has a duplicate id: ",
        ),
        "ids as text": (
            _row(vocabulary, lambda row: {key: str(one) for key, one in row.items()}),
            ' is "0", supported: ',
        ),
        "ids for tokens": (_row(vocabulary, lambda row: {str(one): key for key, one in row.items()}), "ids exchanged?"),
        "no padding": (_row(vocabulary, _renamed("<pad>", "<p>")), "vocab.json lacks '<pad>': the vocabulary has"),
        "fewer rows": (f.keys(CONFIG, vocab_size=500), "uses ids up to 1023, config.json: vocab_size is 500"),
        "merges of JSON": (
            _write("merges.txt", "{\n{'a b c'}\n"),
            "merges.txt: line 2 is \"{'a b c'}\", supported: two",
        ),
        "a word too far": (_write("added_tokens.json", '{"zz": 99999}'), "the added word 'zz' has number 99999"),
    }


def of_mgeo() -> Damages:
    """Damages that only a model for addresses can have."""
    return {**_weights_of_mgeo(), **_labels_of_mgeo(), **_vocabulary_of_mgeo()}


def _labels_of_mgeo() -> Damages:
    nothing = f.both(f.remove(LABELS), _row(CONFIG, lambda row: {key: row[key] for key in row if "label" not in key}))
    placeholders = f.both(
        f.remove(LABELS), f.keys(CONFIG, label2id={f"LABEL_{number}": number for number in range(85)})
    )
    few = f"label_mapping.json has 80 labels, but {BIN} was saved with 85: tensor classifier.weight has shape (85, 64)"
    return {
        "labels too few": (_row(LABELS, lambda row: dict(list(row.items())[:80])), few),
        "a label too many": (
            _row(LABELS, lambda row: {**row, "B-zz": 85}),
            f"has 86 labels, but {BIN} was saved with 85",
        ),
        "a hole": (
            _row(LABELS, lambda row: {key: one for key, one in row.items() if one != 7}),
            "no label has 7, and ",
        ),
        "a number twice": (_row(LABELS, lambda row: {**row, "B-zz": 7}), "each once: 'E-city' and 'B-zz' are both 7"),
        "numbers as text": (
            _row(LABELS, lambda row: {key: str(one) for key, one in row.items()}),
            "of 'O' is \"0\", su",
        ),
        "labels for numbers": (
            _row(LABELS, lambda row: {str(one): key for key, one in row.items()}),
            "numbers with their",
        ),
        "nested labels": (_row(LABELS, lambda row: {"label2id": row}), "label_mapping.json has 'label2id' with "),
        "no labels": (_write(LABELS, "{}"), "label_mapping.json has 0 labels, supported: 1 to 4096"),
        "other positions": (
            _row(LABELS, lambda row: {key.replace("I-", "M-"): row[key] for key in row}),
            "label 'M-prov'",
        ),
        "labels nowhere": (nothing, "nothing says what the model's outputs mean"),
        "placeholders": (placeholders, "placeholders, such as LABEL_0, that libraries write for lack of labels"),
    }


def _weights_of_mgeo() -> Damages:
    return {
        "BERT's names": (
            _rename("bert.text_encoder.", "bert."),
            f"{BIN} has 37 tensors under 'bert.', expected 'bert.text_encoder.': rename them",
        ),
        "no beginning": (_rename("bert.text_encoder.", ""), "tensors lack the beginning 'bert.text_encoder.'"),
        "another head": (
            _rename("classifier.", "fc."),
            f"{BIN} has 2 tensors under 'fc.', expected 'classifier.': rename them",
        ),
        "a head without the prefix": (
            _rename("bert.", "mgeo.bert."),
            f"{BIN}: the names of classifier.… (2) do not begin with 'mgeo.' as the others do: save all",
        ),
        "a layer count": (f.keys(CONFIG, num_hidden_layers=1), f"but {BIN} has 2 layers: correct num_hidden_layers"),
        "a fusion layer": (f.keys(CONFIG, fusion_layer=6), f"but {BIN} has 2 layers: correct fusion_layer"),
    }


def _vocabulary_of_mgeo() -> Damages:
    """And of the tokeniser."""
    vocabulary = "vocab.txt"
    return {
        "a token twice": (f.edit(vocabulary, lambda text: text + "a\n"), "vocab.txt has a token twice: lines "),
        "a blank line": (f.edit(vocabulary, lambda text: text + "\n"), "vocab_size is 294; line 295 is empty"),
        "columns": (f.edit(vocabulary, lambda text: text.replace("\n", "\t1\n")), "its lines have several columns"),
        "a vocabulary of JSON": (
            _write(vocabulary, '{"[CLS]": 0}\n'),
            "vocab.txt lacks [CLS], [SEP], [UNK]: it is JSON",
        ),
        "one line": (
            f.edit(vocabulary, lambda text: text.replace("\n", " ")),
            "it has 1 line, the first is '[PAD] [UN",
        ),
        "another tokeniser": (
            _write("tokenizer_config.json", '{"tokenizer_class": "T5"}'),
            'tokenizer_class is "T5", sup',
        ),
        "a flag as text": (
            _write("tokenizer_config.json", '{"do_lower_case": "true"}'),
            'do_lower_case is "true", supp',
        ),
    }
