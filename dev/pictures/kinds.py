"""Files of every kind of picture that is accepted, drawn from one scene."""

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dev.pictures.png_writer import GREY, GREY_ALPHA, PALETTE, RGB, RGB_ALPHA, chunk, write_png
from dev.pictures.profiles import GREY_PROFILES, PROFILES, cmyk_profile

WIDTH, HEIGHT = 64, 48
Make = Callable[[], bytes]
Named = Iterator[tuple[str, Make]]
Unit = NDArray[np.float64]  # 0..1
ORIENTATION = 0x0112


def scene() -> Unit:
    """(rows, columns, 3): soft colours with a bright and a dark block, in which nothing is symmetric."""
    down, right = np.mgrid[0:HEIGHT, 0:WIDTH].astype(float)
    red = 0.5 + 0.4 * np.sin(right / 11 + 0.5)
    green = 0.2 + 0.6 * down / HEIGHT
    blue = 0.5 + 0.4 * np.cos((right + 2 * down) / 17)
    pixels = np.stack([red, green, blue], axis=-1)
    pixels[6:18, 8:26] = (0.95, 0.9, 0.2)
    pixels[28:42, 40:58] = (0.1, 0.1, 0.35)
    return pixels


def opacity() -> Unit:
    """(rows, columns): transparent on the left, opaque on the right."""
    return np.tile(np.clip(np.linspace(-0.2, 1.2, WIDTH), 0, 1), (HEIGHT, 1))


def grey() -> Unit:
    """(rows, columns): the scene's lightness."""
    lightness: Unit = scene() @ np.array([0.3, 0.59, 0.11])
    return lightness


@dataclass(frozen=True, slots=True)
class Twin:
    """A file that looks the same to a person, for a renderer that is known to show the kind itself otherwise."""

    make: Make
    reason: str  # what ImageMagick 6.9 does


def twins() -> dict[str, Twin]:
    """Twins, by the name of the kind."""
    lighter = scene() ** (1 / (0.6 * 2.2))
    samples = np.stack([_quantize(plane, 8) for plane in np.moveaxis(lighter, -1, 0)], axis=-1)
    canvas = Image.new("RGB", (WIDTH, HEIGHT), (255, 255, 255))
    canvas.paste(_picture().crop((0, 0, 32, 24)), (16, 12))
    turned = {
        f"{kind} {mode} orientation {turn}": Twin(
            partial(_save, _flat(mode), "JPEG", exif=_exif(turn), quality=95), "reads the orientation of JPEGs only"
        )
        for kind, mode in (("PNG", "RGB"), ("WebP", "RGB"), ("PNG", "RGBA"))
        for turn in range(2, 9)
    }
    return turned | {
        "PNG RGB 8 bit gamma 0.6": Twin(partial(write_png, samples, 8, RGB), "ignores gamma, but for 1.0"),
        "JPEG RGB profile of another colour model": Twin(
            partial(_save, _picture(), "JPEG", quality=95), "applies a grey profile to colours"
        ),
        "WebP animated, first frame smaller than the canvas": Twin(
            partial(_save, canvas, "PNG"), "shows the canvas behind the frame black, although it is transparent"
        ),
    }


def every_kind() -> Named:
    """Each kind of picture: a name that describes it, and the function that makes the file."""
    yield from _png_kinds()
    yield from _png_transparency()
    yield from _png_others()
    yield from _jpeg_kinds()
    yield from _webp_kinds()
    yield from _turned()
    yield from _profiled()


def _quantize(values: Unit, depth: int) -> NDArray[np.uint16]:
    return np.round(values * ((1 << depth) - 1)).astype(np.uint16)


def _picture(mode: str = "RGB") -> Image.Image:
    image = Image.fromarray(_quantize(scene(), 8).astype(np.uint8))
    if mode == "RGBA":
        image.putalpha(Image.fromarray(_quantize(opacity(), 8).astype(np.uint8)))
        return image
    return image.convert(mode)


def _flat(mode: str) -> Image.Image:
    """The scene, with white behind it."""
    white = Image.new("RGBA", (WIDTH, HEIGHT), (255, 255, 255, 255))
    return Image.alpha_composite(white, _picture(mode).convert("RGBA")).convert("RGB")


def _exif(turn: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ORIENTATION] = turn
    return exif


def _save(image: Image.Image, kind: str, **options: object) -> bytes:
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


# PNG


def _samples(colour: int, depth: int) -> NDArray[np.uint16]:
    planes = [grey()] if colour in (GREY, GREY_ALPHA) else list(np.moveaxis(scene(), -1, 0))
    planes += [opacity()] if colour in (GREY_ALPHA, RGB_ALPHA) else []
    return np.stack([_quantize(plane, depth) for plane in planes], axis=-1)


def _palette(depth: int) -> tuple[NDArray[np.uint16], bytes]:
    """Indices and colours."""
    image = _picture().quantize(1 << depth)
    colours = bytes(image.getpalette() or b"")[: 3 << depth]
    return np.asarray(image).astype(np.uint16)[..., None], colours


