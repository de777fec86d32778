"""Reads the chunks of a WebP and keeps its first frame (RFC 9649)."""

from dataclasses import dataclass

from inference.runner.pictures.file import Kind, PictureFile, WebpLayout, unreadable

MAX_CHUNKS = 20_000
MAX_PROFILE_BYTES = 4 << 20
_FILE_HEADER, _CHUNK_HEADER = 12, 8
_FRAME_HEADER = 16  # bytes of ANMF before the frame's own chunks
_PICTURE_DATA = {b"VP8 ", b"VP8L", b"ALPH"}
_ALPHA_FLAG, _ANIMATION_FLAG = 0x10, 0x02


def is_webp(content: bytes) -> bool:
    """Whether the content begins like a WebP."""
    return content[:4] == b"RIFF" and content[8:12] == b"WEBP"


@dataclass(frozen=True, slots=True)
class _Frame:
    """The bitstream of a still picture or of one frame."""

    name: bytes  # b"VP8 " or b"VP8L"
    body: memoryview
    alpha: memoryview | None  # ALPH chunk of a lossy frame
    width: int
    height: int
    has_alpha: bool


def read_webp(content: bytes) -> PictureFile:
    """Read the header and the chunks of a WebP.

    Metadata that is broken is ignored. The data may be truncated: the decoder finds out.

    Raises:
        PictureRefused: the header is damaged.
    """
    view = memoryview(content)
    chunks = _list_chunks(view, _FILE_HEADER)
    extended = next((body for name, body in chunks if name == b"VP8X" and len(body) >= 10), None)  # noqa: PLR2004
    animated = next((body for name, body in chunks if name == b"ANMF" and len(body) > _FRAME_HEADER), None)
    is_animated = extended is not None and bool(extended[0] & _ANIMATION_FLAG) and animated is not None
    if is_animated and animated is not None and extended is not None:
        frame = _read_frame(_list_chunks(animated, _FRAME_HEADER))
        width, height = (int.from_bytes(extended[at : at + 3], "little") + 1 for at in (4, 7))
        essential = _write_animated(extended, animated, frame)
    else:
        frame = _read_frame(chunks)
        width, height = frame.width, frame.height
        essential = _write_still(frame)
    found = dict(reversed(chunks))
    profile = found.get(b"ICCP", b"")
    return PictureFile(
        Kind.WEBP,
        width,
        height,
        WebpLayout(frame.name == b"VP8L", frame.has_alpha or is_animated, frame.width * frame.height),
        essential,
        exif=bytes(found.get(b"EXIF", b"")),
        profile=bytes(profile) if len(profile) <= MAX_PROFILE_BYTES else b"",
        xmp=bytes(found.get(b"XMP ", b"")),
        is_animated=is_animated,
    )


def _list_chunks(view: memoryview, position: int) -> list[tuple[bytes, memoryview]]:
    """Names and contents of the chunks from a position on.

    Raises:
        PictureRefused: the picture data is truncated.
    """
    chunks: list[tuple[bytes, memoryview]] = []
    while position + _CHUNK_HEADER <= len(view) and len(chunks) < MAX_CHUNKS:
        length = int.from_bytes(view[position + 4 : position + 8], "little")
        start = position + _CHUNK_HEADER
        name = bytes(view[position : position + 4])
        if name in _PICTURE_DATA and start + length > len(view):
            raise unreadable(Kind.WEBP, "is truncated: it ends before the picture does")
        chunks.append((name, view[start : start + length]))
        position = start + length + (length & 1)
    return chunks


def _read_frame(chunks: list[tuple[bytes, memoryview]]) -> _Frame:
    alpha = None
    for name, body in chunks:
        if name == b"ALPH" and alpha is None:
            alpha = body
        elif name == b"VP8 ":
            if len(body) < 10 or bytes(body[3:6]) != b"\x9d\x01\x2a":  # noqa: PLR2004
                raise unreadable(Kind.WEBP, "is damaged: it does not begin with a key frame")
            width, height = (int.from_bytes(body[at : at + 2], "little") & 0x3FFF for at in (6, 8))
            return _check(_Frame(name, body, alpha, width, height, alpha is not None))
        elif name == b"VP8L":
            if len(body) < 5 or body[0] != 0x2F:  # noqa: PLR2004
                raise unreadable(Kind.WEBP, "is damaged: its lossless header is not valid")
            bits = int.from_bytes(body[1:5], "little")
            has_alpha = bool(bits >> 28 & 1)
            return _check(_Frame(name, body, None, (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1, has_alpha))
    raise unreadable(Kind.WEBP, "is damaged or truncated: it has no picture data")


def _check(frame: _Frame) -> _Frame:
    if not frame.width or not frame.height:
        raise unreadable(Kind.WEBP, "has no pixels")
    return frame


def _write_still(frame: _Frame) -> bytes:
    if frame.alpha is None:
        return _riff(_chunk(frame.name, frame.body))
    header = bytes([_ALPHA_FLAG, 0, 0, 0]) + (frame.width - 1).to_bytes(3, "little")
    header += (frame.height - 1).to_bytes(3, "little")
    return _riff(_chunk(b"VP8X", header), _chunk(b"ALPH", frame.alpha), _chunk(frame.name, frame.body))


def _write_animated(extended: memoryview, animated: memoryview, frame: _Frame) -> bytes:
    """The canvas with only the first frame."""
    header = bytes([_ALPHA_FLAG | _ANIMATION_FLAG, 0, 0, 0]) + bytes(extended[4:10])
    alpha = b"" if frame.alpha is None else _chunk(b"ALPH", frame.alpha)
    body = bytes(animated[:_FRAME_HEADER]) + alpha + _chunk(frame.name, frame.body)
    return _riff(_chunk(b"VP8X", header), _chunk(b"ANIM", bytes(6)), _chunk(b"ANMF", body))


def _chunk(name: bytes, body: bytes | memoryview) -> bytes:
    return b"".join([name, len(body).to_bytes(4, "little"), body, b"\0" * (len(body) & 1)])


def _riff(*chunks: bytes) -> bytes:
    length = 4 + sum(map(len, chunks))
    return b"".join([b"RIFF", length.to_bytes(4, "little"), b"WEBP", *chunks])
