"""What decoding may take: the numbers that docs/pictures.md and the proto tell."""

import pytest

from inference.runner.pictures.cost import PictureLimits, check_cost, estimate_cost
from inference.runner.pictures.file import Kind, PictureFile, PictureRefused, WebpLayout

SIDE = 480
BYTES_A_PIXEL = 0.15  # of a photograph's file


def check_webp(width: int, height: int, *, has_alpha: bool) -> None:
    """Estimate and check a WebP photograph of this size."""
    layout = WebpLayout(is_lossless=False, has_alpha=has_alpha, frame_pixels=width * height)
    file = PictureFile(Kind.WEBP, width, height, layout, bytes(int(BYTES_A_PIXEL * width * height)))
    cost = estimate_cost(file, SIDE, 1, converts=has_alpha, in_strips=True)
    check_cost(file, cost, PictureLimits())


@pytest.mark.parametrize(("has_alpha", "largest", "too_large"), [(False, 13, 14), (True, 12, 13)])
def test_a_webp_is_accepted_up_to_about_13_megapixels(has_alpha: bool, largest: int, too_large: int) -> None:  # noqa: FBT001
    """A larger one is told what else can be sent."""
    check_webp(4000, largest * 250, has_alpha=has_alpha)
    with pytest.raises(PictureRefused) as caught:
        check_webp(4000, too_large * 250, has_alpha=has_alpha)
    assert caught.value.reason == "IMAGE_TOO_COSTLY"
    assert str(caught.value).endswith("; the limit is 272 MiB; as a JPEG it takes a fraction")