def _png(colour: int, depth: int, *chunks: bytes, is_interlaced: bool = False) -> bytes:
    if colour == PALETTE:
        indices, colours = _palette(depth)
        return write_png(
            indices, depth, PALETTE, is_interlaced=is_interlaced, before_data=(chunk(b"PLTE", colours), *chunks)
        )
    return write_png(_samples(colour, depth), depth, colour, is_interlaced=is_interlaced, before_data=chunks)


_COLOURS = {
    "grey": (GREY, (1, 2, 4, 8, 16)),
    "RGB": (RGB, (8, 16)),
    "palette": (PALETTE, (1, 2, 4, 8)),
    "grey+alpha": (GREY_ALPHA, (8, 16)),
    "RGB+alpha": (RGB_ALPHA, (8, 16)),
}


def _png_kinds() -> Named:
    for name, (colour, depths) in _COLOURS.items():
        for depth in depths:
            yield f"PNG {name} {depth} bit", partial(_png, colour, depth)
            yield f"PNG {name} {depth} bit interlaced", partial(_png, colour, depth, is_interlaced=True)


def _png_transparency() -> Named:
    for is_interlaced in (False, True):
        end = " interlaced" if is_interlaced else ""
        for depth in (1, 2, 4, 8, 16):
            value = int(_quantize(grey(), depth)[0, 0])
            make = partial(_png, GREY, depth, chunk(b"tRNS", struct.pack(">H", value)), is_interlaced=is_interlaced)
            yield f"PNG grey {depth} bit with a transparent value{end}", make
        for depth in (8, 16):
            sample = [int(one) for one in _quantize(np.array([0.95, 0.9, 0.2]), depth)]  # the bright block
            make = partial(_png, RGB, depth, chunk(b"tRNS", struct.pack(">3H", *sample)), is_interlaced=is_interlaced)
            yield f"PNG RGB {depth} bit with a transparent colour{end}", make
        for depth in (1, 2, 4, 8):
            alphas = bytes(255 * (number % 3 > 0) // (1 + number % 2) for number in range(1 << depth))
            make = partial(_png, PALETTE, depth, chunk(b"tRNS", alphas), is_interlaced=is_interlaced)
            yield f"PNG palette {depth} bit with opacities{end}", make
    yield "PNG palette 8 bit with fewer opacities than colours", partial(_png, PALETTE, 8, chunk(b"tRNS", b"\0\x80"))


def _png_others() -> Named:
    for gamma in (0.45455, 1.0, 0.6):
        block = chunk(b"gAMA", struct.pack(">I", round(gamma * 100_000)))
        yield f"PNG RGB 8 bit gamma {gamma}", partial(_png, RGB, 8, block)
    srgb = chunk(b"sRGB", b"\0"), chunk(b"gAMA", struct.pack(">I", 100_000))
    yield "PNG RGB 8 bit sRGB and another gamma", partial(_png, RGB, 8, *srgb)
    yield "PNG RGB 8 bit significant bits", partial(_png, RGB, 8, chunk(b"sBIT", b"\5\6\5"))
    yield "PNG RGB 8 bit background", partial(_png, RGB_ALPHA, 8, chunk(b"bKGD", struct.pack(">3H", 255, 0, 0)))
    yield "PNG animated", partial(_animated_png, is_default_first=True)
    yield "PNG animated, default image apart", partial(_animated_png, is_default_first=False)


def _animated_png(*, is_default_first: bool) -> bytes:
    """The scene as default image, and a second frame of one colour."""
    control = struct.pack(">IIIIIHHBB", 0, WIDTH, HEIGHT, 0, 0, 1, 10, 0, 0)
    base = _png(RGB, 8, chunk(b"acTL", struct.pack(">II", 1 + is_default_first, 0)))
    first = chunk(b"fcTL", control) if is_default_first else b""
    second = write_png(np.full((HEIGHT, WIDTH, 3), 200, np.uint16), 8, RGB)
    data = second[second.index(b"IDAT") + 4 : -16]
    number = 1 if is_default_first else 0
    later = chunk(b"fcTL", struct.pack(">I", number) + control[4:])
    later += chunk(b"fdAT", struct.pack(">I", number + 1) + data)
    start = base.index(b"IDAT") - 4
    return base[:start] + first + base[start:-12] + later + base[-12:]


# JPEG


def _jpeg_kinds() -> Named:
    samplings = {"4:4:4": 0, "4:2:2": 1, "4:2:0": 2}
    for mode in ("RGB", "L", "CMYK"):
        for progressive in (False, True):
            name = f"JPEG {mode}{' progressive' if progressive else ''}"
            yield name, partial(_save, _picture(mode), "JPEG", quality=92, progressive=progressive)
    for name, sampling in samplings.items():
        for progressive in (False, True):
            options = {"quality": 95, "subsampling": sampling, "progressive": progressive}
            yield (
                f"JPEG RGB {name}{' progressive' if progressive else ''}",
                partial(_save, _picture(), "JPEG", **options),
            )
    yield "JPEG RGB stored as RGB", partial(_save, _picture(), "JPEG", quality=95, keep_rgb=True)
    yield "JPEG RGB optimised tables", partial(_save, _picture(), "JPEG", quality=90, optimize=True)
    yield "JPEG RGB restart markers", partial(_save, _picture(), "JPEG", quality=90, restart_marker_blocks=2)
    yield "JPEG RGB quality 40", partial(_save, _picture(), "JPEG", quality=40)
    large = _picture().resize((960, 720), Image.Resampling.BICUBIC)
    for mode in ("RGB", "L", "CMYK"):
        for progressive in (False, True):
            name = f"JPEG {mode} large{' progressive' if progressive else ''}"
            yield name, partial(_save, large.convert(mode), "JPEG", quality=90, progressive=progressive)


# WebP


def _webp_kinds() -> Named:
    for mode in ("RGB", "RGBA", "L", "P"):
        for is_lossless in (False, True):
            name = f"WebP {mode} {'lossless' if is_lossless else 'lossy'}"
            yield name, partial(_save, _picture(mode), "WEBP", lossless=is_lossless, quality=95)
    for exact in (False, True):
        yield f"WebP RGBA lossless exact={exact}", partial(_save, _picture("RGBA"), "WEBP", lossless=True, exact=exact)
    yield "WebP RGBA lossy, coarse alpha", partial(_save, _picture("RGBA"), "WEBP", quality=90, alpha_quality=40)
    other = Image.new("RGB", (WIDTH, HEIGHT), (200, 200, 200))
    for mode in ("RGB", "RGBA"):
        for is_lossless in (False, True):
            name = f"WebP {mode} animated {'lossless' if is_lossless else 'lossy'}"
            options = {"save_all": True, "append_images": [other], "lossless": is_lossless, "quality": 95}
            yield name, partial(_save, _picture(mode), "WEBP", **options)
    yield "WebP animated, first frame smaller than the canvas", _small_first_frame


def _small_first_frame() -> bytes:
    """A canvas with the scene's upper left part in its middle."""
    part = _save(_picture().crop((0, 0, 32, 24)), "WEBP", lossless=True)
    frame = b"".join(number.to_bytes(3, "little") for number in (8, 6, 31, 23, 100)) + b"\0" + part[12:]
    canvas = (WIDTH - 1).to_bytes(3, "little") + (HEIGHT - 1).to_bytes(3, "little")
    blocks = ((b"VP8X", bytes([0x12, 0, 0, 0]) + canvas), (b"ANIM", bytes(6)), (b"ANMF", frame), (b"ANMF", frame))
    packed = [name + struct.pack("<I", len(data)) + data + bytes(len(data) & 1) for name, data in blocks]
    body = b"WEBP" + b"".join(packed)
    return b"RIFF" + struct.pack("<I", len(body)) + body


# Turned, and with profiles


def _turned() -> Named:
    for turn in range(1, 9):
        for kind, mode in (("JPEG", "RGB"), ("PNG", "RGB"), ("WEBP", "RGB"), ("JPEG", "L"), ("PNG", "RGBA")):
            options = {"lossless": True} if kind == "WEBP" else {"quality": 95}
            name = f"{kind.replace('WEBP', 'WebP')} {mode} orientation {turn}"
            yield name, partial(_save, _picture(mode), kind, exif=_exif(turn), **options)
    motorola = b"Exif\0\0MM\0*" + struct.pack(">IHHHIHHI", 8, 1, ORIENTATION, 3, 1, 6, 0, 0)
    yield "JPEG RGB orientation 6, big endian", partial(_save, _picture(), "JPEG", exif=motorola, quality=95)


def _profiled() -> Named:
    for name, profile in PROFILES.items():
        for kind in ("JPEG", "PNG", "WEBP"):
            options = {"lossless": True} if kind == "WEBP" else {"quality": 95}
            make = partial(_save, _picture(), kind, icc_profile=profile, **options)
            yield f"{kind.replace('WEBP', 'WebP')} RGB profile {name}", make
        yield f"PNG RGBA profile {name}", partial(_save, _picture("RGBA"), "PNG", icc_profile=profile)
    for name, profile in GREY_PROFILES.items():
        yield f"JPEG L profile {name}", partial(_save, _picture("L"), "JPEG", icc_profile=profile, quality=95)
        yield f"PNG L profile {name}", partial(_save, _picture("L"), "PNG", icc_profile=profile)
    vast = _picture().resize((1440, 1080), Image.Resampling.BICUBIC)
    for name in ("Display P3", "swapped"):
        make = partial(_save, vast, "JPEG", icc_profile=PROFILES[name], quality=90)
        yield f"JPEG RGB of 1.5 megapixels profile {name}", make
    yield "PNG RGBA of 1.5 megapixels", partial(_save, _picture("RGBA").resize((1440, 1080)), "PNG")
    yield "JPEG CMYK profile", partial(_save, _picture("CMYK"), "JPEG", icc_profile=cmyk_profile(), quality=95)
    yield (
        "JPEG RGB profile of another colour model",
        partial(_save, _picture(), "JPEG", icc_profile=GREY_PROFILES["grey linear"], quality=95),
    )
    yield (
        "JPEG RGB profile that is garbage",
        partial(_save, _picture(), "JPEG", icc_profile=b"garbage" * 40, quality=95),
    )
