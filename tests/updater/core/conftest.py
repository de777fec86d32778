"""A world in which 1.0.0 is committed."""

import pytest

from tests.updater.core.world import World


@pytest.fixture
def empty() -> World:
    """Nothing is committed yet."""
    return World()


@pytest.fixture
def world() -> World:
    """1.0.0 is committed and serves."""
    world = World()
    world.install("1.0.0")
    return world
