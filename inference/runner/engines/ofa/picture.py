"""Decodes a caller's picture: JPEG, PNG or WebP by content, with limits checked before decoding."""

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
_WEBP_HEADER_BYTES = 10  # of each of the three kinds of first chunk


@dataclass(frozen=True, slots=True)
class PictureLimits:
    """Largest picture that is decoded."""

    max_pixels: int = DEFAULT_MAX_PIXELS
    max_side: int = DEFAULT_MAX_SIDE  # pixels


def decode(content: bytes, size: int, limits: PictureLimits) -> Pixels:
    """Decode a picture and resize it to the model's input size.

    Applies the EXIF orientation and drops alpha, as ModelScope's pipeline does with a file.

    Args:
        content: a JPEG, PNG or WebP file; only the first frame is used.
        size: pixels a side of the result; the aspect ratio is not kept.
        limits: checked against the file's header before decoding.

    Returns:
        (size, size, 3) uint8, RGB.

    Raises:
        InputRefused: IMAGE_UNREADABLE or IMAGE_TOO_LARGE.
    """
    reader = _choose_reader(content)
    if reader is WebPImageFile:
        # Pillow's WebP reader allocates all pixels before it reports their number.
        _check_size(_read_webp_size(content), limits)
    try:
        with reader(BytesIO(content)) as picture:
            _check_size(picture.size, limits)
            upright = ImageOps.exif_transpose(picture).convert("RGB")
            return np.array(upright.resize((size, size), Image.Resampling.BICUBIC), dtype=np.uint8)
    except (InputRefused, MemoryError):
        raise
    except Exception as error:  # Pillow's readers raise many kinds of errors on malformed files
        raise _unreadable("the picture is damaged or truncated") from error


def _choose_reader(content: bytes) -> Callable[[BytesIO], ImageFile]:
    """Choose Pillow's reader by the file's first bytes.

    `Image.open` is not used because its limit on pixels is a process-wide global that only warns.
    """
    if content.startswith(b"\xff\xd8\xff"):
        return JpegImageFile
    if content.startswith(b"\x89PNG\r\n\x1a\n"):
        return PngImageFile
    if content.startswith(_RIFF) and content[8:12] == _WEBP:
        return WebPImageFile
    raise _unreadable("the content is not a JPEG, PNG or WebP file")


def _check_size(size: tuple[int, int], limits: PictureLimits) -> None:
    width, height = size
    if max(width, height) > limits.max_side or width * height > limits.max_pixels:
        message = (
            f"the picture has {width} × {height} pixels; the limits are {limits.max_side} a side"
            f" and {limits.max_pixels} in all"
        )
        raise InputRefused(message, reason="IMAGE_TOO_LARGE", field=FIELD)


def _read_webp_size(content: bytes) -> tuple[int, int]:
    """Width and height in pixels from the header of the first chunk (RFC 9649)."""
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
