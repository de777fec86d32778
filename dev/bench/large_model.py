"""A model of the published large size with random weights, generated once and sealed in each precision."""

import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

from common.bundle import Bundle, bundle_folder
from common.sealing import ConvertLimits, run_convert
from dev.parity.make_model import Recipe, make_model

FOLDER = Path(".bench")  # 5 GB; `make clean` removes it
_COMPLETE = "complete"
_PIECE_BYTES = 1 << 20


def large_source() -> Path:
    """Folder of the published model, 473 M parameters; generated at the first call."""
    folder = FOLDER / "large"
    if not (folder / _COMPLETE).exists():
        say("making a model of 473 M parameters (once, some 20 s, 1.9 GB)")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        make_model(folder, Recipe(size="large"))
        (folder / _COMPLETE).touch()
    return folder


def large_bundle(precision: str) -> tuple[Path, Bundle]:
    """The large model, sealed."""
    return sealed_bundle(large_source(), precision)


def sealed_bundle(source: Path, precision: str) -> tuple[Path, Bundle]:
    """Folder and manifest of a sealed bundle; takes a second if it is sealed already."""
    state = FOLDER / "state"
    state.mkdir(parents=True, exist_ok=True)
    say(f"sealing it in {precision}")
    bundle = run_convert(source, state, "v1", ConvertLimits(), precision)
    return bundle_folder(state, bundle.bundle_digest), bundle


def warm(files: Iterable[Path]) -> None:
    """Read files into the page cache."""
    for path in files:
        with path.open("rb") as file:
            while file.read(_PIECE_BYTES):
                pass


def say(text: str) -> None:
    """Print a line of progress."""
    sys.stderr.write(f"hotslot: {text}\n")
