"""Strips, reduced decoding and the stock pipeline: each gives what decoding the whole picture would give."""

from io import BytesIO

import numpy as np
import pytest
from PIL import Image, ImageOps

from dev.pictures.kinds import every_kind
from dev.pictures.reduced import compare_pixels, drawn_pictures
from inference.runner.engines.base import Pixels
from inference.runner.pictures import colour, render
from inference.runner.pictures.decode import plan_picture
from inference.runner.pictures.decode import render as render_plan
from inference.runner.pictures.options import PictureOptions, Rendering
from tests.pictures.files import draw, encode, exif, orientation, with_exif

SIDE = 40
KINDS = dict(every_kind())
MANY = 10  # rows that a strip of test pictures has, about


def decode(content: bytes, options: PictureOptions, side: int = SIDE) -> Pixels:
    """A picture as the model gets it."""
    return np.asarray(render_plan(plan_picture(content, side, options), options.rendering))


@pytest.mark.filterwarnings("ignore:Palette images with Transparency")  # Pillow's, to the stock pipeline too
@pytest.mark.parametrize("name", KINDS)
def test_as_stock_is_bit_for_bit_the_pipeline(name: str) -> None:
    """Of every kind of picture: turn by EXIF, drop alpha, resize."""
    content = KINDS[name]()
    with Image.open(BytesIO(content)) as picture:
        stock = ImageOps.exif_transpose(picture).convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC)

    assert np.array_equal(decode(content, PictureOptions(rendering=Rendering.AS_STOCK)), np.asarray(stock))


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
def test_strips_give_what_the_whole_picture_gives(mode: str, turn: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to the rounding between both axes."""
    content = with_exif(_photo(300, 200).convert(mode), "PNG", exif(orientation(turn)))
    whole = decode(content, PictureOptions())
    for module in (render, colour):
        monkeypatch.setattr(module, "STRIP_PIXELS", 300 * MANY)

    strips = decode(content, PictureOptions())

    assert int(np.abs(strips.astype(int) - whole).max()) <= 3


@pytest.mark.parametrize("turn", range(1, 9))
def test_a_reduced_picture_is_aligned(turn: int) -> None:
    """A size that the reduction does not divide moves nothing, however the picture is turned."""
    content = with_exif(_photo(331, 333), "JPEG", exif(orientation(turn)))
    reduced = plan_picture(content, SIDE, PictureOptions())

    change = compare_pixels(content, SIDE)

    assert reduced.reduction == 4
    assert change.mean < 1.0, change


def test_reduced_decoding_changes_little() -> None:
    """The stated bounds of docs/pictures.md, on its set at a quarter of the size."""
    changes = {name: compare_pixels(content, 120) for name, content in drawn_pictures((481, 600, 961))}

    assert {name: change for name, change in changes.items() if change.reduction not in (2, 4)} == {}
    assert {name: change for name, change in changes.items() if change.highest > 20 or change.mean > 1.0} == {}


@pytest.mark.parametrize(
    ("size", "side", "reduction"),
    [
        ((959, 4000), 480, 1),
        ((1919, 4000), 480, 1),
        ((1920, 4000), 480, 2),
        ((3840, 4000), 480, 4),
        ((3840, 4000), 240, 8),
    ],
)
def test_reduction_leaves_twice_the_pixels_that_the_model_needs(
    size: tuple[int, int], side: int, reduction: int
) -> None:
    """On the shorter side; and never as stock, or where it is switched off."""
    content = encode(Image.new("L", size), "JPEG")

    assert plan_picture(content, side, PictureOptions()).reduction == reduction
    assert plan_picture(content, side, PictureOptions(may_reduce=False)).reduction == 1
    assert plan_picture(content, side, PictureOptions(rendering=Rendering.AS_STOCK)).reduction == 1


def _photo(width: int, height: int) -> Image.Image:
    """Soft and hard edges."""
    soft = draw(12, 8).resize((width, height), Image.Resampling.BICUBIC)
    soft.paste(Image.new("RGB", (width // 5, height // 5), (255, 255, 255)), (width // 2, height // 2))
    return soft
