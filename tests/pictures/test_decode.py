"""Pictures are recognised by content, limited before decoding, and refused without paths in messages."""

import random
import struct
import zlib
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from dev.parity.pictures import FOLDER, PICTURES
from inference.runner.engines.base import Pixels
from inference.runner.pictures.cost import PictureLimits
from inference.runner.pictures.decode import plan_picture, render
from inference.runner.pictures.file import PictureRefused
from inference.runner.pictures.options import PictureOptions, Rendering

SIZE = 32
LIMITS = PictureLimits()
LOSSY_HEADER = b"VP8 " + struct.pack("<I", 10) + b"\0\0\0\x9d\x01\x2a" + struct.pack("<HH", 16_383, 16_383)


def decode(content: bytes, limits: PictureLimits = LIMITS, rendering: Rendering = Rendering.AS_SEEN) -> Pixels:
    """A picture as the model gets it."""
    return np.asarray(render(plan_picture(content, SIZE, PictureOptions(limits, rendering)), rendering))


def picture(name: str) -> bytes:
    """A committed picture's file."""
    return (FOLDER / name).read_bytes()


def encoded(image: Image.Image, kind: str) -> bytes:
    """A picture as a file of some kind."""
    file = BytesIO()
    image.save(file, kind)
    return file.getvalue()


def refusal(content: bytes, limits: PictureLimits = LIMITS) -> PictureRefused:
    """The error that a caller gets for a picture."""
    with pytest.raises(PictureRefused) as caught:
        decode(content, limits)
    return caught.value


@pytest.mark.parametrize("name", PICTURES)
@pytest.mark.fault("I5")
def test_every_kind_of_picture_is_read(name: str) -> None:
    """Grey, palette, alpha, CMYK, 16-bit, one-bit and turned pictures all become RGB of the model's size."""
    pixels = decode(picture(name))

    assert (pixels.shape, pixels.dtype.name) == ((SIZE, SIZE, 3), "uint8")


@pytest.mark.fault("I5")
def test_camera_orientation_is_honoured() -> None:
    """The EXIF orientation is applied, as ModelScope's pipeline does with a file."""
    upright = Image.open(FOLDER / "turned.jpg").transpose(Image.Transpose.ROTATE_270)
    expected = np.asarray(upright.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BICUBIC))

    assert np.array_equal(expected, decode(picture("turned.jpg")))


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF", "PPM", "ICO"])
def test_other_formats_are_refused(kind: str) -> None:
    """A format other than JPEG, PNG or WebP is refused even if Pillow could read it."""
    error = refusal(encoded(Image.new("RGB", (16, 16)), kind))

    assert error.reason == "IMAGE_UNREADABLE"
    assert "a JPEG, PNG or WebP file is needed" in str(error)


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF\0\0\0\0WEBP", b"hello, world" * 9]
)
@pytest.mark.fault("I1")
def test_content_that_is_not_a_picture_is_refused(content: bytes) -> None:
    """Empty content, only a file signature, or text."""
    assert refusal(content).reason == "IMAGE_UNREADABLE"


@pytest.mark.parametrize("name", ["wide.jpg", "progressive.jpg", "colour.png", "lossless.webp", "alpha.webp"])
@pytest.mark.parametrize("kept", [0.3, 0.9])
@pytest.mark.fault("I2")
def test_truncated_pictures_are_refused(name: str, kept: float) -> None:
    """A truncated picture is the caller's error, not a picture with a grey part."""
    content = picture(name)

    error = refusal(content[: int(len(content) * kept)])

    assert error.reason == "IMAGE_UNREADABLE"


@pytest.mark.parametrize("name", PICTURES)
def test_damaged_pictures_are_decoded_or_refused(name: str) -> None:
    """Whatever bytes are flipped; no message contains a path."""
    chance = random.Random(name)
    for _ in range(40):
        content = bytearray(picture(name))
        for _ in range(8):
            content[chance.randrange(8, len(content))] = chance.randrange(256)
        message = ""
        try:
            decode(bytes(content))
        except PictureRefused as error:
            message = str(error)
        assert "/" not in message
        assert "0x" not in message


@pytest.mark.fault("I3")
def test_too_many_pixels_are_refused() -> None:
    """The limit on pixels is named and counts the whole picture."""
    error = refusal(picture("colour.png"), PictureLimits(max_pixels=9000))

    assert error.reason == "IMAGE_TOO_LARGE"
    assert "120 × 80" in str(error)
    assert "9000" in str(error)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.fault("I4")
def test_too_long_sides_are_refused(kind: str) -> None:
    """The limit on sides holds for every format."""
    error = refusal(encoded(Image.new("RGB", (400, 2)), kind), PictureLimits(max_side=399))

    assert error.reason == "IMAGE_TOO_LARGE"


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.fault("I4")
def test_a_single_pixel_is_a_picture(kind: str) -> None:
    """It fills the model's picture with its colour."""
    red = decode(encoded(Image.new("RGB", (1, 1), (255, 0, 0)), kind)).astype(int)

    assert red.shape == (SIZE, SIZE, 3)
    assert np.abs(red - (255, 0, 0)).max() <= 4


@pytest.mark.parametrize(("width", "height"), [(0, 0), (0, 5), (5, 0)])
@pytest.mark.fault("I4")
def test_a_picture_without_pixels_is_refused(width: int, height: int) -> None:
    """Its header is the one of no picture."""
    data = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    empty = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + data
    empty += struct.pack(">I", zlib.crc32(b"IHDR" + data))
    body = zlib.compress(b"\0" * max(1, height))
    empty += struct.pack(">I", len(body)) + b"IDAT" + body + struct.pack(">I", zlib.crc32(b"IDAT" + body))
    empty += struct.pack(">I", 0) + b"IEND" + struct.pack(">I", zlib.crc32(b"IEND"))

    assert refusal(empty).reason == "IMAGE_UNREADABLE"


@pytest.mark.fault("I3")
def test_a_decompression_bomb_is_refused_by_its_header() -> None:
    """A file of a hundred bytes that claims a gigapixel takes no memory and causes no warning."""
    header = struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    bomb = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    bomb += struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))

    assert refusal(bomb).reason == "IMAGE_TOO_LARGE"


@pytest.mark.parametrize(
    "first_chunk",
    [
        b"VP8X" + struct.pack("<I", 10) + b"\0\0\0\0" + (16_382).to_bytes(3, "little") * 2 + LOSSY_HEADER,
        b"VP8L" + struct.pack("<I", 10) + b"\x2f" + (16_383 | 16_383 << 14).to_bytes(4, "little") + b"\0" * 5,
        LOSSY_HEADER,
    ],
)
@pytest.mark.fault("I3")
def test_webp_bombs_are_refused_by_their_headers(first_chunk: bytes) -> None:
    """All three kinds of WebP have their size checked before a decoder allocates memory."""
    body = b"WEBP" + first_chunk

    assert refusal(b"RIFF" + struct.pack("<I", len(body)) + body).reason == "IMAGE_TOO_LARGE"
