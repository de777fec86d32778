"""Makes small files that would cost a naive decoder much: seconds, memory, or its life. Deterministic by the seed."""

import random
import struct
import zlib
from collections.abc import Callable, Iterator
from io import BytesIO

from PIL import Image

from dev.pictures.png_writer import GREY, PALETTE, RGB, RGB_ALPHA, SIGNATURE, chunk

MAX_BYTES = 4 << 20  # of a file; the server accepts 16 MiB
Make = Callable[[random.Random], bytes]


def make_bombs(seed: int, count: int) -> Iterator[tuple[str, bytes]]:
    """Name and content of each bomb; all kinds in turn."""
    chance = random.Random(seed)
    kinds = list(KINDS.items())
    for number in range(count):
        name, make = kinds[number % len(kinds)]
        yield f"{number} {name}", make(random.Random(chance.random()))[:MAX_BYTES]


# JPEG


def segment(marker: int, body: bytes) -> bytes:
    """A segment of a JPEG."""
    return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body


def _frame(marker: int, width: int, height: int, components: int, sampling: int = 0x11) -> bytes:
    rows = b"".join(bytes([number + 1, sampling if number == 0 else 0x11, 0]) for number in range(components))
    return segment(marker, struct.pack(">BHHB", 8, height, width, components) + rows)


def _scan(components: int, first: int = 0, last: int = 63, approximation: int = 0) -> bytes:
    rows = b"".join(bytes([number + 1, 0]) for number in range(components))
    return segment(0xDA, bytes([components]) + rows + bytes([first, last, approximation]))


def _tables() -> bytes:
    quantization = segment(0xDB, b"\0" + b"\1" * 64)
    codes = bytes([0, 1, 5, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0]) + bytes(range(12))
    return quantization + segment(0xC4, b"\x00" + codes) + segment(0xC4, b"\x10" + codes)


def _large_jpeg(chance: random.Random) -> bytes:
    width, height = chance.choice([(8000, 8000), (16000, 4000), (4000, 16000), (65500, 65500), (16384, 1), (1, 16384)])
    components = chance.choice([1, 3, 4])
    data = chance.randbytes(chance.randrange(3000)).replace(b"\xff", b"\0")
    frame = _frame(
        chance.choice([0xC0, 0xC1, 0xC2]), width, height, components, chance.choice([0x11, 0x22, 0x44, 0x14])
    )
    return b"\xff\xd8" + _tables() + frame + _scan(components) + data + b"\xff\xd9"


def _many_scans(chance: random.Random) -> bytes:
    side = chance.choice([500, 1000, 4000, 8000])
    scans = [
        _scan(1, *chance.choice([(0, 0, 0), (1, 63, 0), (1, 1, 1), (1, 63, 0x21), (5, 20, 0x10)]))
        + b"\0" * chance.randrange(9)
        for _ in range(chance.choice([30, 90, 101, 500, 20_000]))
    ]
    marker = chance.choice([0xC2, 0xC2, 0xCA, 0xC0])
    return b"\xff\xd8" + _tables() + _frame(marker, side, side, 1) + b"".join(scans) + b"\xff\xd9"


def _many_segments(chance: random.Random) -> bytes:
    body = chance.choice([b"", b"x", b"Exif\0\0II*\0", b"ICC_PROFILE\0\1\xff" + b"x" * 50, b"\xff\xd9\xff\xda"])
    marker = chance.choice([0xE0, 0xE1, 0xE2, 0xEE, 0xFE, 0xDB, 0xC4, 0xDD])
    flood = segment(marker, body) * chance.choice([100, 5000, 200_000])
    return b"\xff\xd8" + flood + _picture("JPEG", 64, chance)[2:]


def _restarts(chance: random.Random) -> bytes:
    side = chance.choice([512, 2000, 8000])
    restarts = b"".join(b"\0\xff" + bytes([0xD0 + number % 8]) for number in range(chance.choice([1000, 300_000])))
    head = b"\xff\xd8" + _tables() + segment(0xDD, struct.pack(">H", 1)) + _frame(0xC0, side, side, 1)
    return head + _scan(1) + restarts + b"\xff\xd9"


def _fill_bytes(chance: random.Random) -> bytes:
    flood = chance.choice([b"\xff", b"\xff\x00", b"\0", b"\xff\x01", b"\xff\xd0"]) * chance.choice([1000, 1_500_000])
    whole = _picture("JPEG", 200, chance)
    at = chance.choice([2, len(whole) - 2, len(whole) // 2])
    return whole[:at] + flood + whole[at:]


def _two_frames(chance: random.Random) -> bytes:
    frames = _frame(0xC0, 16, 16, 1) + _frame(0xC2, 16000, 4000, 3)
    if chance.random() < 0.5:
        frames = frames[len(_frame(0xC0, 16, 16, 1)) :] + _frame(0xC0, 16, 16, 1)
    height = segment(0xDC, struct.pack(">H", 16000))
    return b"\xff\xd8" + _tables() + frames + _scan(1) + b"\0" * 64 + height + _scan(3) + b"\0" * 64 + b"\xff\xd9"


# PNG


def _png_head(width: int, height: int, depth: int, colour: int, interlace: int) -> bytes:
    return SIGNATURE + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace))


