"""Draw the small pictures that the fixtures ask about: ordinary ones, and unusual formats of cameras and tools.

Generated once and committed, since the output of encoders depends on their versions: `python -m dev.parity.pictures`.
"""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

FOLDER = Path(__file__).resolve().parents[2] / "tests" / "ofa" / "pictures"
_ORIENTATION, _QUARTER_TURN = 0x0112, 6


def draw(seed: int, width: int, height: int) -> Image.Image:
    """Soft colours with some rectangles and a little noise."""
    random = np.random.Generator(np.random.PCG64(seed))
    down, right = np.mgrid[0:height, 0:width]
    waves = [np.sin(down / random.uniform(5, 30) + right / random.uniform(5, 30)) for _ in range(3)]
    pixels = np.stack(waves, axis=-1) * 90 + random.uniform(60, 200, 3)
    for _ in range(4):
        top, left = int(random.integers(0, height - 8)), int(random.integers(0, width - 8))
        pixels[top : top + height // 3, left : left + width // 4] = random.uniform(0, 255, 3)
    pixels += random.normal(0, 6, pixels.shape)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _with_alpha(picture: Image.Image) -> Image.Image:
    mask = Image.linear_gradient("L").resize(picture.size)
    picture.putalpha(mask)
    return picture


def _grey16(seed: int) -> Image.Image:
    grey = np.asarray(draw(seed, 70, 90).convert("L")).astype(np.uint16)
    return Image.fromarray(grey * 257)


def _turned(path: Path) -> None:
    picture = draw(9, 120, 64)
    exif = picture.getexif()
    exif[_ORIENTATION] = _QUARTER_TURN
    picture.save(path, quality=90, exif=exif)


PICTURES: Mapping[str, Callable[[Path], None]] = {
    "colour.png": lambda path: draw(1, 120, 80).save(path),
    "exact_size.png": lambda path: draw(2, 96, 96).save(path),
    "tall.png": lambda path: draw(3, 20, 150).save(path),
    "wide.jpg": lambda path: draw(4, 200, 60).save(path, quality=85),
    "progressive.jpg": lambda path: draw(5, 110, 110).save(path, quality=75, progressive=True, subsampling=2),
    "grey.jpg": lambda path: draw(6, 90, 100).convert("L").save(path, quality=85),
    "cmyk.jpg": lambda path: draw(7, 100, 70).convert("CMYK").save(path, quality=90),
    "turned.jpg": _turned,
    "palette.png": lambda path: draw(10, 90, 90).quantize(32).save(path),
    "palette_clear.png": lambda path: draw(11, 90, 90).quantize(16).save(path, transparency=3),
    "alpha.png": lambda path: _with_alpha(draw(12, 100, 80)).save(path),
    "grey_alpha.png": lambda path: _with_alpha(draw(13, 80, 80).convert("L")).save(path),
    "grey16.png": lambda path: _grey16(14).save(path),
    "one_bit.png": lambda path: draw(15, 100, 90).convert("1").save(path),
    "lossless.webp": lambda path: draw(16, 100, 60).save(path, lossless=True),
    "alpha.webp": lambda path: _with_alpha(draw(17, 80, 100)).save(path, quality=80),
}


def main() -> int:
    """Draw all pictures and return the exit code."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, save in PICTURES.items():
        save(FOLDER / name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
