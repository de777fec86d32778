"""Damaged folders of both engines: what people are told, that it is one thing, and what the table says."""

import errno
import io
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from rich.console import Console

from cli.explain import show_explanation
from common.explanation import Explanation, Use
from dev.parity import damaged, damaged_contents, damaged_models, folders
from dev.parity.damage import CONFIG, Damages
from dev.parity.damaged import MGEO, OFA, copy_base
from dev.parity.folders import Change
from dev.parity.make_model import make_model as make_ofa
from dev.parity.mgeo.make_model import VARIANTS as MGEO_VARIANTS
from dev.parity.mgeo.make_model import make_model as make_mgeo
from dev.parity.variants import VARIANTS as OFA_VARIANTS
from inference.runner.conversion.explain import explain_folder
from inference.runner.conversion.mgeo_plan import plan_mgeo
from inference.runner.conversion.ofa_plan import plan_ofa

DAMAGES: Mapping[str, Damages] = {
    "ofa": {
        **damaged.shared(OFA),
        **damaged_models.of_ofa(),
        **damaged_contents.of_contents(OFA),
        **damaged_contents.of_vocabularies(),
    },
    "mgeo": {**damaged.shared(MGEO), **damaged_models.of_mgeo(), **damaged_contents.of_contents(MGEO)},
}
CASES = [(engine, kind) for engine, damages in DAMAGES.items() for kind in damages]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """Folders without damage, by engine."""
    made = {engine: tmp_path_factory.mktemp(engine) for engine in DAMAGES}
    make_ofa(made["ofa"], OFA_VARIANTS["plain"])
    make_mgeo(made["mgeo"], MGEO_VARIANTS["plain"])
    return made


@pytest.fixture
def explain(bases: Mapping[str, Path], tmp_path: Path) -> Callable[[str, Change], Explanation]:
    """Explain a copy of an engine's folder with a change."""

    def explain_changed(engine: str, change: Change) -> Explanation:
        copy_base(bases[engine], tmp_path)
        change(tmp_path)
        return explain_folder(tmp_path, {"ofa": plan_ofa, "mgeo": plan_mgeo})

    return explain_changed


@pytest.mark.parametrize(("engine", "kind"), CASES)
@pytest.mark.fault("H21")
@pytest.mark.fault("H22")
@pytest.mark.fault("C9")
def test_damage_is_told_in_one_sentence(engine: str, kind: str, explain: Callable[[str, Change], Explanation]) -> None:
    """It says what is wrong, and where; the table marks a part of it, and nothing follows from the first error."""
    change, words = DAMAGES[engine][kind]

    found = explain(engine, change)

    assert len(found.refusals) == 1
    assert words in found.refusals[0]
    if kind != "labels nowhere":
        assert {part.use for part in found.parts} & {Use.REFUSED, Use.MISSING}


@pytest.mark.parametrize("engine", DAMAGES)
def test_at_least_forty_folders_are_damaged(engine: str) -> None:
    """For each engine."""
    assert len(DAMAGES[engine]) >= 40


@pytest.mark.parametrize("engine", DAMAGES)
def test_what_is_not_damaged_is_not_refused(engine: str, explain: Callable[[str, Change], Explanation]) -> None:
    """The base of all others."""
    assert explain(engine, folders.both()).refusals == ()


@pytest.mark.parametrize(("engine", "names"), [("ofa", OFA), ("mgeo", MGEO)])
def test_a_misspelt_key_is_named_in_the_table(
    engine: str, names: damaged.Names, explain: Callable[[str, Change], Explanation]
) -> None:
    """It is ignored, and that is told together with the key that it resembles."""
    found = explain(engine, DAMAGES[engine]["a misspelt width"][0])

    rows = {part.name: part for part in found.parts}
    misspelt = rows[f"{CONFIG}: {names.misspelt_width}"]
    assert (misspelt.use, misspelt.detail) == (Use.IGNORED, f"64; did you mean {names.width}?")
    assert rows[f"{CONFIG}: {names.width}"].use is Use.MISSING
    assert rows[CONFIG].use is Use.REFUSED


def test_a_misspelt_key_with_a_fitting_default_is_noted(explain: Callable[[str, Change], Explanation]) -> None:
    """The folder can be imported; the note says what was meant."""
    found = explain("ofa", folders.keys(CONFIG, add_type_embedding=None, add_type_embeding=True))

    assert found.refusals == ()
    assert found.notes == (
        "config.json: add_type_embeding is not read; did you mean add_type_embedding, which is missing?",
    )


@pytest.mark.parametrize("kind", damaged_contents.noted())
def test_what_is_probably_wrong_is_noted(kind: str, explain: Callable[[str, Change], Explanation]) -> None:
    """The folder can be imported, as the pipeline reads it; the note says what to look at."""
    engine, change, words = damaged_contents.noted()[kind]

    found = explain(engine, change)

    assert found.refusals == ()
    assert [note for note in found.notes if words in note]


