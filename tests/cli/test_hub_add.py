"""`hotslot hub …` with several models in the settings: the one with the task of the folder is meant."""

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Hotslot

BOTH = """
[[models]]
name = "shapes"

[[models]]
name = "addresses"
task = "token-classification"

[updater.models.shapes]
hub_folder = "hub"

[updater.models.addresses]
hub_folder = "hub"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A published MGeo, as far as its configuration says, among both models' settings."""
    (tmp_path / "hotslot.toml").write_text(BOTH)
    made = tmp_path / "made"
    made.mkdir()
    configuration = {"task": "token-classification", "model": {"type": "mgeo"}}
    (made / "configuration.json").write_text(json.dumps(configuration))
    for name in ("config.json", "label_mapping.json", "tokenizer_config.json"):
        (made / name).write_text("{}")
    for name in ("vocab.txt", "pytorch_model.bin"):
        (made / name).write_text("x")
    return made


def test_a_folder_is_published_for_the_model_of_its_task(hotslot: Hotslot, folder: Path, tmp_path: Path) -> None:
    """--model is needed only if several have the task."""
    ended = hotslot("hub", "add", str(folder), "v1.0.0")

    assert (ended.code, "addresses v1.0.0" in ended.out) == (0, True)
    assert (tmp_path / "hub" / "addresses" / "v1.0.0").is_dir()

    ended = hotslot("hub", "list")
    assert (ended.code, "addresses" in ended.out) == (0, True)


def test_a_folder_of_an_unknown_task_needs_the_model_s_name(hotslot: Hotslot, folder: Path) -> None:
    """The message names the models, and why none was chosen."""
    (folder / "configuration.json").write_text('{"task": "text-to-speech", "model": {"type": "sambert"}}')

    ended = hotslot("hub", "add", str(folder), "v1.0.0")

    assert ended.code == 2
    assert "choose a model with --model (shapes, addresses)" in ended.err


def test_what_is_no_folder_of_a_model_is_told(hotslot: Hotslot, folder: Path) -> None:
    """As by `bundle import`: what to name, or to do, instead."""
    del folder
    ended = hotslot("hub", "add", "iic/ofa_visual-entailment_snli-ve_large_en", "v1.0.0")

    assert (ended.code, "download it first: modelscope" in " ".join(ended.err.replace("│", "").split())) == (2, True)


def test_hubs_in_several_folders_need_one_to_be_named(hotslot: Hotslot, folder: Path, tmp_path: Path) -> None:
    """`hub list` shows one folder."""
    del folder
    (tmp_path / "hotslot.toml").write_text(BOTH.replace('"hub"', '"other"', 1))

    ended = hotslot("hub", "list")

    assert (ended.code, "give --hub" in ended.err) == (2, True)
