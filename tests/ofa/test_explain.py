"""`hotslot bundle explain`: folders of strangers, and what they are told."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from common.explanation import Explanation, Use, read_explanation, write_explanation
from inference.runner.conversion.explain import explain_folder
from inference.runner.conversion.ofa_plan import plan_ofa
from tests.cli.conftest import Hotslot, hotslot  # noqa: F401 - a fixture
from tests.ofa.conftest import Publish

BIN = "pytorch_model.bin"


def explain(folder: Path) -> Explanation:
    """Explain a folder in this process."""
    return explain_folder(folder, {"ofa": plan_ofa})


def uses(found: Explanation) -> dict[str, Use]:
    """What becomes of each part."""
    return {part.name: part.use for part in found.parts}


def test_every_part_of_a_good_folder_is_explained(publish: Publish) -> None:
    """Files, keys and groups of tensors; keys that do not matter are ignored."""
    folder = publish(architecture={"dropout": 0.1, "my_key": 1})
    (folder / "README.md").write_text("# a model")
    (folder / "ms_wrapper.py").write_text("1/0")

    found = explain(folder)

    seen = uses(found)
    assert (found.engine, found.refusals, found.notes) == ("ofa", (), ())
    assert [seen[name] for name in (BIN, "vocab.json", "README.md", "ms_wrapper.py")] == ["used"] * 2 + ["ignored"] * 2
    assert [seen[f"config.json: {key}"] for key in ("d_model", "dropout", "my_key")] == ["used", "ignored", "ignored"]
    assert seen["configuration.json: model.answer2label"] is Use.USED
    assert seen["encoder.…"] is Use.USED
    assert all(part.stock for part in found.parts)


def remove(folder: Path, name: str) -> Path:
    """A file to be written anew; the published one is a link."""
    (folder / name).unlink(missing_ok=True)
    return folder / name


def save_twice(folder: Path) -> None:
    """Two models in one checkpoint."""
    tensors = torch.load(folder / BIN)
    torch.save({"student": tensors, "teacher": dict(tensors)}, remove(folder, BIN))


def save_as(folder: Path, dtype: torch.dtype) -> None:
    """The same model in other numbers."""
    torch.save({name: tensor.to(dtype) for name, tensor in torch.load(folder / BIN).items()}, remove(folder, BIN))


def make_inner(folder: Path) -> Path:
    """A folder in the folder."""
    (folder / "inner").mkdir()
    return folder / "inner"


STRANGERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "Git LFS": (
        lambda folder: remove(folder, BIN).write_text("version https://git-lfs.github.com/spec/v1\n"),
        "is a Git LFS pointer, not the file itself: run `git lfs pull` in the clone, and publish again",
    ),
    "a login page": (
        lambda folder: remove(folder, "vocab.json").write_text("<html><title>Sign in &amp; go</title>"),
        "vocab.json is an HTML page ('Sign in & go'), not the file itself: download it again",
    ),
    "an empty upload": (
        lambda folder: remove(folder, "merges.txt").write_text(""),
        "merges.txt is empty: its upload was not finished",
    ),
    "a comma": (
        lambda folder: remove(folder, "config.json").write_text('{\n "d_model": 64,\n}'),
        "config.json is not JSON: ",
    ),
    "another task": (
        lambda folder: remove(folder, "configuration.json").write_text('{"task": "ocr", "model": {"type": "ofa"}}'),
        "has no engine; supported: visual-entailment with ofa; token-classification with mgeo",
    ),
    "no answers": (
        lambda folder: remove(folder, "ans2label.json"),
        "the revision lacks ans2label.json (which configuration.json names)",
    ),
    "a checkpoint of two": (
        save_twice,
        "holds the model several times, under the keys 'student', 'teacher'; publish one of them alone",
    ),
    "a cut download": (
        lambda folder: remove(folder, BIN).write_bytes(b"PK\x03\x04" + bytes(99)),
        "pytorch_model.bin is cut off or damaged: its archive has no valid end record",
    ),
    "another vocabulary": (
        lambda folder: remove(folder, "vocab.json").write_text('{"<s>": 0, "<pad>": 1, "</s>": 2, "hello": 3}'),
        "vocab.json lacks '<unk>': the vocabulary has 4 entries; publish the files with which the model was trained",
    ),
    "a layer too few": (
        lambda folder: remove(folder, "config.json").write_text(
            json.dumps({"d_model": 64, "vocab_size": 10216, "image_bucket_size": 8})
        ),
        "encoder_layers is missing and counts as 4, but was saved with 2; ",
    ),
    "a half": (
        lambda folder: remove(folder, "merges.txt"),
        "the revision lacks merges.txt",
    ),
    "a folder in the folder": (
        lambda folder: (folder / "configuration.json").rename(make_inner(folder) / "configuration.json"),
        "lacks configuration.json; it is in the folder 'inner': use that one",
    ),
    "no folder of ModelScope": (
        lambda folder: remove(folder, "configuration.json"),
        "lacks configuration.json, in which ModelScope's trainers write task, model.type and answers",
    ),
    "a shard too few": (
        lambda folder: (
            remove(folder, BIN),
            (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-1.safetensors"}}'),
        ),
        "the weights' index names 'model-1.safetensors', which is not in the folder: publish it too",
    ),
    "an adapter": (
        lambda folder: torch.save({"base.fc1.lora_A.weight": torch.zeros(2)}, remove(folder, BIN)),
        "; merge the LoRA adapter into its model, and save that",
    ),
    "another encoding": (
        lambda folder: remove(folder, "config.json").write_bytes('{"d_model": 64}'.encode("utf-16")),
        "config.json is not UTF-8: byte 0xff in line 1; save it as UTF-8",
    ),
    "quantised weights": (
        lambda folder: save_as(folder, torch.int8),
        "is int8, supported: float32, float16, bfloat16, float64; save the model from before quantisation",
    ),
    "a text": (
        lambda folder: remove(folder, BIN).write_text("later"),
        "pytorch_model.bin is not what torch.save writes, neither an archive nor a pickle",
    ),
    "the other format": (
        lambda folder: remove(folder, BIN).write_bytes(b"\x40" + bytes(7) + b'{"a": {}}'),
        "neither an archive nor a pickle: it is a safetensors file, so name it model.safetensors",
    ),
}


@pytest.mark.parametrize("kind", STRANGERS)
@pytest.mark.fault("H21")
@pytest.mark.fault("H22")
@pytest.mark.fault("C9")
def test_strangers_are_told_what_to_change(kind: str, publish: Publish) -> None:
    """Each folder has one sentence that names the file and the mistake."""
    folder = publish()
    change, sentence = STRANGERS[kind]
    change(folder)

    found = explain(folder)

    assert len(found.refusals) == 1
    assert sentence in found.refusals[0]


def test_a_refused_key_is_refused_once(publish: Publish) -> None:
    """Its default may not fit the other keys either, which is no second mistake."""
    found = explain(publish(model={"patch_image_size": "abc"}))

    assert found.refusals == (
        'configuration.json: model.patch_image_size is "abc", supported: an integer from 16 to 2048',
    )


def test_all_refused_keys_are_found_at_once(publish: Publish) -> None:
    """In both files; each key is refused with the supported values."""
    folder = publish(architecture={"normformer": False, "encoder_layers": 0}, model={"language": "zh"})

    found = explain(folder)

    assert [sentence.split(" is ")[0] for sentence in found.refusals[:3]] == [
        "config.json: normformer",
        "config.json: encoder_layers",
        "configuration.json: model.language",
    ]
    assert uses(found)["config.json: normformer"] is Use.REFUSED


def test_tensors_are_explained_by_group(publish: Publish) -> None:
    """Missing ones and surplus ones too."""
    folder = publish()
    tensors = torch.load(folder / BIN)
    tensors = {name: tensor for name, tensor in tensors.items() if ".layers.1." not in name}
    torch.save({**tensors, "fc.weight": torch.zeros(2)}, remove(folder, BIN))

    seen = uses(explain(folder))

    assert seen["fc.weight"] is Use.IGNORED
    assert seen["decoder.layers.1.…"] is seen["encoder.layers.1.…"] is Use.MISSING


def test_an_explanation_survives_its_file(publish: Publish, tmp_path: Path) -> None:
    """What the child writes is what the parent reads."""
    found = explain(publish())

    write_explanation(tmp_path, found)

    assert read_explanation(tmp_path) == found


def test_the_command_explains_in_a_child_process(publish: Publish, hotslot: Hotslot) -> None:  # noqa: F811
    """The exit code says whether the folder can be imported; --json has every part."""
    good = hotslot("bundle", "explain", str(publish()))
    bad = hotslot("bundle", "explain", str(publish(model={"gen_type": "sample"})), "--json")

    assert good.code == 0
    assert "can be imported, for engine ofa" in good.out
    assert bad.code == 1
    assert 'model.gen_type is "sample"' in json.loads(bad.out)["refusals"][0]
