"""Reads the chunks of a PNG and keeps those that decoding needs (PNG, third edition)."""

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from inference.runner.pictures.file import Kind, PictureFile, PictureRefused, PngLayout, unreadable

SIGNATURE = b"\x89PNG\r\n\x1a\n"
MAX_CHUNKS = 20_000  # libpng writes chunks of 8 KiB: 2,048 for 16 MiB
MAX_PROFILE_BYTES = 4 << 20
_CHECKSUM_BYTES = 4
_CHUNK = struct.Struct(">I4s")
_HEADER = struct.Struct(">IIBBBBB")
_GREY, _RGB, _PALETTE, _GREY_ALPHA, _RGB_ALPHA = 0, 2, 3, 4, 6
_CHANNELS = {_GREY: 1, _RGB: 3, _PALETTE: 1, _GREY_ALPHA: 2, _RGB_ALPHA: 4}
_DEPTHS = {
    _GREY: {1, 2, 4, 8, 16},
    _RGB: {8, 16},
    _PALETTE: {1, 2, 4, 8},
    _GREY_ALPHA: {8, 16},
    _RGB_ALPHA: {8, 16},
}
_TEXT_CHUNKS = {b"tEXt", b"zTXt", b"iTXt"}
_KEPT = {b"eXIf", b"iCCP", b"sRGB", b"gAMA", b"acTL", b"PLTE", b"tRNS", b"cICP"}  # the first of each
_GAMMA_UNIT = 100_000
_XMP, _TEXT_EXIF = b"XML:com.adobe.xmp", b"Raw profile type exif"
_MAX_TEXT_BYTES = 1 << 20


@dataclass(slots=True)
class _Chunks:
    """The chunks that matter, of one walk."""

    header: bytes = b""
    first: dict[bytes, bytes] = field(default_factory=dict)  # name → content
    texts: dict[bytes, bytes] = field(default_factory=dict)  # _XMP and _TEXT_EXIF
    data: list[memoryview] = field(default_factory=list)

    def add(self, name: bytes, body: memoryview, checksum: memoryview) -> None:
        """Keep a chunk if it matters.

        Raises:
            PictureRefused: a chunk is damaged that decoding needs.
        """
        if name == b"IDAT":
            self.data.append(body)
        elif not self.header:
            self.header = _read_header(name, body, checksum)
        elif name in _KEPT and name not in self.first:
            if _is_intact(name, body, checksum):
                self.first[name] = bytes(body)
            elif name == b"PLTE":
                raise unreadable(Kind.PNG, "is damaged: the checksum of its palette is wrong")
        elif name in _TEXT_CHUNKS:
            keyword, _, text = bytes(body[:_MAX_TEXT_BYTES]).partition(b"\0")
            if keyword in (_XMP, _TEXT_EXIF) and keyword not in self.texts:
                self.texts[keyword] = _read_text(name, text)


def read_png(content: bytes) -> PictureFile:
    """Read the header and the chunks of a PNG.

    A chunk that decoding does not need is ignored if it is broken. The data may be truncated: the decoder finds out.

    Raises:
        PictureRefused: the header is damaged, or there are more than MAX_CHUNKS.
    """
    chunks = _walk(content)
    width, height, depth, colour, compression, filtering, interlace = _HEADER.unpack(chunks.header)
    if depth not in _DEPTHS.get(colour, set()) or compression or filtering or interlace > 1:
        raise unreadable(Kind.PNG, "is damaged: its header has an unknown colour type, depth or method")
    if not width or not height:
        raise unreadable(Kind.PNG, "has no pixels")
    if not chunks.data:
        raise unreadable(Kind.PNG, "is truncated: it ends before its first data")
    if colour == _PALETTE and not chunks.first.get(b"PLTE"):
        raise unreadable(Kind.PNG, "is damaged: it has no palette")
    clear = chunks.first.get(b"tRNS", b"")
    key = _read_key(clear, colour)
    has_transparency = colour in (_GREY_ALPHA, _RGB_ALPHA) or bool(key) or (colour == _PALETTE and clear != b"")
    return PictureFile(
        Kind.PNG,
        width,
        height,
        PngLayout(depth, _CHANNELS[colour], bool(interlace), has_transparency, key),
        _write(chunks, colour),
        exif=chunks.first.get(b"eXIf", b""),
        profile=_inflate_profile(chunks.first.get(b"iCCP", b"")),
        xmp=chunks.texts.get(_XMP, b""),
        text_exif=_parse_hexadecimal(chunks.texts.get(_TEXT_EXIF, b"")),
        gamma=_read_gamma(chunks.first),
        is_animated=b"acTL" in chunks.first,
    )


