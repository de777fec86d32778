"""A published MGeo becomes a bundle in every format; what is not supported is refused with what is."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.serialization import set_crc32_options

from common.bundle import read_bundle
from common.engine_files import MGEO
from common.sealing import ConvertLimits, run_convert
from common.source import ConversionRefused, find_source
from dev.parity.mgeo.make_model import LABELS, VARIANTS
from inference.runner.conversion.mgeo import convert_mgeo
from inference.runner.conversion.mgeo_config import SLOW_NOTE, WINDOW_NOTE
from inference.runner.conversion.mgeo_labels import DISAGREEING_NOTE
from inference.runner.engines.base import BundleRefused, LoadOptions
from inference.runner.engines.mgeo.config import WEIGHTS_NAME, read_config
from inference.runner.engines.mgeo.load import estimate_mgeo_memory, load_mgeo
from tests.mgeo.conftest import Publish

Sources = Callable[[str], Path]
OPTIONS = LoadOptions("cpu", "float32", 1)


def converted(source: Path, into: Path) -> dict[str, torch.Tensor]:
    """The tensors of a converted folder."""
    into.mkdir()
    convert_mgeo(source, into, "v1", "float32")
    return load_file(into / WEIGHTS_NAME)


def refusal(source: Path) -> str:
    """Reason and message with which a folder is refused."""
    into = source.parent / f"{source.name}-into"
    into.mkdir()
    with pytest.raises(ConversionRefused) as caught:
        convert_mgeo(source, into, "v1", "float32")
    return f"{caught.value.reason}: {caught.value}"


def rewrite(
    folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]
) -> dict[str, torch.Tensor]:
    """Replace the weights of a published copy."""
    path = folder / "pytorch_model.bin"
    tensors = change(torch.load(path, weights_only=True))
    path.unlink()
    torch.save(tensors, path)
    return tensors


def test_the_child_process_seals_a_bundle(sources: Sources, tmp_path: Path) -> None:
    """The converting process knows the engine; the bundle says labels, task and how long texts are read."""
    state = tmp_path / "state"
    state.mkdir()

    bundle = run_convert(sources("plain"), state, "v1", ConvertLimits())

    assert bundle.interface is not None
    assert bundle.interface.labels == LABELS
    assert (bundle.engine, bundle.task, bundle.notes) == ("mgeo", "token-classification", (WINDOW_NOTE.format(128),))


@pytest.mark.parametrize("form", ["safetensors", "shards", "old_zip"])
def test_every_weight_format_gives_the_same_tensors(form: str, publish: Publish, tmp_path: Path) -> None:
    """safetensors, an index with shards, and torch's oldest format."""
    expected = converted(publish(), tmp_path / "expected")
    folder = publish()
    tensors = torch.load(folder / "pytorch_model.bin", weights_only=True)
    (folder / "pytorch_model.bin").unlink()
    if form == "safetensors":
        save_file(tensors, folder / "model.safetensors")
    elif form == "shards":
        names = sorted(tensors)
        shards = {"one.bin": names[::2], "two.bin": names[1::2]}
        for shard, some in shards.items():
            torch.save({name: tensors[name] for name in some}, folder / shard)
        index = {"weight_map": {name: shard for shard, some in shards.items() for name in some}}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index), encoding="utf-8")
    else:
        torch.save(tensors, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)

    found = converted(folder, tmp_path / "found")

    assert set(found) == set(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_other_names_of_tensors_give_the_same_tensors(publish: Publish, tmp_path: Path) -> None:
    """Without the prefix, with old names of norms, with a pooler and with the index of positions."""
    expected = converted(publish(), tmp_path / "expected")
    folder = publish()

    def rename(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        renamed = {
            name.removeprefix("bert.").replace("LayerNorm.weight", "LayerNorm.gamma"): tensor
            for name, tensor in tensors.items()
        }
        renamed["text_encoder.pooler.dense.weight"] = torch.ones(64, 64)
        renamed["text_encoder.embeddings.position_ids"] = torch.arange(160)[None]
        return renamed

    rewrite(folder, rename)

    found = converted(folder, tmp_path / "found")

    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architecture": {"gis_embedding": 1}}, "gis_embedding is 1, supported: 0"),
        ({"architecture": {"hidden_act": "gelu_new"}}, 'hidden_act is "gelu_new", supported: "gelu", "relu"'),
        ({"architecture": {"num_attention_heads": 7}}, "a divisor of hidden_size = 64"),
        ({"architecture": {"position_embedding_type": "relative_key"}}, 'supported: "absolute"'),
        (
            {"architecture": {"fusion_layer": 3}},
            "fusion_layer is 3, but pytorch_model.bin has 2 layers: correct fusion_layer",
        ),
        ({"model": {"finetune_mode": "multi-modal"}}, 'supported: "single-modal"'),
        ({"model": {"type": "bert"}}, "has no engine"),
        ({"preprocessor": {"max_length": 400}}, "an integer from 3 to 160"),
        ({"preprocessor": {"type": "fill-mask"}}, 'preprocessor.type is "fill-mask"'),
        ({"tokenizer": {"tokenizer_class": "XLMRobertaTokenizer"}}, "tokenizer_class is"),
        ({"tokenizer": {"cls_token": "[BEGIN]"}}, "VOCABULARY_BROKEN: vocab.txt lacks [BEGIN]"),
        ({"labels": {"B-prov": 300}}, "must be 0 to 84, each once: no label has 1, and 'B-prov' has 300"),
        ({"labels": {"B-prov": "1"}}, "the number of 'B-prov' is \"1\", supported: an integer"),
        ({"labels": {"M-prov": 85}}, "has the label 'M-prov'"),
        ({"labels": {"S-room": 85}}, "label_mapping.json has 86 labels, but pytorch_model.bin was saved with 85"),
        ({"architecture": {"vocab_size": 100}}, "vocab.txt has "),
    ],
)
@pytest.mark.fault("C9")
def test_what_is_not_supported_is_refused_by_name(
    changes: dict[str, dict[str, object]], words: str, publish: Publish
) -> None:
    """The message names the key, its value and what is supported."""
    assert words in refusal(publish(**changes))


