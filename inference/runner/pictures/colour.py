"""Converts decoded pixels to what a viewer shows: white behind transparency, all bits of a sample, sRGB."""

from collections.abc import Callable
from functools import lru_cache, reduce
from io import BytesIO

from PIL import Image, ImageChops, ImageCms, ImageMath

from inference.runner.pictures.cost import STRIP_PIXELS
from inference.runner.pictures.file import PictureFile, PngLayout

_WHITE = 255
_SIXTEEN_BITS, _EIGHT_BITS = 16, 8
_UPPER_BITS = 1 / 256
_SPACES = {"RGB": b"RGB ", "L": b"GRAY", "CMYK": b"CMYK"}
_PROFILE_HEADER, _PROFILE_MARK = 128, slice(36, 40)
_SAME = 2  # steps of 255: a profile that changes colours less is sRGB
_DISPLAY_GAMMA = 2.2
_SAME_GAMMA = 0.05  # relative
_LEAST_GAMMA, _MOST_GAMMA = 0.1, 5.0  # beyond, gAMA is broken

Convert = Callable[[Image.Image], Image.Image]


def conversion_as_seen(decoded: Image.Image, file: PictureFile) -> Convert | None:
    """The conversion of strips of a picture to mode L, RGB or CMYK; None if nothing is to be done.

    The colour profile is applied only to a picture of one strip.

    Args:
        decoded: the whole picture, as Pillow decoded it.
        file: its header.
    """
    steps = [_choose_conversion(decoded, file)]
    if _changes_gamma(file.gamma):
        steps.append(lambda strip: _apply_gamma(strip, file.gamma))
    if file.profile and decoded.width * decoded.height <= STRIP_PIXELS:
        steps.append(lambda strip: apply_profile(strip, file.profile))
    needed = [step for step in steps if step is not None]
    return (lambda strip: reduce(lambda image, step: step(image), needed, strip)) if needed else None


def _choose_conversion(decoded: Image.Image, file: PictureFile) -> Convert | None:
    """The conversion of the mode."""
    layout = file.layout
    key = layout.key if isinstance(layout, PngLayout) else ()
    if decoded.mode == "I;16":
        return lambda strip: _scale_16_bits(strip, *key)
    if key and isinstance(layout, PngLayout):
        scaled = tuple(_scale_sample(sample, layout.depth) for sample in key)
        return lambda strip: _clear_key(strip.convert("L" if len(scaled) == 1 else "RGB"), scaled)
    if decoded.has_transparency_data:
        return lambda strip: _put_on_white(strip.convert("RGBA"))
    if decoded.mode in _SPACES:
        return None
    return lambda strip: strip.convert("L" if strip.mode == "1" else "RGB")


def _changes_gamma(gamma: float) -> bool:
    """Whether a gamma is plausible, and not the display's."""
    return _LEAST_GAMMA <= gamma <= _MOST_GAMMA and abs(gamma * _DISPLAY_GAMMA - 1) >= _SAME_GAMMA


def _apply_gamma(image: Image.Image, gamma: float) -> Image.Image:
    """Convert samples of another encoding to the display's."""
    table = [round(_WHITE * (value / _WHITE) ** (1 / (gamma * _DISPLAY_GAMMA))) for value in range(_WHITE + 1)]
    return image.point(table * len(image.getbands()))


def apply_profile(image: Image.Image, profile: bytes) -> Image.Image:
    """Convert to sRGB by an ICC profile; one that is broken, or of another colour model, is ignored."""
    transform = _make_transform(profile, image.mode) if profile else None
    return image if transform is None else ImageCms.applyTransform(image, transform) or image


@lru_cache(maxsize=8)  # most pictures of a caller come from one camera or program
def _make_transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    if len(profile) < _PROFILE_HEADER or profile[_PROFILE_MARK] != b"acsp" or profile[16:20] != _SPACES.get(mode):
        return None
    try:
        source = ImageCms.ImageCmsProfile(BytesIO(profile))
        transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
        if mode == "RGB" and _changes_little(transform):
            return None
    except (ImageCms.PyCMSError, OSError, ValueError):
        return None
    return transform


def _changes_little(transform: ImageCms.ImageCmsTransform) -> bool:
    steps = range(0, _WHITE + 1, 15)
    colours = bytes(sample for red in steps for green in steps for blue in steps for sample in (red, green, blue))
    probe = Image.frombytes("RGB", (len(colours) // 3, 1), colours)
    changed = ImageCms.applyTransform(probe, transform)
    if changed is None:
        return False
    extrema = ImageChops.difference(probe, changed).getextrema()
    return max(high for _, high in extrema) <= _SAME  # type: ignore[misc]  # a pair for each band


def _put_on_white(strip: Image.Image) -> Image.Image:
    white = Image.new("RGB", strip.size, (_WHITE,) * 3)
    white.paste(strip.convert("RGB"), (0, 0), strip.getchannel("A"))
    return white


def _clear_key(strip: Image.Image, key: tuple[int, ...]) -> Image.Image:
    """White where all samples are those of the transparent colour."""
    differs = [
        band.point([_WHITE * (value != sample) for value in range(_WHITE + 1)])
        for band, sample in zip(strip.split(), key, strict=True)
    ]
    mask = differs[0]
    for other in differs[1:]:
        mask = ImageChops.lighter(mask, other)
    white = Image.new(strip.mode, strip.size, (_WHITE,) * len(key) if len(key) > 1 else _WHITE)
    white.paste(strip, (0, 0), mask)
    return white


def _scale_sample(sample: int, depth: int) -> int:
    """A sample as Pillow decodes it to 8 bits: stretched if it has fewer, without its low byte if it has 16."""
    return sample >> _EIGHT_BITS if depth == _SIXTEEN_BITS else sample * _WHITE // ((1 << depth) - 1)


def _scale_16_bits(strip: Image.Image, key: int | None = None) -> Image.Image:
    """The upper 8 of 16 bits; white where the sample is the transparent value. Without NumPy: see `decoder`."""
    samples = strip.convert("I")
    scaled = samples.point(lambda sample: sample * _UPPER_BITS).convert("L")
    if key is None:
        return scaled
    differs = ImageMath.lambda_eval(lambda images: images["samples"] != key, samples=samples)
    mask = differs.convert("L").point([0] + [_WHITE] * _WHITE)
    white = Image.new("L", strip.size, _WHITE)
    white.paste(scaled, (0, 0), mask)
    return white
