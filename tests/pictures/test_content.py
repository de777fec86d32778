"""A content that is no JPEG, PNG or WebP is named, so that the caller knows what to send instead."""

import base64

import pytest

from inference.runner.pictures.content import name_content
from inference.runner.pictures.cost import PictureLimits
from inference.runner.pictures.decode import read_file
from inference.runner.pictures.file import PictureRefused
from tests.pictures.files import draw, encode

JPEG, PNG = encode(draw(), "JPEG"), encode(draw(), "PNG")
NAMES = {
    "a HEIC file": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
    "a HEIF file": b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic",
    "an AVIF file": b"\0\0\0\x1cftypavif\0\0\0\0avifmif1",
    "a video (MP4 or MOV)": b"\0\0\0\x18ftypisom\0\0\2\0isomiso2",
    "a GIF file": encode(draw(), "GIF"),
    "a BMP file": encode(draw(), "BMP"),
    "a TIFF file (or a camera's raw file)": encode(draw(), "TIFF"),
    "an icon file (ICO)": encode(draw(), "ICO"),
    "a JPEG 2000 file": encode(draw(), "JPEG2000"),
    "a JPEG XL file": b"\xff\x0a\xfa\x7f\x01",
    "a PDF file": b"%PDF-1.7\n",
    "an SVG drawing": b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>',
    "HTML, perhaps an error page": b"\n<!DOCTYPE html>\n<html><head><title>404 Not Found</title>",
    "XML or HTML, perhaps an error message": b"<Error><Code>NoSuchKey</Code></Error>",
    "JSON": b'{"error": "not found"}',
    "base64 text: send the bytes that it encodes": base64.b64encode(JPEG),
    "a data: URL: send the bytes that it encodes": b"data:image/png;base64," + base64.b64encode(PNG),
    "a URL: send the bytes of the file": b"https://example.org/picture.jpg",
    "a git-lfs pointer: fetch the file itself (git lfs pull)": b"version https://git-lfs.github.com/spec/v1\noid",
    "a zip archive (or an Office document)": b"PK\3\4\x14\0",
    "gzip data": b"\x1f\x8b\x08\0",
    "a NumPy array: send an encoded file": b"\x93NUMPY\1\0",
    "the path of a file: send the bytes of the file": b"/srv/pictures/cat.jpg",
    "the text of a Python bytes literal: send the bytes": repr(JPEG).encode(),
    "hexadecimal text: send the bytes that it encodes": JPEG.hex().encode(),
    "a PNG file damaged by a transfer in text mode": PNG.replace(b"\r\n", b"\n"),
    "a PNG file that was decoded as text: send the bytes": PNG.decode("utf-8", errors="replace").encode(),
    "binary data that was decoded as text: send the bytes": JPEG.decode("utf-8", errors="replace").encode(),
    "a JPEG file that was encoded as UTF-8: send the bytes": JPEG.decode("latin-1").encode(),
    "a PNG file that was encoded as UTF-8: send the bytes": PNG.decode("latin-1").encode(),
    "nothing": b"",
    "only zero bytes": bytes(5000),
    "only blanks": b" \n\t ",
    "text": b"ein Bild von einem Hund",
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.fault("I1")
def test_the_content_is_named(name: str) -> None:
    """As the end of the sentence "the content is …"."""
    with pytest.raises(PictureRefused) as caught:
        read_file(NAMES[name], PictureLimits())

    assert caught.value.reason == "IMAGE_UNREADABLE"
    assert str(caught.value) == f"the content is {name}; a JPEG, PNG or WebP file is needed"


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (b"\n" + PNG, "a PNG file with 1 byte before it: send the file alone"),
        (b"\xef\xbb\xbf" + JPEG, "a JPEG file with 3 bytes before it: send the file alone"),
        (b"--x\r\nContent-Type: image/png\r\n\r\n" + PNG, "a PNG file with 32 bytes before it: send the file alone"),
        (b"undefined", "what a program writes for no picture (such as None or undefined)"),
        (b"[object Blob]", "what a program writes for no picture (such as None or undefined)"),
        (b"<PIL.Image.Image image mode=RGB size=3x3>", "the text of a Python object: send the file's bytes"),
        (b"RIFF\0\0\0\0WAVEfmt ", "an audio file (WAV)"),
        (bytes(257) + b"ustar", "a tar archive"),
        (bytes(128) + b"DICM", "a DICOM file"),
        (b"%!PS-Adobe-3.0 EPSF", "a PostScript file"),
        (b"BZh91AY&SY", "bzip2 data"),
        (b"\xef\xbb\xbf  <html>", "HTML, perhaps an error page"),
        (b"s3://bucket/cat.jpg", "a URL: send the bytes of the file"),
        (b"C:\\pictures\\cat.jpg", "the path of a file: send the bytes of the file"),
        (base64.encodebytes(PNG), "base64 text: send the bytes that it encodes"),
        (b'"' + base64.b64encode(JPEG) + b'"', "base64 text: send the bytes that it encodes"),
        ("多" * 3000, "text"),
        (b"BMW is a maker of cars", "text"),
        (b"the quick brown fox " * 200, "text"),
        (b"\0\1\2\3\4\5\6\7\x08", "of an unknown kind; it begins with the bytes 00 01 02 03 04 05 06 07"),
        (b"\xfe\xed", "of an unknown kind; it begins with the bytes fe ed"),
    ],
)
def test_similar_contents_are_told_apart(content: bytes | str, name: str) -> None:
    """A byte-order mark, other schemes, line breaks, quotes, text that is cut within a character."""
    assert name_content(content.encode() if isinstance(content, str) else content) == name
