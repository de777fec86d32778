"""Metadata turns a picture where a viewer would turn it; broken metadata never refuses a whole picture."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from inference.runner.engines.base import Pixels
from inference.runner.pictures.decode import plan_picture, render
from inference.runner.pictures.exif import read_orientation
from inference.runner.pictures.file import PictureRefused
from inference.runner.pictures.options import PictureOptions, Rendering
from tests.pictures.files import (
    ORIENTATION,
    SHORT,
    chunk,
    draw,
    encode,
    exif,
    insert_chunks,
    insert_segments,
    orientation,
    segment,
    with_exif,
)

SIDE = 24
CASES = Path(__file__).with_name("cases")  # whole pictures that were refused, and small ones that took long
KINDS = ("JPEG", "PNG", "WEBP")
RATIONAL, ASCII, UNDEFINED = 5, 2, 7
BROKEN = {
    "garbage": b"garbage!" * 3,
    "only the mark": b"II*\0",
    "a directory beyond the end": b"MM\0*" + struct.pack(">I", 9999),
    "a directory that is cut": b"II*\0" + struct.pack("<IH", 8, 40) + b"\0" * 20,
    "empty": b"",
}
ODD_TAGS = {
    "a rational beyond the end": (0x011A, RATIONAL, 1, struct.pack("<I", 0xFFFFFFF0)),
    "text in place of a number": (0x0128, ASCII, 4, b"abc\0"),
    "an unknown type": (0x0128, 99, 1, b"\0\0\0\0"),
    "four thousand million values": (0x8769, SHORT, 0xFFFFFFFF, b"\0\0\0\0"),
}


def decode(content: bytes, rendering: Rendering = Rendering.AS_SEEN) -> Pixels:
    """A picture as the model gets it."""
    return np.asarray(render(plan_picture(content, SIDE, PictureOptions(rendering=rendering)), rendering))


def looks_like(pixels: Pixels, expected: Image.Image) -> bool:
    """Whether the middles of the quarters have the same colours."""
    small = np.asarray(expected.resize((SIDE, SIDE), Image.Resampling.BICUBIC)).astype(int)
    spots = [SIDE // 4, 3 * SIDE // 4]
    return bool(np.abs(small[np.ix_(spots, spots)] - pixels[np.ix_(spots, spots)]).max() < 12)


@pytest.mark.parametrize("rendering", Rendering)
@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.fault("I5")
def test_every_orientation_is_applied(kind: str, turn: int, rendering: Rendering) -> None:
    """In all three formats, as a browser does it, and as Pillow does it."""
    content = with_exif(draw(), kind, exif(orientation(turn)))
    tagged = draw()
    tagged.getexif()[ORIENTATION] = turn
    expected = ImageOps.exif_transpose(tagged)

    assert looks_like(decode(content, rendering), expected)


@pytest.mark.parametrize("rendering", Rendering)
@pytest.mark.parametrize("odd", ODD_TAGS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.fault("I5")
def test_an_odd_tag_beside_the_orientation_is_ignored(kind: str, odd: str, rendering: Rendering) -> None:
    """The orientation is applied although Pillow cannot read the rest."""
    content = with_exif(draw(), kind, exif(ODD_TAGS[odd], orientation(6)))

    assert looks_like(decode(content, rendering), draw().transpose(Image.Transpose.ROTATE_270))


@pytest.mark.parametrize("rendering", Rendering)
@pytest.mark.parametrize("broken", BROKEN)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.fault("I5")
def test_broken_exif_is_ignored(kind: str, broken: str, rendering: Rendering) -> None:
    """The picture is shown as it is stored."""
    assert looks_like(decode(with_exif(draw(), kind, BROKEN[broken]), rendering), draw())


@pytest.mark.parametrize(
    ("kind", "order", "expected"),
    [(SHORT, "<", 6), (SHORT, ">", 6), (8, "<", 6), (4, "<", 6), (1, "<", 6), (ASCII, "<", 1), (RATIONAL, "<", 1)],
)
def test_orientations_of_any_whole_number_type_are_read(kind: int, order: str, expected: int) -> None:
    """Programs write it as short, long or byte, signed or not."""
    value = {1: b"\6\0\0\0", 4: b"\6\0\0\0"}.get(kind, struct.pack(f"{order}HH", 6, 0))

    assert read_orientation(exif((ORIENTATION, kind, 1, value), order=order)) == expected


@pytest.mark.parametrize("value", [0, 9, 255])
def test_orientations_that_do_not_exist_are_ignored(value: int) -> None:
    """The picture stays as it is stored."""
    assert read_orientation(exif(orientation(value))) == 1


BOMB = zlib.compress(bytes(64 << 20), 9)
BROKEN_PARTS = {
    "a zTXt that is no zlib stream": lambda: insert_chunks(png(), chunk(b"zTXt", b"Comment\0\0garbage")),
    "a zTXt of 64 MiB": lambda: insert_chunks(png(), chunk(b"zTXt", b"Comment\0\0" + BOMB)),
    "an iCCP of 64 MiB": lambda: insert_chunks(png(), chunk(b"iCCP", b"x\0\0" + BOMB)),
    "an iCCP that is garbage": lambda: insert_chunks(png(), chunk(b"iCCP", b"garbage")),
    "a wrong checksum of a text": lambda: insert_chunks(png(), chunk(b"tEXt", b"a\0b")[:-1] + b"?"),
    "an iTXt that is no UTF-8": lambda: insert_chunks(png(), chunk(b"iTXt", b"a\0\0\0\0\0\xff\xfe")),
    "a pHYs of no bytes": lambda: insert_chunks(png(), chunk(b"pHYs", b"")),
    "an acTL of no bytes": lambda: insert_chunks(png(), chunk(b"acTL", b"")),
    "an fcTL that is cut": lambda: insert_chunks(png(), chunk(b"fcTL", b"\0\0")),
    "text profiles": lambda: insert_chunks(png(), chunk(b"zTXt", b"Raw profile type exif\0\0" + BOMB)),
    "no end": lambda: png()[:-12],
    "bytes after the end": lambda: png() + b"more" * 9,
    "a JFIF header that is cut": lambda: insert_segments(jpeg(), segment(0xE0, b"JFIF\0")),
    "a profile of which a part is missing": lambda: insert_segments(
        jpeg(), segment(0xE2, b"ICC_PROFILE\0\1\3" + b"x" * 200)
    ),
    "a Photoshop block that is cut": lambda: insert_segments(jpeg(), segment(0xED, b"Photoshop 3.0\0" + b"8BIM\3\xed")),
    "a second picture behind the first": lambda: jpeg() + jpeg(),
    "an index of pictures that is garbage": lambda: insert_segments(jpeg(), segment(0xE2, b"MPF\0garbage")),
    "a chunk that is cut": lambda: webp() + b"XMP \xff\xff\xff\x7fcut",
    "a size in the file's header that is wrong": lambda: webp()[:4] + b"\xff\xff\xff\x7f" + webp()[8:],
}


@pytest.mark.parametrize("rendering", Rendering)
@pytest.mark.parametrize("broken", BROKEN_PARTS)
@pytest.mark.fault("I5")
def test_broken_parts_that_decoding_does_not_need_are_ignored(broken: str, rendering: Rendering) -> None:
    """Whatever optional part of a file is broken, the whole picture is shown."""
    assert looks_like(decode(BROKEN_PARTS[broken](), rendering), draw())


@pytest.mark.parametrize("name", sorted(path.name for path in CASES.iterdir() if path.name[0].isdigit()))
@pytest.mark.parametrize("rendering", Rendering)
@pytest.mark.fault("I5")
def test_whole_pictures_that_were_refused_are_shown(name: str, rendering: Rendering) -> None:
    """Pictures with one odd tag or a garbage block that browsers show."""
    assert decode((CASES / name).read_bytes(), rendering).shape == (SIDE, SIDE, 3)


def test_one_transparent_picture_in_two_formats_looks_the_same() -> None:
    """The hidden pixels below the transparent part differ; nobody sees them."""
    png, webp = (decode((CASES / name).read_bytes()) for name in ("54-rgba-transparent-bg.png", "92-webp-alpha.webp"))

    assert int(np.abs(png.astype(int) - webp).max()) <= 2


@pytest.mark.parametrize("kept", [0.5, 0.9, 0.99])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.fault("I2")
def test_truncated_pictures_are_refused(kind: str, kept: float) -> None:
    """However little is missing of the pixels; the message says what happened."""
    noise = Image.effect_noise((64, 64), 80).convert("RGB")
    content = encode(noise, kind)

    with pytest.raises(PictureRefused) as caught:
        decode(content[: int(len(content) * kept)])

    assert caught.value.reason == "IMAGE_UNREADABLE"
    assert "truncated" in str(caught.value)


def png() -> bytes:
    """A plain file."""
    return encode(draw(), "PNG")


def jpeg() -> bytes:
    """A plain file."""
    return encode(draw(), "JPEG", quality=95, subsampling=0)


def webp() -> bytes:
    """A plain file."""
    return encode(draw(), "WEBP", lossless=True)
