"""The wheel is built once for all tests of it."""

from pathlib import Path

import pytest

from tests.install.environments import Environment, build_distribution


@pytest.fixture(scope="session")
def distribution(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The wheel and the source archive."""
    return build_distribution(tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="session")
def wheel(distribution: tuple[Path, Path]) -> Path:
    """The wheel."""
    return distribution[0]


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    """A fresh environment without hotslot."""
    return Environment(tmp_path / "env")


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> Environment:
    """An environment with hotslot and nothing else, for tests that change nothing in it."""
    environment = Environment(tmp_path_factory.mktemp("installed") / "env")
    environment.install(wheel)
    return environment
