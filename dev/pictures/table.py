"""Compare what the model sees of every kind of picture with what ImageMagick shows, and write the table.

    python -m dev.pictures.table            asks ImageMagick; writes tests/pictures/seen.json and docs/pictures.md
    python -m dev.pictures.table --check    compares with the committed table, without ImageMagick

ImageMagick is asked for what a browser does: white behind transparent parts, upright, in sRGB.
"""

import base64
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ImageCms

from dev.pictures.kinds import every_kind, twins
from inference.runner.pictures.decode import plan_picture, render
from inference.runner.pictures.file import PictureRefused
from inference.runner.pictures.options import PictureOptions, Rendering

ROOT = Path(__file__).resolve().parents[2]
TABLE, PAGE = ROOT / "tests" / "pictures" / "seen.json", ROOT / "docs" / "pictures.md"
SIDE = 16  # pixels of a thumbnail
MAX_DIFFERENCE, MAX_MEAN = 16, 1.5  # of 255: the filters round differently, most at hard edges
Thumbnail = NDArray[np.uint8]  # (SIDE, SIDE, 3)


@dataclass(frozen=True, slots=True)
class Difference:
    """Of two thumbnails, in steps of 255."""

    highest: int
    mean: float

    @property
    def is_small(self) -> bool:
        """Whether a person would call both the same."""
        return self.highest <= MAX_DIFFERENCE and self.mean <= MAX_MEAN


def compare(one: Thumbnail, other: Thumbnail) -> Difference:
    """Compare two thumbnails."""
    distance = np.abs(one.astype(int) - other)
    return Difference(int(distance.max()), float(distance.mean()))


def see(content: bytes, rendering: Rendering = Rendering.AS_SEEN) -> Thumbnail:
    """What a model of this size gets.

    Raises:
        PictureRefused: the picture is refused.
    """
    plan = plan_picture(content, SIDE, PictureOptions(rendering=rendering))
    return np.asarray(render(plan, rendering))


def read_table() -> dict[str, Thumbnail]:
    """The committed thumbnails of the independent renderer, by kind."""
    rows = json.loads(TABLE.read_text(encoding="utf-8"))["thumbnails"]
    return {name: np.frombuffer(base64.b64decode(data), np.uint8).reshape(SIDE, SIDE, 3) for name, data in rows.items()}