def _walk(content: bytes) -> _Chunks:
    view = memoryview(content)
    chunks = _Chunks()
    position, count = len(SIGNATURE), 0
    while position + _CHUNK.size <= len(content):
        count += 1
        if count > MAX_CHUNKS:
            raise PictureRefused(f"the PNG file has more than {MAX_CHUNKS} chunks", reason="IMAGE_TOO_COSTLY")
        length, name = _CHUNK.unpack_from(content, position)
        start = position + _CHUNK.size
        position = start + length + _CHECKSUM_BYTES
        if name == b"IEND":
            break
        chunks.add(name, view[start : start + length], view[start + length : position])
    if not chunks.header:
        raise unreadable(Kind.PNG, "is truncated: it has no header")
    return chunks


def _is_intact(name: bytes, body: memoryview, checksum: memoryview) -> bool:
    return zlib.crc32(body, zlib.crc32(name)).to_bytes(_CHECKSUM_BYTES) == checksum


def _read_header(name: bytes, body: memoryview, checksum: memoryview) -> bytes:
    if name == b"CgBI":
        raise unreadable(Kind.PNG, "is of Apple's own kind (CgBI), which only iOS shows: send the original")
    if name != b"IHDR" or len(body) != _HEADER.size:
        raise unreadable(Kind.PNG, "is damaged: it does not begin with its header")
    if not _is_intact(name, body, checksum):
        raise unreadable(Kind.PNG, "is damaged: the checksum of its header is wrong")
    return bytes(body)


def _read_key(clear: bytes, colour: int) -> tuple[int, ...]:
    """The transparent colour of a grey or RGB file; () if there is none."""
    samples = {_GREY: 1, _RGB: 3}.get(colour, 0)
    if not samples or len(clear) < 2 * samples:
        return ()
    return struct.unpack_from(f">{samples}H", clear)


def _read_gamma(first: dict[bytes, bytes]) -> float:
    """The exponent in gAMA, where nothing better says what the samples mean; 0 if none."""
    if len(first.get(b"gAMA", b"")) != 4 or first.keys() & {b"sRGB", b"iCCP", b"cICP"}:  # noqa: PLR2004
        return 0.0
    return int.from_bytes(first[b"gAMA"]) / _GAMMA_UNIT


def _inflate_profile(chunk: bytes) -> bytes:
    """The ICC profile in an iCCP chunk; empty if it is broken or longer than MAX_PROFILE_BYTES."""
    return _inflate(chunk.partition(b"\0")[2][1:], MAX_PROFILE_BYTES)


def _inflate(packed: bytes, limit: int) -> bytes:
    try:
        unpack = zlib.decompressobj()
        data = unpack.decompress(packed, limit)
    except zlib.error:
        return b""
    return data if unpack.eof else b""


def _read_text(name: bytes, text: bytes) -> bytes:
    """The text of a chunk, from what follows its keyword."""
    if name == b"zTXt":
        return _inflate(text[1:], _MAX_TEXT_BYTES)
    if name == b"tEXt":
        return text
    is_packed, rest = text[:1] == b"\1", text[2:].split(b"\0", 2)  # iTXt: language and translated keyword come first
    plain = rest[2] if len(rest) == 3 else b""  # noqa: PLR2004
    return _inflate(plain, _MAX_TEXT_BYTES) if is_packed else plain


def _parse_hexadecimal(text: bytes) -> bytes:
    """The bytes in ImageMagick's profile text: three lines, then hexadecimal digits."""
    try:
        return bytes.fromhex("".join(text.decode("ascii").split("\n")[3:]))
    except ValueError:
        return b""


def _write(chunks: _Chunks, colour: int) -> bytes:
    """The file with its header, palette, transparency and data; the data as one chunk."""
    named: list[tuple[bytes, Sequence[bytes | memoryview]]] = [(b"IHDR", [chunks.header])]
    if colour == _PALETTE:
        named += [(name, [chunks.first[name]]) for name in (b"PLTE", b"tRNS") if name in chunks.first]
    parts: list[bytes | memoryview] = [SIGNATURE]
    for name, body in [*named, (b"IDAT", chunks.data), (b"IEND", [])]:
        checksum = zlib.crc32(name)
        parts.append(_CHUNK.pack(sum(map(len, body)), name))
        for piece in body:
            checksum = zlib.crc32(piece, checksum)
            parts.append(piece)
        parts.append(checksum.to_bytes(_CHECKSUM_BYTES))
    return b"".join(parts)
