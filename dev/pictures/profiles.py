"""Builds small ICC profiles, byte by byte (ICC.1:2001, version 2)."""

import struct
from collections.abc import Sequence

import numpy as np

_D50 = (0.9642, 1.0, 0.8249)
# Colourants adapted to D50.
_SRGB = ((0.4361, 0.2225, 0.0139), (0.3851, 0.7169, 0.0971), (0.1431, 0.0606, 0.7141))
_DISPLAY_P3 = ((0.5151, 0.2412, -0.0011), (0.2920, 0.6922, 0.0419), (0.1571, 0.0666, 0.7841))
_ADOBE_RGB = ((0.6097, 0.3111, 0.0195), (0.2053, 0.6257, 0.0609), (0.1492, 0.0632, 0.7446))


def rgb_profile(colourants: Sequence[tuple[float, float, float]], gamma: float) -> bytes:
    """A profile of three colourants and one exponent."""
    tags = {b"wtpt": _xyz(_D50)}
    for name, colourant in zip((b"rXYZ", b"gXYZ", b"bXYZ"), colourants, strict=True):
        tags[name] = _xyz(colourant)
    tags |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), _curve(gamma))
    return _profile(b"RGB ", b"XYZ ", tags)


def grey_profile(gamma: float) -> bytes:
    """A profile of one exponent."""
    return _profile(b"GRAY", b"XYZ ", {b"wtpt": _xyz(_D50), b"kTRC": _curve(gamma)})


def cmyk_profile() -> bytes:
    """A printer whose inks are dull: a table of the 16 corners, in Lab."""
    corners = np.array([[c, m, y, k] for c in (0, 1) for m in (0, 1) for y in (0, 1) for k in (0, 1)], float)
    rgb = (1 - 0.8 * corners[:, :3]) * (1 - 0.85 * corners[:, 3:])
    table = b"".join(bytes(_lab_bytes(row)) for row in rgb)
    ramp = bytes(range(256))
    identity = b"".join(struct.pack(">i", value) for value in (65536, 0, 0, 0, 65536, 0, 0, 0, 65536))
    lut = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + identity + ramp * 4 + table + ramp * 3
    return _profile(b"CMYK", b"Lab ", {b"wtpt": _xyz(_D50), b"A2B0": lut}, kind=b"prtr")


def _profile(space: bytes, connection: bytes, tags: dict[bytes, bytes], kind: bytes = b"mntr") -> bytes:
    tags = {b"desc": b"desc\0\0\0\0" + struct.pack(">I", 5) + b"test\0" + bytes(78), b"cprt": _text(b"none"), **tags}
    table, data, start = b"", b"", 128 + 4 + 12 * len(tags)
    for name, body in tags.items():
        table += name + struct.pack(">II", start + len(data), len(body))
        data += body + bytes(-len(body) % 4)
    body = struct.pack(">I", len(tags)) + table + data
    header = struct.pack(">I4sI4s4s4s", 128 + len(body), b"none", 0x02100000, kind, space, connection)
    header += struct.pack(">6H", 2020, 1, 1, 0, 0, 0) + b"acsp" + bytes(28)
    header += b"".join(struct.pack(">i", round(value * 65536)) for value in _D50)
    return header + bytes(128 - len(header)) + body


def _xyz(values: Sequence[float]) -> bytes:
    return b"XYZ \0\0\0\0" + b"".join(struct.pack(">i", round(value * 65536)) for value in values)


def _curve(gamma: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"


def _text(text: bytes) -> bytes:
    return b"text\0\0\0\0" + text + b"\0"


def _lab_bytes(rgb: np.ndarray) -> list[int]:
    linear = rgb**2.2
    xyz = np.array(_SRGB).T @ linear / np.array(_D50)
    root = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    lightness, a, b = 116 * root[1] - 16, 500 * (root[0] - root[1]), 200 * (root[1] - root[2])
    return [int(np.clip(round(value), 0, 255)) for value in (lightness * 255 / 100, a + 128, b + 128)]


PROFILES = {
    "sRGB": rgb_profile(_SRGB, 2.2),
    "Display P3": rgb_profile(_DISPLAY_P3, 2.2),
    "Adobe RGB": rgb_profile(_ADOBE_RGB, 2.2),
    "linear": rgb_profile(_SRGB, 1.0),
    "swapped": rgb_profile((_SRGB[1], _SRGB[0], _SRGB[2]), 2.2),  # red is green: nobody overlooks it
}
GREY_PROFILES = {"grey 2.2": grey_profile(2.2), "grey linear": grey_profile(1.0)}