class ImageMagick:
    """The independent renderer."""

    def __init__(self, folder: Path) -> None:
        program = shutil.which("magick") or shutil.which("convert")
        if program is None:
            raise SystemExit("ImageMagick is missing: apt install imagemagick")
        self._program = program
        self._folder = folder
        self._srgb = folder / "srgb.icc"
        self._srgb.write_bytes(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
        self.version = self._run("-version").decode().splitlines()[0].removeprefix("Version: ").split(" http")[0]

    def render(self, content: bytes) -> Thumbnail:
        """The picture as it shows it."""
        file = self._folder / "picture"
        file.write_bytes(content)
        white = ["-background", "white", "-alpha", "remove", "-alpha", "off"]
        resize = ["-filter", "Catrom", "-resize", f"{SIDE}x{SIDE}!"]
        colours = ["-profile", str(self._srgb), "-colorspace", "sRGB"]
        out = ["-type", "TrueColor", "-depth", "8", "rgb:-"]
        pixels = self._run(f"{file}[0]", "-auto-orient", *white, *colours, *resize, *out)
        return np.frombuffer(pixels, np.uint8).reshape(SIDE, SIDE, 3)  # fails if it has shown nothing

    def _run(self, *arguments: str) -> bytes:
        done = subprocess.run([self._program, *arguments], capture_output=True, check=False)
        return done.stdout  # warnings, about a profile for example, are no failure


def main() -> int:
    """Make or check the table; returns the exit code."""
    expected = read_table() if "--check" in sys.argv else _render_all()
    rows = list(_rows(expected))
    for name, seen, stock in rows:
        if not (isinstance(seen, str) or seen.is_small):
            print(f"{name}: {seen.highest} at most, {seen.mean:.2f} on average (as stock: {stock})")
    different = [name for name, seen, _ in rows if isinstance(seen, Difference) and not seen.is_small]
    print(f"{len(rows)} kinds, {len(different)} of which look different")
    if "--check" not in sys.argv:
        PAGE.write_text(_page(rows), encoding="utf-8")
    return bool(different)


def _render_all() -> dict[str, Thumbnail]:
    others = twins()
    with tempfile.TemporaryDirectory() as folder:
        renderer = ImageMagick(Path(folder))
        thumbnails = {
            name: renderer.render(others[name].make() if name in others else make()) for name, make in every_kind()
        }
        rows = {name: base64.b64encode(pixels.tobytes()).decode() for name, pixels in thumbnails.items()}
        table = {"renderer": renderer.version, "side": SIDE, "thumbnails": rows}
        TABLE.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    return thumbnails


def _rows(expected: Mapping[str, Thumbnail]) -> Iterator[tuple[str, Difference | str, Difference | str]]:
    for name, make in every_kind():
        content = make()
        seen, stock = (_difference(content, rendering, expected[name]) for rendering in Rendering)
        yield name, seen, stock


def _difference(content: bytes, rendering: Rendering, expected: Thumbnail) -> Difference | str:
    try:
        return compare(see(content, rendering), expected)
    except PictureRefused as refusal:
        return str(refusal)


def _page(rows: list[tuple[str, Difference | str, Difference | str]]) -> str:
    renderer = json.loads(TABLE.read_text(encoding="utf-8"))["renderer"]
    lines = [
        _INTRODUCTION.format(kinds=len(rows), renderer=renderer, highest=MAX_DIFFERENCE, mean=MAX_MEAN),
        "| kind | as seen: highest, mean | as stock: highest, mean |",
        "|---|---|---|",
        *(f"| {name} | {_cell(seen)} | {_cell(stock)} |" for name, seen, stock in rows),
        "",
        "For these kinds ImageMagick was given a picture that looks the same to a person, because it shows them",
        "otherwise:",
        "",
        *_reasons(),
        "",
    ]
    return "\n".join(lines)


def _reasons() -> Iterator[str]:
    by_reason: dict[str, list[str]] = {}
    for name, twin in twins().items():
        by_reason.setdefault(twin.reason, []).append(name)
    for reason, names in by_reason.items():
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        yield f"- {names[0]}{more}: it {reason}."


def _cell(row: Difference | str) -> str:
    return row if isinstance(row, str) else f"{row.highest}, {row.mean:.1f}"


_INTRODUCTION = """\
# What the model sees of a picture

This page is made by `python -m dev.pictures.table`.

By default (`pictures = "as_seen"`) the model gets what a person sees in a browser:

- transparent parts are white; a transparent colour (tRNS) too;
- all bits of a sample count: of 16 the upper 8, fewer are stretched;
- the EXIF orientation is applied, in all three formats, also where another tag is broken;
- an ICC profile of the picture's colour model (RGB, grey, CMYK) converts it to sRGB (perceptual intent); a profile
  that is broken or of another model is ignored. CMYK without a profile is converted by (1 − ink) × (1 − black). A
  PNG's gAMA is applied unless sRGB, iCCP or cICP is there; cHRM and cICP are ignored;
- of an animation the first frame is used, on a transparent canvas; of an animated PNG, its default image;
- it is resized to the model's square (bicubic), without keeping the aspect ratio. A JPEG of at least four times the
  model's pixels a side is decoded at a half, a quarter or an eighth of its size before (`reduced_decoding`).

`pictures = "as_stock"` is ModelScope's pipeline, bit for bit: alpha is dropped and what is hidden below it shows,
16-bit grey is clipped, profile and gamma are ignored, nothing is reduced. Use it where a model was trained on such
pictures and is to be compared with the pipeline.

Decoding a WebP takes up to 20 bytes a pixel, and its decoder cannot reduce it: by the default of
`max_image_memory_bytes` (272 MiB) one of more than about 13 megapixels is refused with IMAGE_TOO_COSTLY, with alpha
one of more than about 12. The same picture as a JPEG is accepted up to `max_image_pixels`.

Either way broken metadata never refuses a picture, and a truncated one is refused, as are JPEGs of 12 bits,
lossless and hierarchical ones.

## Reduced decoding

`python -m dev.pictures.reduced` compares it with decoding the whole picture. Of 18 drawn JPEGs at the sizes where a
reduction begins (three modes, two qualities, progressive or not) no pixel of 480 × 480 changes by more than 13 of
255, 0.4 on average. Of 120 enlarged pictures of the demo's golden set, reduced by 2, 4 and 8, no probability
changes by more than 0.018 and no answer flips. With `reduced_decoding = false` nothing changes, and a picture of 12
megapixels takes four times as long.

## Compared with another renderer

{kinds} kinds of files are drawn from one scene (`dev/pictures/kinds.py`), shown by {renderer} and prepared for a
model, and compared at 16 × 16 pixels, in steps of 255. Tolerance: {highest} at most, {mean} on average.
"""


if __name__ == "__main__":
    sys.exit(main())
