"""A hub with one revision for every test that asks for it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from dev.harness.hub import Hub, hub


@pytest.fixture
def serving(tmp_path: Path) -> Iterator[Hub]:
    """A hub that has v1.0.0."""
    with hub(tmp_path) as made:
        made.publish("v1.0.0")
        yield made
