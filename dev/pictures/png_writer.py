"""Writes PNG files of every colour type, depth and interlacing, which Pillow cannot (PNG, third edition)."""

import struct
import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

SIGNATURE = b"\x89PNG\r\n\x1a\n"
GREY, RGB, PALETTE, GREY_ALPHA, RGB_ALPHA = 0, 2, 3, 4, 6
# First column and row, then steps, of each of Adam7's passes.
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
Samples = NDArray[np.uint16]  # (rows, columns, channels)


def chunk(name: bytes, body: bytes) -> bytes:
    """A chunk with its length and checksum."""
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(body, zlib.crc32(name)))


def write_png(
    samples: Samples, depth: int, colour: int, *, is_interlaced: bool = False, before_data: Sequence[bytes] = ()
) -> bytes:
    """A PNG file.

    Args:
        samples: at the file's depth, or palette indices; as many channels as the colour type has.
        depth: bits a sample.
        colour: colour type.
        is_interlaced: by Adam7.
        before_data: further chunks, for example a palette.
    """
    rows, columns, _ = samples.shape
    header = struct.pack(">IIBBBBB", columns, rows, depth, colour, 0, 0, int(is_interlaced))
    passes = [samples[top::down, left::right] for left, top, right, down in _ADAM7] if is_interlaced else [samples]
    data = b"".join(_pack(part, depth) for part in passes if part.size)
    parts = [chunk(b"IHDR", header), *before_data, chunk(b"IDAT", zlib.compress(data)), chunk(b"IEND", b"")]
    return SIGNATURE + b"".join(parts)


def _pack(samples: Samples, depth: int) -> bytes:
    """Rows, each filtered by another of the five filters."""
    unit = max(1, samples.shape[2] * depth // 8)
    rows = [_pack_row(row.reshape(-1), depth) for row in samples]
    packed, above = [], np.zeros(len(rows[0]), np.int64)
    for number, data in enumerate(rows):
        row = np.frombuffer(data, np.uint8).astype(np.int64)
        left, corner = (np.concatenate([np.zeros(unit, np.int64), line[:-unit]]) for line in (row, above))
        kind = number % 5
        predicted = (0 * row, left, above, (left + above) // 2, _paeth(left, above, corner))[kind]
        packed.append(bytes([kind]) + ((row - predicted) % 256).astype(np.uint8).tobytes())
        above = row
    return b"".join(packed)


def _pack_row(row: NDArray[np.uint16], depth: int) -> bytes:
    if depth == 16:
        return row.astype(">u2").tobytes()
    if depth == 8:
        return row.astype(np.uint8).tobytes()
    bits = (row[:, None] >> np.arange(depth - 1, -1, -1)) & 1
    return np.packbits(bits.astype(np.uint8).reshape(-1)).tobytes()


def _paeth(left: NDArray[np.int64], above: NDArray[np.int64], corner: NDArray[np.int64]) -> NDArray[np.int64]:
    estimate = left + above - corner
    distances = [np.abs(estimate - one) for one in (left, above, corner)]
    by_above = np.where(distances[1] <= distances[2], above, corner)
    return np.where((distances[0] <= distances[1]) & (distances[0] <= distances[2]), left, by_above)
