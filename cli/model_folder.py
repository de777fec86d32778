"""The folder of a model as an argument of commands, with advice where it is none."""

import re
import zipfile
from pathlib import Path

import typer

from common.durable import describe_odd_entry

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")  # owner and model
_ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar")


def check_model_folder(path: Path) -> Path:
    """Return the folder.

    Raises:
        typer.BadParameter: there is none; the message says what to name instead.
    """
    if path.is_dir():
        return path
    raise typer.BadParameter(f"{str(path)!r} {_describe(path)}")


def _describe(path: Path) -> str:
    odd = describe_odd_entry(path)
    if odd:
        return odd
    if path.is_file():
        is_packed = path.name.lower().endswith(_ARCHIVES)
        if is_packed or (zipfile.is_zipfile(path) and path.suffix not in (".bin", ".pt", ".pth")):
            return "is an archive, not a folder: unpack it, and name the folder"
        return f"is a file, not a folder: name its folder, {str(path.parent)!r}"
    if str(path).startswith("~"):
        return "does not exist: the shell replaces ~ outside of quotes alone"
    if _HUB_NAME.fullmatch(str(path)) and not path.parent.exists():
        download = f"modelscope download --model {path} --local_dir DIR"
        return f"does not exist here; if it is the name of a model on ModelScope, download it first: {download}"
    return "does not exist"
