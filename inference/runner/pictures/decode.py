"""Decodes a picture within limits, in this process."""

from dataclasses import dataclass

from PIL import Image

from inference.runner.pictures.content import name_content
from inference.runner.pictures.cost import (
    Cost,
    PictureLimits,
    check_cost,
    check_size,
    choose_reduction,
    estimate_cost,
)
from inference.runner.pictures.exif import UPRIGHT, read_orientation
from inference.runner.pictures.file import JpegLayout, PictureFile, PictureRefused, PngLayout, WebpLayout
from inference.runner.pictures.jpeg import SIGNATURE as JPEG_SIGNATURE
from inference.runner.pictures.jpeg import read_jpeg
from inference.runner.pictures.options import PictureOptions, Rendering
from inference.runner.pictures.png import SIGNATURE as PNG_SIGNATURE
from inference.runner.pictures.png import read_png
from inference.runner.pictures.render import render_as_seen, render_as_stock
from inference.runner.pictures.webp import is_webp, read_webp

_GREY, _CMYK = 1, 4  # components
_EIGHT_BITS = 8


@dataclass(frozen=True, slots=True)
class PicturePlan:
    """A picture that is within the limits."""

    file: PictureFile
    side: int
    reduction: int
    cost: Cost


def plan_picture(content: bytes, side: int, options: PictureOptions) -> PicturePlan:
    """Read a picture's header, estimate its cost and check both.

    Args:
        content: the caller's bytes.
        side: pixels a side of the result; the aspect ratio is not kept.
        options: how it is decoded, within which limits.

    Raises:
        PictureRefused: IMAGE_UNREADABLE, IMAGE_TOO_LARGE or IMAGE_TOO_COSTLY.
    """
    file = read_file(content, options.limits)
    check_size(file, options.limits)
    as_stock = options.rendering is Rendering.AS_STOCK
    reduction = choose_reduction(file, side) if options.may_reduce and not as_stock else 1
    cost = estimate_cost(file, side, reduction, converts=_converts(file, as_stock=as_stock), in_strips=not as_stock)
    check_cost(file, cost, options.limits)
    return PicturePlan(file, side, reduction, cost)


def read_file(content: bytes, limits: PictureLimits) -> PictureFile:
    """Read a picture's header.

    Raises:
        PictureRefused: the content is of another kind, its header is damaged, or it has too many scans.
    """
    if content.startswith(JPEG_SIGNATURE):
        return read_jpeg(content, limits.max_scans)
    if content.startswith(PNG_SIGNATURE):
        return read_png(content)
    if is_webp(content):
        return read_webp(content)
    raise PictureRefused(f"the content is {name_content(content)}; a JPEG, PNG or WebP file is needed")


def render(plan: PicturePlan, rendering: Rendering) -> Image.Image:
    """Decode a planned picture.

    Returns:
        (side, side), mode RGB.

    Raises:
        PictureRefused: the data is damaged or truncated, or takes more memory than there is.
    """
    try:
        if rendering is Rendering.AS_STOCK:
            return render_as_stock(plan.file, plan.side)
        return render_as_seen(plan.file, plan.side, plan.reduction)
    except MemoryError as error:
        message = f"decoding this {plan.file.kind} file takes more memory than a picture may"
        raise PictureRefused(message, reason="IMAGE_TOO_COSTLY") from error


def _converts(file: PictureFile, *, as_stock: bool) -> bool:
    """Whether the decoded pixels are turned or converted before they are resized."""
    if read_orientation(file.exif) != UPRIGHT or (file.gamma and not as_stock):
        return True
    match file.layout:
        case JpegLayout(components=components):
            return components == _CMYK or (as_stock and components == _GREY)
        case PngLayout(depth=depth, channels=channels, has_transparency=has_transparency):
            is_plain = depth == _EIGHT_BITS and not has_transparency
            return not is_plain or (as_stock and channels == _GREY)
        case WebpLayout(has_alpha=has_alpha):
            return has_alpha
