"""Synthetic models, published into folders and loaded; each is made once for all tests."""

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from dev.parity.make_model import make_model
from dev.parity.ours import load_source
from dev.parity.variants import VARIANTS
from inference.runner.engines.ofa.engine import OfaEngine

FIXTURES = Path(__file__).with_name("fixtures")
Publish = Callable[..., Path]


@pytest.fixture(scope="package", autouse=True)
def _one_thread() -> Iterator[None]:
    """These models are so small that more threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folder of a made-up model as it would be published, by variant; not to be changed."""
    made: dict[str, Path] = {}

    def source(variant: str) -> Path:
        if variant not in made:
            made[variant] = tmp_path_factory.mktemp(variant)
            make_model(made[variant], VARIANTS[variant])
        return made[variant]

    return source


@pytest.fixture(scope="session")
def engines(sources: Callable[[str], Path]) -> Callable[[str], OfaEngine]:
    """Loaded engine of a made-up model, by variant."""
    loaded: dict[str, OfaEngine] = {}

    def engine(variant: str) -> OfaEngine:
        if variant not in loaded:
            loaded[variant] = load_source(sources(variant))
        return loaded[variant]

    return engine


@pytest.fixture(scope="session")
def plain(engines: Callable[[str], OfaEngine]) -> OfaEngine:
    """The ordinary made-up model."""
    return engines("plain")


@pytest.fixture
def publish(tmp_path: Path, sources: Callable[[str], Path]) -> Publish:
    """Publish a copy of the ordinary model with other keys in its configuration, and without some files."""

    def publish_copy(without: tuple[str, ...] = (), **changes: dict[str, object]) -> Path:
        folder = Path(tempfile.mkdtemp(prefix="published-", dir=tmp_path))
        for file in sources("plain").iterdir():
            if file.name not in without:
                os.link(file, folder / file.name)
        for part, keys in changes.items():
            _change(folder, part, keys)
        return folder

    return publish_copy


def _change(folder: Path, part: str, keys: dict[str, object]) -> None:
    """Change keys of one of the configuration's parts; None takes a key away."""
    path = folder / ("config.json" if part == "architecture" else "configuration.json")
    row: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    target = row["model"] if part == "model" else row
    for key, value in keys.items():
        target[key] = value
        if value is None:
            del target[key]
    path.unlink()  # the copy is a link: the original must not change
    path.write_text(json.dumps(row), encoding="utf-8")