def _zeros(size: int) -> bytes:
    """A zlib stream of many zeros, made without having them in memory."""
    pack = zlib.compressobj(9)
    block = bytes(1 << 20)
    parts = [pack.compress(block) for _ in range(size >> 20)]
    return b"".join([*parts, pack.compress(bytes(size & 0xFFFFF)), pack.flush()])


def _large_png(chance: random.Random) -> bytes:
    width, height = chance.choice(
        [(8000, 8000), (16000, 4000), (4000, 16000), (9248, 6912), (16384, 3000), (3000, 2000)]
    )
    depth, colour, samples = chance.choice(
        [(8, RGB, 3), (8, RGB_ALPHA, 4), (8, GREY, 1), (16, RGB, 6), (16, GREY, 2), (1, GREY, 1)]
    )
    bits = depth if samples == 1 else 8 * samples
    size = min((1 + (width * bits + 7) // 8) * height, 256 << 20)
    head = _png_head(width, height, depth, colour, chance.choice([0, 0, 1]))
    return head + chunk(b"IDAT", _zeros(size)) + chunk(b"IEND", b"")


def _lying_png(chance: random.Random) -> bytes:
    """Dimensions that the data do not have."""
    claimed, real = chance.choice([(50_000, 10), (8000, 10), (10, 8000), (2**31 - 1, 1), (0, 9), (1, 1)])
    data = zlib.compress(bytes((1 + 3 * real) * real))
    return _png_head(claimed, claimed, 8, RGB, chance.choice([0, 1])) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def _many_chunks(chance: random.Random) -> bytes:
    name = chance.choice([b"IDAT", b"tEXt", b"zTXt", b"fcTL", b"fdAT", b"aaAa", b"gAMA", b"eXIf", b"iTXt"])
    flood = chunk(name, chance.choice([b"", b"x", b"x\0\0" + zlib.compress(bytes(9))]))
    whole = _picture("PNG", 64, chance)
    at = len(SIGNATURE) + 25 if name != b"IDAT" else whole.index(b"IDAT") - 4
    return whole[:at] + flood * chance.choice([100, 19_000, 150_000]) + whole[at:]


def _split_data(chance: random.Random) -> bytes:
    """A chunk for each byte of the data."""
    data = zlib.compress(chance.randbytes(3 * 100 * 100 + 100))
    step = chance.choice([1, 2, 7])
    parts = b"".join(chunk(b"IDAT", data[at : at + step]) for at in range(0, len(data), step))
    return _png_head(100, 100, 8, RGB, 0) + parts + chunk(b"IEND", b"")


def _packed_metadata(chance: random.Random) -> bytes:
    bomb = _zeros(chance.choice([1 << 20, 64 << 20, 512 << 20]))
    name, body = chance.choice(
        [
            (b"zTXt", b"Comment\0\0" + bomb),
            (b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + bomb),
            (b"iCCP", b"profile\0\0" + bomb),
            (b"zTXt", b"Raw profile type exif\0\0" + bomb),
        ]
    )
    whole = _picture("PNG", 64, chance)
    return whole[: len(SIGNATURE) + 25] + chunk(name, body) + whole[len(SIGNATURE) + 25 :]


def _many_packed_texts(chance: random.Random) -> bytes:
    """Each inflates to a megabyte."""
    keyword = chance.choice([b"Raw profile type exif", b"XML:com.adobe.xmp", b"Comment"])
    name, middle = chance.choice([(b"zTXt", b"\0\0"), (b"iTXt", b"\0\1\0\0\0")])
    flood = chunk(name, keyword + middle + _zeros(1 << 20)) * chance.choice([10, 3000])
    whole = _picture("PNG", 64, chance)
    return whole[: len(SIGNATURE) + 25] + flood + whole[len(SIGNATURE) + 25 :]


def _empty_blocks(chance: random.Random) -> bytes:
    """A deflate stream of blocks that hold nothing."""
    stored = b"\0\0\0\xff\xff" * chance.choice([1000, 500_000])
    return _png_head(2000, 2000, 8, RGB, 0) + chunk(b"IDAT", b"\x78\x01" + stored) + chunk(b"IEND", b"")


def _odd_palette(chance: random.Random) -> bytes:
    colours = chunk(b"PLTE", chance.randbytes(chance.choice([0, 1, 3, 767, 768, 100_000])))
    clear = chunk(b"tRNS", chance.randbytes(chance.choice([0, 1, 256, 60_000])))
    side = chance.choice([10, 8000])
    data = zlib.compress(b"\xff" * min((1 + side) * side, 64 << 20))
    return _png_head(side, side, 8, PALETTE, 0) + colours + clear + chunk(b"IDAT", data) + chunk(b"IEND", b"")


# WebP


def _riff(*chunks: tuple[bytes, bytes], length: int | None = None) -> bytes:
    body = b"WEBP" + b"".join(
        name + struct.pack("<I", len(data)) + data + bytes(len(data) & 1) for name, data in chunks
    )
    return b"RIFF" + struct.pack("<I", len(body) if length is None else length) + body


def _lossless_head(width: int, height: int, *, alpha: bool = False) -> bytes:
    return b"\x2f" + ((width - 1) | (height - 1) << 14 | alpha << 28).to_bytes(4, "little")


def _large_webp(chance: random.Random) -> bytes:
    width, height = chance.choice([(9248, 6912), (16383, 3900), (3900, 16383), (5000, 5000), (16384, 16384)])
    if chance.random() < 0.5:
        flat = _lossless_head(width, height, alpha=chance.random() < 0.5) + b"\x88\x88\x08\x17\x00\x00"
        return _riff((b"VP8L", flat + bytes(chance.randrange(20))))
    size = struct.pack("<HH", min(width, 16383), min(height, 16383))
    return _riff((b"VP8 ", b"\x10\x04\0\x9d\x01\x2a" + size + chance.randbytes(chance.choice([8, 4000]))))


def _noisy_lossless(chance: random.Random) -> bytes:
    """Random bits: transforms, caches and many groups of codes."""
    width, height = chance.choice([(64, 64), (1000, 1000), (4000, 4000)])
    return _riff((b"VP8L", _lossless_head(width, height) + chance.randbytes(chance.choice([40, 5000, 200_000]))))


def _canvas(chance: random.Random) -> bytes:
    width, height = chance.choice([(16_384, 16_384), (9000, 7000), (1 << 24, 1 << 24), (4000, 4000)])
    flags = chance.choice([0x02, 0x12, 0x10, 0x3E])
    head = bytes([flags, 0, 0, 0]) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    frame = bytes(16) + b"VP8L" + struct.pack("<I", 12) + _lossless_head(1, 1) + b"\x88\x88\x08\x17\0\0\0"
    frames = [(b"ANMF", frame)] * chance.choice([1, 100, 30_000])
    return _riff((b"VP8X", head), (b"ANIM", bytes(6)), *frames)


def _large_alpha(chance: random.Random) -> bytes:
    picture = Image.new("RGBA", (chance.choice([16, 3000]),) * 2, (1, 2, 3, 128))
    file = BytesIO()
    picture.save(file, "WEBP", quality=20, method=0)
    whole = file.getvalue()
    at = whole.find(b"ALPH") + 8
    return whole[:at] + bytes([chance.randrange(256)]) + whole[at + 1 :] if at > 8 else whole


def _lying_riff(chance: random.Random) -> bytes:
    whole = _picture("WEBP", 64, chance)
    length = chance.choice([0, 4, 0x7FFFFFFF, 0xFFFFFFFF])
    inner = chance.choice([0, 1, 0xFFFFFFFE, 9])
    return whole[:4] + struct.pack("<I", length) + whole[8:16] + struct.pack("<I", inner) + whole[20:]


# Any


def _picture(kind: str, side: int, chance: random.Random) -> bytes:
    picture = Image.frombytes("RGB", (side, side), chance.randbytes(3 * side * side))
    file = BytesIO()
    picture.save(file, kind, **({"lossless": chance.random() < 0.5} if kind == "WEBP" else {}))
    return file.getvalue()


def _mutated(chance: random.Random) -> bytes:
    content = bytearray(_picture(chance.choice(["JPEG", "PNG", "WEBP"]), chance.choice([16, 300]), chance))
    for _ in range(chance.choice([1, 4, 60])):
        content[chance.randrange(len(content))] = chance.choice([0, 255, 127, 128, chance.randrange(256)])
    at = chance.randrange(len(content))
    return bytes(content[:at] + content[at : at + chance.randrange(99)] * chance.choice([1, 2, 50]) + content[at:])


def _mutated_head(chance: random.Random) -> bytes:
    """Only the first bytes are changed: sizes, depths, tables."""
    content = bytearray(_picture(chance.choice(["JPEG", "PNG", "WEBP"]), 200, chance))
    for _ in range(3):
        content[chance.randrange(4, min(200, len(content)))] = chance.choice([0, 255, chance.randrange(256)])
    return bytes(content)


KINDS: dict[str, Make] = {
    "JPEG large": _large_jpeg,
    "PNG large": _large_png,
    "WebP large": _large_webp,
    "JPEG scans": _many_scans,
    "PNG chunks": _many_chunks,
    "WebP canvas": _canvas,
    "JPEG segments": _many_segments,
    "PNG split data": _split_data,
    "WebP noise": _noisy_lossless,
    "JPEG restarts": _restarts,
    "PNG packed metadata": _packed_metadata,
    "PNG packed texts": _many_packed_texts,
    "WebP alpha": _large_alpha,
    "JPEG fill bytes": _fill_bytes,
    "PNG lying": _lying_png,
    "WebP lying": _lying_riff,
    "JPEG two frames": _two_frames,
    "PNG empty blocks": _empty_blocks,
    "PNG palette": _odd_palette,
    "mutated": _mutated,
    "mutated head": _mutated_head,
}
