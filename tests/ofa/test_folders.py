"""Folders as people publish them are answered as ModelScope's pipeline answered, or refused: a sample of the record."""

import json
from pathlib import Path
from typing import Any

import pytest

from common.source import ConversionRefused
from dev.parity.compare_folders import RECORD, TOLERANCE, TRAINED_TOLERANCE
from dev.parity.folder_catalog import all_folders
from dev.parity.folders import Folder, make_base
from dev.parity.items import questions_of_folder
from dev.parity.ours import ask, load_source
from inference.runner.conversion.ofa_plan import plan_ofa

ROWS: list[dict[str, Any]] = json.loads(RECORD.read_text(encoding="utf-8"))["folders"]
FOLDERS = {(one.base, one.name): one for one in all_folders()}


def publish(row: dict[str, Any], folder: Path) -> Folder:
    """Write the folder of a row again."""
    one = FOLDERS[row["base"], row["name"]]
    make_base(one.base, folder)
    one.change(folder)
    return one


def name_of(row: dict[str, Any]) -> str:
    """A short name for the test's id."""
    return f"{row['base']}: {row['name']}"


@pytest.mark.parametrize("row", [row for row in ROWS if row["verdict"] == "alike"], ids=name_of)
@pytest.mark.fault("H21")
@pytest.mark.fault("H22")
def test_published_folders_are_answered_alike(row: dict[str, Any], tmp_path: Path) -> None:
    """With the recorded notes, and within the tolerance of the pipeline's recorded probabilities."""
    one = publish(row, tmp_path)
    asked = questions_of_folder(is_trained=one.is_trained)[: len(row["scores"])]

    answers = ask(load_source(tmp_path), asked)

    gaps = [abs(old[label] - new[label]) for old, new in zip(row["scores"], answers, strict=True) for label in old]
    assert max(gaps) <= (TRAINED_TOLERANCE if one.is_trained else TOLERANCE)
    assert list(plan_ofa(tmp_path).notes) == row["notes"]


@pytest.mark.parametrize("row", [row for row in ROWS if row["verdict"] == "refused"], ids=name_of)
@pytest.mark.fault("H21")
@pytest.mark.fault("H22")
def test_published_folders_are_refused_with_a_sentence(row: dict[str, Any], tmp_path: Path) -> None:
    """Where the pipeline fails too, or would answer otherwise."""
    publish(row, tmp_path)

    with pytest.raises(ConversionRefused) as caught:
        plan_ofa(tmp_path)

    assert f"{caught.value.reason}: {caught.value}" == row["refusal"]


def test_no_folder_was_answered_differently() -> None:
    """The record has none, of at least 120."""
    assert {row["verdict"] for row in ROWS} == {"alike", "refused"}
    assert len(FOLDERS) >= 120
