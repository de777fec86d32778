"""Target: pictures of all formats, whole and damaged, from the first byte to the model's pixels, in one process."""

import time
import warnings
import zlib
from collections.abc import Sequence
from functools import cache

from PIL import Image, ImageCms

from inference.runner.pictures import render as render_module
from inference.runner.pictures.channel import OVERRUN_FACTOR, RESPONSE, unpack_response
from inference.runner.pictures.content import name_content
from inference.runner.pictures.cost import STRIP_PIXELS, PictureLimits
from inference.runner.pictures.decode import PicturePlan, plan_picture, render
from inference.runner.pictures.file import JpegLayout, PictureRefused, PngLayout
from inference.runner.pictures.options import PictureOptions, Rendering
from tests.fuzz.source import Source
from tests.pictures.files import PNG_SIGNATURE, chunk, draw, encode, exif, png_header, riff, riff_chunk, segment

_LIMITS = PictureLimits(max_pixels=1 << 16, max_side=2000, max_scans=20, max_seconds=0.2, max_memory_bytes=24 << 20)
_SLACK_SECONDS = 0.3  # of CPU time, beside what the estimate permits
_REASONS = {"IMAGE_UNREADABLE", "IMAGE_TOO_LARGE", "IMAGE_TOO_COSTLY"}
_SIDES = (0, 1, 2, 7, 8, 9, 31, 200, 2001, 65535)
_CHUNKS = (
    b"PLTE",
    b"tRNS",
    b"gAMA",
    b"sRGB",
    b"iCCP",
    b"eXIf",
    b"acTL",
    b"fcTL",
    b"fdAT",
    b"tEXt",
    b"zTXt",
    b"iTXt",
    b"IHDR",
    b"IEND",
    b"abcd",
)
_MARKERS = (0xC0, 0xC2, 0xC4, 0xC9, 0xCC, 0xD0, 0xD9, 0xDA, 0xDB, 0xDC, 0xDD, 0xE0, 0xE1, 0xE2, 0xEE, 0xFE, 0xFF)
_STARTS = (
    *(
        b"",
        b"\xff\xd8\xff",
        b"RIFF\0\0\0\0WEBP",
        b"GIF89a",
        b"\0\0\0\x18ftypheic",
        b"<!DOCTYPE html>",
        b"/9j/",
        b"iVBORw0KGgo",
    ),
    *(
        b"data:image/png;base64,",
        b"version https://git-lfs.github.com/spec/v1\n",
        b"%PDF-",
        b"BM\0\0\0\0\0\0\0\0",
        b"\xef\xbf\xbdPNG",
    ),
    *(b"II*\0", b"http://", b"{", b"b'\\x89PNG", b"/tmp/", b"\0" * 8, b"PK\x03\x04", "日本".encode(), b"ffd8ff"),
)


