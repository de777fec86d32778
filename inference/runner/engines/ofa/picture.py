"""A caller's bytes to pixels: only JPEG, PNG and WebP, known by their content, and bounded before decoding."""

from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from common.errors import InputRefused
from inference.runner.engines.base import DEFAULT_MAX_PIXELS, DEFAULT_MAX_SIDE

FIELD = "image.content"
Pixels = NDArray[np.uint8]
_RIFF, _WEBP = b"RIFF", b"WEBP"
_WEBP_HEADER_BYTES = 10  # of any of its three kinds of first chunk


@dataclass(frozen=True, slots=True)
class PictureLimits:
    """Largest picture that is decoded."""

    max_pixels: int = DEFAULT_MAX_PIXELS
    max_side: int = DEFAULT_MAX_SIDE  # pixels


def decode(content: bytes, size: int, limits: PictureLimits) -> Pixels:
    """Decode a picture and bring it to the model's size.

    The camera's orientation is honoured and alpha dropped, as the stock pipeline does with a file.

    Args:
        content: a JPEG, PNG or WebP file; of several frames the first counts.
        size: pixels a side of the result, whatever the picture's proportions.
        limits: checked against the file's header, before anything is decoded.

    Returns:
        (size, size, 3) uint8, RGB.

    Raises:
        InputRefused: IMAGE_UNREADABLE or IMAGE_TOO_LARGE.
    """
    reader = _reader_for(content)
    if reader is WebPImageFile:
        # Its reader takes memory for all pixels before it says how many they are.
        _check_size(_webp_size(content), limits)
    try:
        with reader(BytesIO(content)) as picture:
            _check_size(picture.size, limits)
            upright = ImageOps.exif_transpose(picture).convert("RGB")
            return np.array(upright.resize((size, size), Image.Resampling.BICUBIC), dtype=np.uint8)
    except (InputRefused, MemoryError):
        raise
    except Exception as error:  # readers of foreign bytes trip over them in every way there is
        raise _unreadable("the picture is damaged or truncated") from error


def _reader_for(content: bytes) -> Callable[[BytesIO], ImageFile]:
    """Choose Pillow's reader by the file's first bytes.

    `Image.open` would do, but its own guard against huge pictures is a global with warnings.
    """
    if content.startswith(b"\xff\xd8\xff"):
        return JpegImageFile
    if content.startswith(b"\x89PNG\r\n\x1a\n"):
        return PngImageFile
    if content.startswith(_RIFF) and content[8:12] == _WEBP:
        return WebPImageFile
    raise _unreadable("the content is no JPEG, PNG or WebP file")


def _check_size(size: tuple[int, int], limits: PictureLimits) -> None:
    width, height = size
    if max(width, height) > limits.max_side or width * height > limits.max_pixels:
        message = (
            f"the picture has {width} × {height} pixels; the limits are {limits.max_side} a side"
            f" and {limits.max_pixels} in all"
        )
        raise InputRefused(message, reason="IMAGE_TOO_LARGE", field=FIELD)


def _webp_size(content: bytes) -> tuple[int, int]:
    """Width and height in pixels, from the header of the first chunk."""
    kind, body = content[12:16], content[20:30]
    if len(body) < _WEBP_HEADER_BYTES:
        raise _unreadable("the picture is damaged or truncated")
    if kind == b"VP8X":
        return int.from_bytes(body[4:7], "little") + 1, int.from_bytes(body[7:10], "little") + 1
    if kind == b"VP8L":
        bits = int.from_bytes(body[1:5], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8 ":
        return int.from_bytes(body[6:8], "little") & 0x3FFF, int.from_bytes(body[8:10], "little") & 0x3FFF
    raise _unreadable("the picture is damaged or truncated")


def _unreadable(message: str) -> InputRefused:
    return InputRefused(message, reason="IMAGE_UNREADABLE", field=FIELD)