@pytest.mark.fault("H21")
@pytest.mark.parametrize(
    ("prefix", "key", "words"),
    [
        ("module.", "", "names begin with 'module.'; the prefix is removed"),
        ("model.", "", "names begin with 'model.'; the prefix is removed"),
        ("model.", "state_dict", "the tensors are under the key 'state_dict'; 'epoch' beside it is ignored"),
    ],
)
def test_weights_are_found_as_training_programs_write_them(
    prefix: str, key: str, words: str, publish: Publish, tmp_path: Path
) -> None:
    """Prefixed, in a checkpoint, and beside tensors that the published pipeline ignores."""
    expected = converted(publish(), tmp_path / "expected")
    folder = publish()

    def wrap(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        prefixed = {f"{prefix}{name}": tensor for name, tensor in tensors.items()}
        prefixed["bert.gis_encoder.x"] = torch.zeros(1)
        return {key: prefixed, "epoch": 3} if key else prefixed  # type: ignore[dict-item]

    rewrite(folder, wrap)
    found = converted(folder, tmp_path / "found")

    assert all(torch.equal(found[name], expected[name]) for name in expected)
    notes = " ".join(read_bundle(tmp_path / "found").notes)
    assert words in notes
    assert "1 tensor that this model does not have, ignored: bert.gis_encoder.x" in notes


@pytest.mark.fault("H23")
def test_unknown_sections_are_noted(publish: Publish, tmp_path: Path) -> None:
    """The published pipeline does not read them either."""
    converted(publish(top={"hooks": []}), tmp_path / "into")

    note = "configuration.json: 'hooks' at the top level is not read"
    assert read_bundle(tmp_path / "into").notes == (WINDOW_NOTE.format(128), note)


def test_another_weight_file_than_the_stated_one_is_refused(publish: Publish) -> None:
    """The publisher's own hash is compared."""
    assert "is not the file that configuration.json: model_file_sha256 means" in refusal(
        publish(top={"model_file_sha256": "0" * 64})
    )


@pytest.mark.parametrize("without", ["vocab.txt", "config.json", "pytorch_model.bin"])
def test_a_missing_file_is_named(without: str, publish: Publish) -> None:
    """Files that the engine needs."""
    assert without in refusal(publish(without=(without,)))


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("classifier.bias", None, "pytorch_model.bin lacks tensor classifier.bias: it has 38 of 39 tensors"),
        ("classifier.bias", torch.full((85,), torch.nan), "holds NaN or infinity"),
        ("classifier.bias", torch.zeros(85, dtype=torch.int64), "is int64, supported: float32"),
        ("text_encoder.embeddings.LayerNorm.gamma", torch.zeros(64), "is there under two names"),
    ],
)
@pytest.mark.fault("C11")
def test_damaged_weights_are_refused(name: str, change: torch.Tensor | None, words: str, publish: Publish) -> None:
    """A tensor is missing, not finite, of another type, or there twice."""
    folder = publish()

    def damage(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        tensors.pop(name, None)
        return tensors if change is None else {**tensors, name: change}

    rewrite(folder, damage)

    assert words in refusal(folder)


@pytest.mark.fault("C11")
def test_a_flipped_bit_in_an_archive_is_refused(publish: Publish, tmp_path: Path) -> None:
    """The number is finite and ordinary; only the archive's checksum tells. An archive without checksums is read."""
    folder = publish()
    tensors = rewrite(folder, lambda tensors: tensors)
    path = folder / "pytorch_model.bin"
    content = bytearray(path.read_bytes())
    start = content.index(tensors["classifier.weight"].numpy().tobytes())
    content[start] ^= 1
    path.write_bytes(content)

    assert "pytorch_model.bin is damaged: the content of record 'data/" in refusal(folder)

    set_crc32_options(compute_crc32=False)
    try:
        rewrite(folder, lambda _: tensors)
    finally:
        set_crc32_options(compute_crc32=True)
    assert converted(folder, tmp_path / "without")


@pytest.mark.parametrize(
    ("place", "section"),
    [
        ("model", {"label2id": {label: number for number, label in enumerate(LABELS)}}),
        ("model", {"id2label": {str(number): label for number, label in enumerate(LABELS)}}),
        ("preprocessor", {"label2id": {label: number for number, label in enumerate(LABELS)}}),
        ("architecture", {}),
    ],
)
def test_labels_come_from_the_first_place_that_has_them(
    place: str, section: dict[str, object], publish: Publish, tmp_path: Path
) -> None:
    """Without label_mapping.json: configuration.json's model or preprocessor, then config.json."""
    architecture = {} if place == "architecture" else {"label2id": None, "id2label": None}
    changes = {"architecture": architecture, place: section} if place != "architecture" else {}
    folder = publish(without=("label_mapping.json",), **changes)

    converted(folder, tmp_path / "into")

    assert read_config(tmp_path / "into").labels == LABELS


def test_notes_say_what_differs_from_the_pipeline(publish: Publish, tmp_path: Path) -> None:
    """A slow tokeniser, labels of config.json that disagree, and the window."""
    folder = publish(
        tokenizer={"use_fast": None}, architecture={"label2id": {"O": 0, "B-a": 1}}, preprocessor={"max_length": 100}
    )

    converted(folder, tmp_path / "into")

    notes = read_bundle(tmp_path / "into").notes
    assert notes == (WINDOW_NOTE.format(100), SLOW_NOTE, DISAGREEING_NOTE)


def test_every_declared_file_is_part_of_the_source(sources: Sources) -> None:
    """The source digest covers labels and tokeniser."""
    found = find_source(sources("plain"))

    assert found.engine is MGEO
    assert found.names == (
        "config.json",
        "configuration.json",
        "label_mapping.json",
        "pytorch_model.bin",
        "tokenizer_config.json",
        "vocab.txt",
    )


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_estimate_has_the_weights(variant: str, sources: Sources, tmp_path: Path) -> None:
    """The estimate's weights are those of the file, at the precision of the computation."""
    bundle = convert_mgeo(sources(variant), tmp_path, "v1", "float32")
    stored = sum(tensor.numel() for tensor in load_file(tmp_path / WEIGHTS_NAME).values())

    full = estimate_mgeo_memory(tmp_path, bundle, OPTIONS)
    half = estimate_mgeo_memory(tmp_path, bundle, LoadOptions("cpu", "bfloat16", 1))

    assert full is not None
    assert half is not None
    assert (full.weights, half.weights) == (4 * stored, 2 * stored)


@pytest.mark.parametrize("damage", ["config", "tensor", "vocabulary"])
def test_a_bundle_of_another_layout_is_refused(damage: str, sources: Sources, tmp_path: Path) -> None:
    """Each file is checked; the message has no path."""
    bundle = convert_mgeo(sources("plain"), tmp_path, "v1", "float32")
    if damage == "config":
        (tmp_path / "engine.json").unlink()
        (tmp_path / "engine.json").write_text('{"schema_version": 9}', encoding="utf-8")
    elif damage == "tensor":
        (tmp_path / WEIGHTS_NAME).unlink()
        save_file({"classifier.bias": torch.zeros(3)}, tmp_path / WEIGHTS_NAME)
    else:
        (tmp_path / "vocab.txt").unlink()

    with pytest.raises(BundleRefused) as caught:
        load_mgeo(tmp_path, bundle, OPTIONS, lambda _phase, _share: None)

    assert str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "vocab.txt is a Git LFS pointer"),
        (b"<!DOCTYPE html><title>404</title>", "vocab.txt is an HTML page"),
        (b"", "vocab.txt is empty"),
        ("[CLS]\n[SEP]\n[UNK]\n浙".encode("gbk", "replace"), "vocab.txt is not UTF-8: byte"),
        (b"[CLS]\n[SEP]\n[UNK]\na\na\n", "has a token twice: lines 4 and 5 are 'a'"),
    ],
    ids=["pointer", "page", "empty", "gbk", "twice"],
)
def test_a_file_that_is_no_vocabulary_is_named_as_what_it_is(publish: Publish, content: bytes, told: str) -> None:
    """Not by the tokens that it lacks."""
    source = publish()
    (source / "vocab.txt").unlink()
    (source / "vocab.txt").write_bytes(content)
    assert told in refusal(source)


def test_a_shortened_vocabulary_is_noted(publish: Publish, tmp_path: Path) -> None:
    """Models are published with spare rows, so it is no error; but a lost line shifts every token after it."""
    source = publish()
    lines = (source / "vocab.txt").read_text("utf-8").splitlines()
    (source / "vocab.txt").unlink()
    (source / "vocab.txt").write_text("".join(f"{line}\n" for line in lines if line not in lines[-3:-1]), "utf-8")
    into = tmp_path / "into"
    into.mkdir()
    made = convert_mgeo(source, into, "v1", "float32")
    assert [note for note in made.notes if "every token after them has another number" in note]
