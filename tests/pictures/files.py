"""Builds small picture files, whole and damaged, byte by byte."""

import struct
import zlib
from io import BytesIO

import numpy as np
from PIL import Image

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
ORIENTATION = 0x0112
SHORT = 3
Tag = tuple[int, int, int, bytes]  # number, type, count, value or offset


def draw(width: int = 48, height: int = 32) -> Image.Image:
    """Four colours, one in each quarter, so that every turn looks different."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[: height // 2, : width // 2] = (200, 30, 30)
    pixels[: height // 2, width // 2 :] = (30, 200, 30)
    pixels[height // 2 :, : width // 2] = (30, 30, 200)
    pixels[height // 2 :, width // 2 :] = (200, 200, 30)
    return Image.fromarray(pixels)


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    """A picture as a file."""
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def chunk(name: bytes, body: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(body, zlib.crc32(name)))


def png_header(width: int, height: int, depth: int = 8, colour: int = 2, interlace: int = 0) -> bytes:
    """The first chunk of a PNG."""
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace))


def insert_chunks(png: bytes, *chunks: bytes) -> bytes:
    """A PNG with more chunks after its header."""
    end = len(PNG_SIGNATURE) + 25
    return png[:end] + b"".join(chunks) + png[end:]


def segment(marker: int, body: bytes) -> bytes:
    """A segment of a JPEG."""
    return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body


def insert_segments(jpeg: bytes, *segments: bytes) -> bytes:
    """A JPEG with more segments after its start."""
    return jpeg[:2] + b"".join(segments) + jpeg[2:]


def exif(*tags: Tag, order: str = "<") -> bytes:
    """A TIFF structure with one directory."""
    mark = b"II*\0" if order == "<" else b"MM\0*"
    rows = b"".join(struct.pack(f"{order}HHI", number, kind, count) + value for number, kind, count, value in tags)
    return mark + struct.pack(f"{order}IH", 8, len(tags)) + rows + bytes(4)


def orientation(value: int, kind: int = SHORT, order: str = "<") -> Tag:
    """The tag of an orientation."""
    return ORIENTATION, kind, 1, struct.pack(f"{order}HH", value, 0)


def with_exif(image: Image.Image, kind: str, structure: bytes) -> bytes:
    """A file of any of the three formats with an EXIF structure, which may be broken."""
    plain = encode(image, kind, **({"lossless": True} if kind == "WEBP" else {}))
    if kind == "JPEG":
        return insert_segments(plain, segment(0xE1, b"Exif\0\0" + structure))
    if kind == "PNG":
        return insert_chunks(plain, chunk(b"eXIf", structure))
    header = bytes([0x08, 0, 0, 0]) + (image.width - 1).to_bytes(3, "little") + (image.height - 1).to_bytes(3, "little")
    parts = riff_chunk(b"VP8X", header) + plain[12:] + riff_chunk(b"EXIF", structure)
    return riff(parts)


def riff_chunk(name: bytes, body: bytes) -> bytes:
    """A chunk of a WebP."""
    return name + struct.pack("<I", len(body)) + body + b"\0" * (len(body) & 1)


def riff(chunks: bytes) -> bytes:
    """A WebP of these chunks."""
    return b"RIFF" + struct.pack("<I", len(chunks) + 4) + b"WEBP" + chunks