def test_a_key_twice_is_noted_beside_a_refusal(explain: Callable[[str, Change], Explanation]) -> None:
    """It is the reason why the key has that value."""
    found = explain("ofa", folders.edit(CONFIG, lambda text: text.rstrip().removesuffix("}") + ', "d_model": 999}'))

    assert "d_model = 999" in found.refusals[0]
    assert found.notes == ("config.json: d_model is there twice, 64 and 999; the last one counts",)


def test_independent_errors_are_told_together(explain: Callable[[str, Change], Explanation]) -> None:
    """Both keys; not that the tensors have other shapes than the default."""
    changes: dict[str, object] = {"d_model": "64", "encoder_attention_heads": 3, "normformer": False}

    found = explain("ofa", folders.keys(CONFIG, **changes))

    assert [sentence.split(" is ")[0] for sentence in found.refusals] == [
        "config.json: normformer",
        "config.json: d_model",
    ]


def test_a_short_vocabulary_is_noted(explain: Callable[[str, Change], Explanation]) -> None:
    """Fewer tokens than the embedding has rows are read, as by the pipeline; the note says what that may mean."""
    found = explain("mgeo", folders.edit("vocab.txt", lambda text: "\n".join(text.split("\n")[:200]) + "\n"))

    assert found.refusals == ()
    assert "vocab.txt has 200 tokens, config.json: vocab_size is 294" in found.notes[1]


def test_layers_that_are_not_used_are_noted(explain: Callable[[str, Change], Explanation]) -> None:
    """A lower count than the file's, as by the pipeline."""
    found = explain("ofa", folders.keys(CONFIG, encoder_layers=1))

    assert found.refusals == ()
    assert "config.json: encoder_layers is 1, but pytorch_model.bin has more" in found.notes[-1]


def test_a_name_that_is_not_utf_8_is_listed(explain: Callable[[str, Change], Explanation]) -> None:
    """As by the import, such a file is ignored; its bytes are written in hexadecimal."""
    name = os.fsdecode(b"\xcb\xb5\xff.txt")

    found = explain("mgeo", lambda folder: (folder / name).write_text("a"))

    rows = {part.name: part.use for part in found.parts}
    assert found.refusals == ()
    assert rows["\u02f5\\xff.txt"] is Use.IGNORED


def _deny(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Opening a file fails as for a user without permission."""
    opened = os.open

    def open_others(path: str | Path, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if Path(path).name == name:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return opened(path, flags, mode, dir_fd=dir_fd)

    monkeypatch.setattr(os, "open", open_others)


def test_an_unreadable_file_that_is_not_needed_is_ignored(
    explain: Callable[[str, Change], Explanation], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by the import."""
    _deny(monkeypatch, "README.md")

    found = explain("ofa", lambda folder: (folder / "README.md").write_text("# A model"))

    row = next(part for part in found.parts if part.name == "README.md")
    assert found.refusals == ()
    assert (row.use, row.detail) == (Use.IGNORED, "cannot be read")


@pytest.mark.parametrize("name", [CONFIG, "configuration.json", "vocab.txt", "label_mapping.json", "pytorch_model.bin"])
def test_an_unreadable_file_that_is_needed_is_named(
    name: str, explain: Callable[[str, Change], Explanation], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the command that makes it readable."""
    _deny(monkeypatch, name)

    found = explain("mgeo", folders.both())

    assert found.refusals == (f"{name} cannot be read by this user (permission denied): chmod o+r {name}",)
    assert next(part.use for part in found.parts if part.name == name) is Use.REFUSED


def test_what_the_import_does_not_read_is_not_checked(explain: Callable[[str, Change], Explanation]) -> None:
    """A NaN in the pooler, which no tagger has, is no reason to refuse the folder."""
    pooler = {"bert.text_encoder.pooler.dense.bias": torch.full((64,), torch.nan)}

    found = explain("mgeo", folders.saved(lambda tensors: {**tensors, **pooler}))

    assert found.refusals == ()


def test_the_reason_stands_before_the_tables(explain: Callable[[str, Change], Explanation], tmp_path: Path) -> None:
    """`head` shows it; it ends with that the rest was not looked at."""
    found = explain("mgeo", folders.remove("vocab.txt"))
    console = Console(width=200, file=io.StringIO(), record=True)

    console.print(show_explanation(found, tmp_path))

    lines = console.export_text().splitlines()
    assert lines[1:3] == ["  the revision lacks vocab.txt", "  The rest was not looked at; run it again."]
    assert {part.name for part in found.parts if part.use is Use.UNREAD} >= {CONFIG, "pytorch_model.bin"}


def test_labels_of_the_configuration_are_used_if_there_are_no_others(
    explain: Callable[[str, Change], Explanation],
) -> None:
    """The table says the same as the import; where label_mapping.json is there, they are ignored."""
    alone = {part.name: part.use for part in explain("mgeo", folders.remove("label_mapping.json")).parts}

    assert [use for name, use in alone.items() if name.startswith(f"{CONFIG}: label2id")] == [Use.USED]


def test_an_empty_folder_is_called_empty(tmp_path: Path) -> None:
    """Instead of a list of all files that it lacks."""
    found = explain_folder(tmp_path, {})

    assert found.refusals == ("the folder is empty: download the model into it",)
