"""The model sees of every kind of picture what a person sees, by the thumbnails of an independent renderer."""

from collections.abc import Callable

import pytest

from dev.pictures.kinds import every_kind
from dev.pictures.table import PAGE, Thumbnail, compare, read_table, see
from inference.runner.pictures.options import Rendering

KINDS = dict(every_kind())
MIN_KINDS = 150


@pytest.fixture(scope="module")
def table() -> dict[str, Thumbnail]:
    """What ImageMagick shows, by kind."""
    return read_table()


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.fault("I5")
def test_the_model_sees_what_a_person_sees(name: str, table: dict[str, Thumbnail]) -> None:
    """Within the stated tolerance: mode, depth, alpha, orientation, animation, profile, passes, format."""
    make: Callable[[], bytes] = KINDS[name]

    difference = compare(see(make()), table[name])

    assert difference.is_small, difference


def test_every_kind_is_on_the_page(table: dict[str, Thumbnail]) -> None:
    """The table has at least 150 kinds, and the page lists them all."""
    page = PAGE.read_text(encoding="utf-8")

    assert len(table) >= MIN_KINDS
    assert [name for name in KINDS if f"| {name} |" not in page] == []
    assert set(table) == set(KINDS)


@pytest.mark.parametrize("name", ["PNG grey 16 bit", "PNG RGB+alpha 8 bit", "JPEG RGB profile swapped"])
def test_the_stock_pipeline_sees_something_else(name: str, table: dict[str, Thumbnail]) -> None:
    """It clips 16 bits, drops alpha and ignores profiles: the comparison would notice."""
    assert not compare(see(KINDS[name](), Rendering.AS_STOCK), table[name]).is_small
