"""What the header of a picture says, before anything is decoded: format, size, work, metadata that viewers apply."""

from dataclasses import dataclass, field
from enum import StrEnum

FIELD = "image.content"


class PictureRefused(ValueError):
    """The picture cannot be, or is not to be, decoded. The message is for the caller.

    Attributes:
        reason: IMAGE_UNREADABLE, IMAGE_TOO_LARGE or IMAGE_TOO_COSTLY.
    """

    def __init__(self, message: str, reason: str = "IMAGE_UNREADABLE") -> None:
        super().__init__(message)
        self.reason = reason


def unreadable(kind: str, what: str) -> PictureRefused:
    """The refusal of a file whose header is damaged: `what` completes "the JPEG file …"."""
    return PictureRefused(f"the {kind} file {what}")


class Kind(StrEnum):
    """A format that is decoded."""

    JPEG = "JPEG"
    PNG = "PNG"
    WEBP = "WebP"


@dataclass(frozen=True, slots=True)
class JpegLayout:
    """The properties that determine the cost of decoding a JPEG."""

    components: int
    blocks: int  # of 8 × 8 samples, all components
    scans: int
    scanned_blocks: int  # sum over the scans of the blocks that each goes through
    is_buffered: bool  # needs all coefficients at once: progressive, or several scans
    is_arithmetic: bool


@dataclass(frozen=True, slots=True)
class PngLayout:
    """The properties that determine the cost of decoding a PNG."""

    depth: int  # bits a sample
    channels: int  # samples a pixel in the file; 1 for a palette
    is_interlaced: bool
    has_transparency: bool  # an alpha channel or a tRNS chunk
    key: tuple[int, ...] = ()  # the transparent colour of a file without an alpha channel, at the file's depth

    @property
    def row_bits(self) -> int:
        """Bits of one pixel."""
        return self.depth * self.channels


@dataclass(frozen=True, slots=True)
class WebpLayout:
    """The properties that determine the cost of decoding a WebP."""

    is_lossless: bool
    has_alpha: bool
    frame_pixels: int  # of the first frame, which may be smaller than the canvas


@dataclass(frozen=True, slots=True)
class PictureFile:
    """A picture's header, and the file without what decoding does not need."""

    kind: Kind
    width: int  # pixels, as stored: before the orientation is applied
    height: int
    layout: JpegLayout | PngLayout | WebpLayout
    essential: bytes = field(repr=False)  # a valid file of the first frame, without metadata
    exif: bytes = field(default=b"", repr=False)  # a TIFF structure; may be broken
    profile: bytes = field(default=b"", repr=False)  # ICC; may be broken
    xmp: bytes = field(default=b"", repr=False)  # XML; read as stock does, not as seen
    text_exif: bytes = field(default=b"", repr=False)  # EXIF that a PNG has as text, of ImageMagick; the same
    gamma: float = 0.0  # exponent of the encoding that a PNG declares; 0: none
    is_animated: bool = False

    @property
    def pixels(self) -> int:
        """Pixels of the whole picture."""
        return self.width * self.height
