"""Worlds for tests with real processes."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.updater.edges.world import World

MakeWorld = Callable[..., World]


@pytest.fixture(scope="module")
def shared_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A server that serves v1.0.0 and a hub, for all tests of a module."""
    world = World(tmp_path_factory.mktemp("world"), observe={"window_seconds": 1.0})
    try:
        world.start()
        yield world
        world.close()
    except BaseException:
        world.destroy()
        raise


@pytest.fixture
def world(shared_world: World) -> Iterator[World]:
    """The shared world with its updater ended, and afterwards a look whether everything is as it must be."""
    shared_world.calm()
    yield shared_world
    if shared_world.updater is not None and shared_world.updater.exit_code is None:
        shared_world.wait(lambda: shared_world.status().stage in (1, 9), "the updater rests")
        shared_world.wait(lambda: not shared_world.control.status().HasField("trial"), "no trial is left")
        shared_world.updater.stop()
    shared_world.check_invariants()


@pytest.fixture
def make_world(tmp_path: Path) -> Iterator[MakeWorld]:
    """Worlds of a test's own."""
    made: list[World] = []

    def make(**settings: Any) -> World:  # noqa: ANN401  of World
        folder = tmp_path / f"w{len(made)}"
        folder.mkdir()
        world = World(folder, **settings)
        made.append(world)
        return world

    yield make
    for world in made:
        world.destroy()
