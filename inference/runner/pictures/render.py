"""Decodes a picture to the model's size: as a person sees it, or as ModelScope's pipeline does.

A large picture is converted and turned in strips of rows, so that memory holds it once. The stock pipeline's result is
made from the whole picture, because Pillow chooses which axis it resizes first by the size of both.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO

from PIL import Image
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from inference.runner.pictures.colour import Convert, apply_profile, conversion_as_seen
from inference.runner.pictures.cost import STRIP_PIXELS
from inference.runner.pictures.exif import UPRIGHT, read_orientation
from inference.runner.pictures.file import Kind, PictureFile, unreadable

_READERS: dict[Kind, Callable[[BytesIO], ImageFile]] = {
    Kind.JPEG: JpegImageFile,
    Kind.PNG: PngImageFile,
    Kind.WEBP: WebPImageFile,
}
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SWAPS_AXES = {5, 6, 7, 8}
_FROM_THE_RIGHT = {2, 3, 6, 7}  # the left of the upright picture is the end of the stored rows or columns
_FROM_BELOW = {3, 4, 7, 8}  # its top is
_FILTER = Image.Resampling.BICUBIC
_ORIENTATION = 0x0112  # the tag
_XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')


def render_as_seen(file: PictureFile, side: int, reduction: int) -> Image.Image:
    """Decode a picture as a viewer shows it, and resize it.

    Transparent parts are white, all bits of a sample count, the EXIF orientation and the colour profile are applied;
    the latter after resizing if the picture is large, since it takes as long as all the rest.

    Args:
        file: its header.
        side: pixels a side of the result.
        reduction: of a JPEG, from `choose_reduction`; 1 for other formats.

    Raises:
        PictureRefused: the data is damaged or truncated.
        MemoryError: there is too little memory.
    """
    decoded = _decode(file, reduction)
    extent = file.width / reduction, file.height / reduction
    view = _View(decoded, extent, read_orientation(file.exif))
    resized = _resize(view, side, conversion_as_seen(decoded, file))
    if file.profile and decoded.width * decoded.height > STRIP_PIXELS:
        resized = apply_profile(resized, file.profile)
    return resized.convert("RGB")


def render_as_stock(file: PictureFile, side: int) -> Image.Image:
    """Decode a picture exactly as ModelScope's pipeline does: alpha is dropped, 16 bits are clipped, no profile.

    The orientation is the one that Pillow finds, or, where Pillow fails on the metadata, that of `read_orientation`.

    Raises:
        PictureRefused: the data is damaged or truncated.
        MemoryError: there is too little memory.
    """
    picture = _decode(file, 1)
    if picture.mode != "RGB":
        picture = picture.convert("RGB")
    turn = _TURNS.get(_read_stock_orientation(file))
    if turn is not None:
        picture = picture.transpose(turn)
    return picture.resize((side, side), _FILTER)


def _decode(file: PictureFile, reduction: int) -> Image.Image:
    """The decoded picture, in the mode of the file."""
    try:
        picture = _READERS[file.kind](BytesIO(file.essential))
        is_consistent = picture.size == (file.width, file.height)
        if is_consistent:
            if reduction > 1:
                picture.draft(None, (file.width // reduction, file.height // reduction))
            picture.decodermaxblock = len(file.essential)  # one block: joining many takes long
            picture.load()
    except MemoryError:
        raise
    except Exception as error:  # Pillow's readers raise many kinds of errors on malformed data
        how = "truncated" if "truncated" in str(error) else "damaged or truncated"
        raise unreadable(file.kind, f"is {how}") from error
    if not is_consistent:
        raise unreadable(file.kind, "is damaged: its headers contradict each other")
    return picture


@dataclass(frozen=True, slots=True)
class _View:
    """A decoded picture, and how it is turned."""

    decoded: Image.Image
    extent: tuple[float, float]  # of the pixels that count: a reduced picture may end within its last column or row
    orientation: int

    @property
    def turn(self) -> Image.Transpose | None:
        """The turn that makes it upright."""
        return _TURNS.get(self.orientation)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height after EXIF rotation."""
        width, height = self.decoded.size
        return (height, width) if self.orientation in _SWAPS_AXES else (width, height)

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Where the pixels that count are in the upright picture: left, upper, right, lower."""
        across, down = reversed(self.extent) if self.orientation in _SWAPS_AXES else self.extent
        width, height = self.size
        left = width - across if self.orientation in _FROM_THE_RIGHT else 0
        upper = height - down if self.orientation in _FROM_BELOW else 0
        return left, upper, left + across, upper + down

    def cut_strips(self) -> Iterator[tuple[int, Image.Image]]:
        """First row, and pixels before the turn, of each strip of rows of the upright picture."""
        width, height = self.size
        stored_width, stored_height = self.decoded.size
        rows = max(1, STRIP_PIXELS // width)
        for top in range(0, height, rows):
            bottom = min(height, top + rows)
            first, last = (height - bottom, height - top) if self.orientation in _FROM_BELOW else (top, bottom)
            is_column = self.orientation in _SWAPS_AXES
            box = (first, 0, last, stored_height) if is_column else (0, first, stored_width, last)
            yield top, self.decoded.crop(box)


def _resize(view: _View, side: int, convert: Convert | None) -> Image.Image:
    """Convert, turn and resize a picture."""
    decoded, turn, box = view.decoded, view.turn, view.box
    if convert is None and turn is None:
        return decoded.resize((side, side), _FILTER, box)
    if decoded.width * decoded.height <= STRIP_PIXELS:
        return _convert_and_turn(decoded, convert, turn).resize((side, side), _FILTER, box)
    left, upper, right, lower = box
    narrow: Image.Image | None = None
    for top, stored in view.cut_strips():
        strip = _convert_and_turn(stored, convert, turn)
        strip = strip.resize((side, strip.height), _FILTER, (left, 0, right, strip.height))
        narrow = narrow or Image.new(strip.mode, (side, view.size[1]))
        narrow.paste(strip, (0, top))
    if narrow is None:
        raise RuntimeError("the picture has no rows")
    return narrow.resize((side, side), _FILTER, (0, upper, side, lower))


def _convert_and_turn(image: Image.Image, convert: Convert | None, turn: Image.Transpose | None) -> Image.Image:
    image = image if convert is None else convert(image)
    return image if turn is None else image.transpose(turn)


def _read_stock_orientation(file: PictureFile) -> int:
    """The orientation that Pillow's `exif_transpose` applies."""
    try:
        exif = Image.Exif()
        if file.exif or file.text_exif:
            exif.load(file.exif or file.text_exif)
        found = exif.get(_ORIENTATION)
        if found is not None:
            return found if found in _TURNS else UPRIGHT
    except Exception:  # noqa: BLE001  Pillow raises many kinds of errors on malformed metadata
        return read_orientation(file.exif)
    match = _XMP_ORIENTATION.search(file.xmp)
    return int(match[1]) if match else UPRIGHT
