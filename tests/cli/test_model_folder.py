"""The folder of a model as an argument: what people name instead, and what they are told."""

from collections.abc import Callable
from pathlib import Path

import pytest
import typer

from cli.model_folder import check_model_folder

WRONG: dict[str, tuple[Callable[[Path], Path | str], str]] = {
    "a name on the hub": (
        lambda _: "iic/ofa_visual-entailment_snli-ve_large_en",
        "download it first: modelscope download --model iic/ofa_visual-entailment_snli-ve_large_en --local_dir DIR",
    ),
    "an archive": (lambda folder: _touch(folder / "model.zip"), "is an archive, not a folder: unpack it"),
    "a file": (lambda folder: _touch(folder / "config.json"), "is a file, not a folder: name its folder, "),
    "a link that leads nowhere": (lambda folder: _link(folder / "a", "b"), "is a link to b, which does not exist"),
    "a link to itself": (lambda folder: _link(folder / "a", "a"), "is a link to itself"),
    "a tilde": (lambda _: "~/models/ofa", "the shell replaces ~ outside of quotes alone"),
    "nothing": (lambda folder: folder / "b", "does not exist"),
}


def _touch(path: Path) -> Path:
    path.write_text("{}")
    return path


def _link(path: Path, target: str) -> Path:
    path.symlink_to(target)
    return path


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_no_folder_is_told(kind: str, tmp_path: Path) -> None:
    """With what to name, or to do, instead."""
    make, words = WRONG[kind]

    with pytest.raises(typer.BadParameter) as caught:
        check_model_folder(Path(make(tmp_path)))

    assert words in caught.value.message


def test_a_folder_is_returned(tmp_path: Path) -> None:
    """As it was named."""
    assert check_model_folder(tmp_path) == tmp_path