def check(data: bytes) -> None:
    """Plan a picture, and render it if it is within the limits."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as in a decoder process
        try:
            _check(Source(data))
        finally:
            render_module.STRIP_PIXELS = STRIP_PIXELS  # type: ignore[attr-defined]


def _check(source: Source) -> None:
    # With fewer, a small picture has several strips.
    render_module.STRIP_PIXELS = source.choose((STRIP_PIXELS, 100))  # type: ignore[attr-defined]
    rendering, may_reduce = source.choose(tuple(Rendering)), source.is_one_in(2)
    side = source.choose((8, 1, 33))
    content = source.choose((_png, _png, _jpeg, _jpeg, _webp, _webp, _other))(source)
    began = time.thread_time()
    plan = _plan(content, side, PictureOptions(_LIMITS, rendering, may_reduce))
    if plan is not None:
        image = _render(plan, rendering)
        if image is not None and _is_plain(plan):
            other = _render(plan, Rendering.AS_SEEN if rendering is Rendering.AS_STOCK else Rendering.AS_STOCK)
            assert other is not None
            assert image.tobytes() == other.tobytes(), "a picture without anything special looks the same to both"
    assert time.thread_time() - began < 3 * _SLACK_SECONDS


def _plan(content: bytes, side: int, options: PictureOptions) -> PicturePlan | None:
    try:
        plan = plan_picture(content, side, options)
    except PictureRefused as refusal:
        _check_refusal(refusal)
        return None
    assert 0 < plan.file.pixels <= _LIMITS.max_pixels
    assert len(plan.file.essential) <= len(content) + 200, "nothing is added but empty chunks"
    return plan


def _render(plan: PicturePlan, rendering: Rendering) -> Image.Image | None:
    began = time.thread_time()
    try:
        image = render(plan, rendering)
    except PictureRefused as refusal:
        _check_refusal(refusal)
        image = None
    assert time.thread_time() - began < OVERRUN_FACTOR * plan.cost.seconds + _SLACK_SECONDS
    assert image is None or (image.size, image.mode) == ((plan.side, plan.side), "RGB")
    return image


def _check_refusal(refusal: PictureRefused) -> None:
    message = str(refusal)
    assert refusal.reason in _REASONS
    assert message.isprintable(), ascii(message)
    assert len(message) < 300


def _is_plain(plan: PicturePlan) -> bool:
    file = plan.file
    if file.exif or file.xmp or file.text_exif or file.profile or file.gamma or plan.reduction > 1:
        return False
    match file.layout:
        case PngLayout(depth=8, channels=3, has_transparency=False) | JpegLayout(components=3):
            return True
        case _:
            return False


def _png(source: Source) -> bytes:
    """Chunks with right checksums, most of them where they belong."""
    width, height = _size(source)
    depth, colour = source.choose((8, 16, 1, 2, 4, 3)), source.choose((2, 0, 3, 4, 6, 1))
    interlace = source.choose((0, 1, 2)) if source.is_one_in(4) else 0
    parts = [png_header(width, height, depth, colour, interlace)]
    if colour == 3 or source.is_one_in(6):
        parts.append(chunk(b"PLTE", source.take(48)))
    parts += [_odd_chunk(source) for _ in range(source.integer(0, 3))]
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}.get(colour, 1)
    row = -(-width * channels * depth // 8) + 1
    raw = source.take(200) if source.is_one_in(3) else b""
    packed = zlib.compress((raw + bytes(min(row * height, 300_000)))[: min(row * height, 300_000)], 1)
    cut = source.integer(0, len(packed)) if source.is_one_in(4) else len(packed)
    parts += [chunk(b"IDAT", packed[:cut]), *[_odd_chunk(source) for _ in range(source.integer(0, 2))]]
    parts += [chunk(b"IDAT", packed[cut:]), chunk(b"IEND", b"")]
    return _damage(source, PNG_SIGNATURE + b"".join(parts))


def _odd_chunk(source: Source) -> bytes:
    name = source.choose(_CHUNKS)
    bodies = {b"eXIf": _exif, b"iCCP": _packed_profile, b"zTXt": _packed_text, b"iTXt": _packed_text}
    body = bodies.get(name, _take_some)(source)
    whole = chunk(name, body)
    return whole if not source.is_one_in(8) else whole[:-1] + b"?"


def _take_some(source: Source) -> bytes:
    return source.take(40)


def _jpeg(source: Source) -> bytes:
    """An encoded picture with more segments, some of them odd."""
    plain = source.choose(_samples("JPEG"))
    place = source.choose((2, 2, plain.find(b"\xff\xda"), plain.find(b"\xff\xc4"), len(plain) - 2))
    added = b"".join(_segment(source) for _ in range(source.integer(0, 4)))
    return _damage(source, plain[:place] + added + plain[place:])


def _segment(source: Source) -> bytes:
    marker = source.choose(_MARKERS)
    starts = {
        0xE1: (b"Exif\0\0" + _exif(source), b"http://ns.adobe.com/xap/1.0/\0"),
        0xE2: (b"ICC_PROFILE\0\x01\x01" + _profile(source),),
        0xEE: (b"Adobe\0d",),
    }
    body = source.choose((b"", *starts.get(marker, ()))) + source.take(30)
    return segment(marker, body) if not source.is_one_in(8) else bytes((0xFF, marker)) + body


def _webp(source: Source) -> bytes:
    """An encoded picture, with an extended header that may lie, and more chunks."""
    plain = source.choose(_samples("WEBP"))
    if source.is_one_in(2):
        return _damage(source, plain)
    width, height = _size(source) if source.is_one_in(3) else (24, 16)
    flags = source.integer(0, 255) if source.is_one_in(3) else source.choose((0, 0x10, 0x08, 0x20, 0x02))
    header = (
        bytes((flags, 0, 0, 0)) + max(0, width - 1).to_bytes(3, "little") + max(0, height - 1).to_bytes(3, "little")
    )
    chunks = [riff_chunk(b"VP8X", header), plain[12:]]
    for _ in range(source.integer(0, 3)):
        name = source.choose((b"EXIF", b"ICCP", b"XMP ", b"ALPH", b"ANIM", b"ANMF", b"VP8 ", b"VP8L", b"abcd"))
        body = {b"EXIF": _exif, b"ICCP": _profile}.get(name, _take_some)(source)
        chunks.insert(source.integer(0, len(chunks)), riff_chunk(name, body))
    return _damage(source, riff(b"".join(chunks)))


def _other(source: Source) -> bytes:
    content = source.choose(_STARTS) + source.rest()
    name = name_content(content)
    assert name
    assert name.isprintable()
    try:
        unpack_response(content[: RESPONSE.size].ljust(RESPONSE.size, b"\0"))
    except ValueError as error:
        assert "decoder" in str(error)  # noqa: PT017  no other one
    return content


def _exif(source: Source) -> bytes:
    """A directory of a few tags, of any type and count, behind which there may be more bytes."""
    rows = []
    for _ in range(source.integer(0, 3)):
        number = source.choose((0x0112, 0x0112, 0x8769, 0x010F, source.integer(0, 0xFFFF)))
        rows.append(
            (number, source.integer(0, 14), source.choose((1, 1, 0, 2, 0xFFFFFFFF)), source.take(4).ljust(4, b"\0"))
        )
    structure = exif(*rows, order=source.choose(("<", ">"))) + source.take(10)
    return structure[: source.integer(0, len(structure))] if source.is_one_in(6) else structure


def _packed_profile(source: Source) -> bytes:
    return b"icc\0\0" + zlib.compress(_profile(source))


def _profile(source: Source) -> bytes:
    """A colour profile, whole or damaged, or of which only the header is right."""
    if source.is_one_in(2):
        return (
            bytes(16) + source.choose((b"RGB ", b"GRAY", b"CMYK")) + bytes(16) + b"acsp" + bytes(88) + source.take(40)
        )
    whole = _srgb()
    return _damage(source, whole[:16] + source.choose((b"RGB ", b"GRAY")) + whole[20:])


@cache
def _srgb() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def _packed_text(source: Source) -> bytes:
    keyword = source.choose((b"Raw profile type exif", b"XML:com.adobe.xmp", b"Comment"))
    text = b"\nexif\n" + source.take(30).hex().encode() + source.take(10)
    return keyword + source.choose((b"\0\0", b"\0\x01\0\0\0")) + (zlib.compress(text) if source.is_one_in(2) else text)


def _size(source: Source) -> tuple[int, int]:
    if source.is_one_in(6):
        return source.choose(_SIDES), source.choose(_SIDES)
    return source.integer(1, 40), source.integer(1, 40)


def _damage(source: Source, content: bytes) -> bytes:
    """Usually nothing; sometimes the file is cut, or bytes are changed, repeated or left out."""
    for _ in range(source.choose((0, 0, 0, 1, 2, 6))):
        place = source.integer(0, 1 << 15) * len(content) >> 15
        size = source.integer(1, 4)
        match source.integer(0, 4):
            case 0:
                content = content[:place]
            case 1:
                content = content[:place] + content[place + size :]
            case 2:
                content = content[:place] + content[place : place + 40 * size] + content[place:]
            case _:
                content = content[:place] + source.take(size) + content[place + size :]
    return content


@cache
def _samples(kind: str) -> Sequence[bytes]:
    """Small pictures of one format, of each mode and way of encoding."""
    image = draw(24, 16)
    if kind == "WEBP":
        frames = [image.rotate(180)]
        return (
            encode(image, kind, quality=50),
            encode(image, kind, lossless=True),
            encode(image.convert("RGBA"), kind, lossless=True, exact=True),
            encode(image.convert("LA").convert("RGBA"), kind, quality=30),
            encode(image, kind, save_all=True, append_images=frames, duration=50),
        )
    return (
        encode(image, kind, quality=60),
        encode(image.convert("L"), kind),
        encode(image.convert("CMYK"), kind),
        encode(image, kind, progressive=True),
        encode(image, kind, subsampling=2, restart_marker_blocks=1),
        encode(image.resize((70, 9)), kind, keep_rgb=True, optimize=True),
    )
