"""Estimates what decoding a picture takes, from its header, and refuses what takes more than the limits.

The constants are nanoseconds of CPU time on one core of an AMD EPYC with AVX-512 (Pillow 13.0, libjpeg-turbo 3.2,
libwebp 1.6, zlib-ng), measured by `make bench-prepare` on photographs, flat areas and noise, and rounded up so that no
measured picture took more than its estimate. Other machines differ by a factor; limits are in seconds of this one, so
that the same picture gets the same answer everywhere.
"""

from dataclasses import dataclass

from inference.runner.pictures.file import JpegLayout, Kind, PictureFile, PictureRefused, PngLayout, WebpLayout

MIB = 1 << 20
DEFAULT_MAX_PIXELS = 64_000_000
DEFAULT_MAX_SIDE = 16_384  # pixels
DEFAULT_MAX_SCANS = 100
DEFAULT_MAX_SECONDS = 2.0
DEFAULT_MAX_MEMORY_BYTES = 272 * MIB
STRIP_PIXELS = 1 << 20  # that are converted at once
REDUCTIONS = (8, 4, 2)  # of a side, that libjpeg decodes to
REDUCED_MARGIN = 2  # a reduced picture has at least this many times the pixels a side that the model needs

_NS = 1e-9
_JPEG_BYTE, _JPEG_BLOCK = 10, 14  # entropy decoding of a single pass
_JPEG_SCAN_BYTE, _JPEG_SCAN_BLOCK = 42, 20  # … of one of several passes
_JPEG_ARITHMETIC = 4  # times the time of Huffman coding
_JPEG_TRANSFORM = {1: 80, 2: 30, 4: 20, 8: 14}  # of a block, colour conversion included; by reduction
_PNG_BYTE, _PNG_PIXEL = 7.5, 2  # of inflated data
_PNG_INTERLACED = 2  # times
_LOSSY_BYTE, _LOSSY_PIXEL = 55, 6
_LOSSLESS_BYTE, _LOSSLESS_PIXEL = 14, 12
_WEBP_ALPHA_PIXEL = 6
_RESIZE_PIXEL, _CONVERT_PIXEL = 8, 10  # of a decoded pixel; conversion: alpha, turning, CMYK, 16 bits
_PROFILE, _PROFILE_PIXEL = 20_000_000, 45  # reading an ICC profile; a pixel of CMYK: others take a third of both
_FIXED_SECONDS = 0.002  # header, last pass of resizing, colour profile
_FIXED_BYTES = 8 * MIB
_CONVERT_BYTES = 16  # a pixel of a strip: with alpha, without, the white below, turned
_COPY_BYTES = 4  # a pixel of a picture that is converted whole
_COEFFICIENT_BYTES = 2 * 64  # of a block
_WEBP_BYTES, _WEBP_FRAME_BYTES = 16, 4  # a pixel of the canvas; of the frame before it is placed there


@dataclass(frozen=True, slots=True)
class PictureLimits:
    """The most that is decoded."""

    max_pixels: int = DEFAULT_MAX_PIXELS
    max_side: int = DEFAULT_MAX_SIDE  # pixels
    max_scans: int = DEFAULT_MAX_SCANS  # of a JPEG
    max_seconds: float = DEFAULT_MAX_SECONDS  # by the estimate
    max_memory_bytes: int = DEFAULT_MAX_MEMORY_BYTES  # by the estimate


@dataclass(frozen=True, slots=True)
class Cost:
    """An estimate."""

    seconds: float  # CPU time of one thread
    memory_bytes: int  # at the peak


def choose_reduction(file: PictureFile, side: int) -> int:
    """The largest reduction of a JPEG that leaves enough pixels for the model; 1 for other formats.

    Pillow has no reduced decoding of PNG and WebP.
    """
    if file.kind is not Kind.JPEG:
        return 1
    least = REDUCED_MARGIN * side
    return next((by for by in REDUCTIONS if min(file.width, file.height) // by >= least), 1)


def check_size(file: PictureFile, limits: PictureLimits) -> None:
    """Refuse a picture of too many pixels.

    Raises:
        PictureRefused: IMAGE_TOO_LARGE.
    """
    if max(file.width, file.height) > limits.max_side or file.pixels > limits.max_pixels:
        raise PictureRefused(
            f"the picture has {file.width} × {file.height} pixels; the limits are {limits.max_side} a side"
            f" and {limits.max_pixels} in all",
            reason="IMAGE_TOO_LARGE",
        )


def check_cost(file: PictureFile, cost: Cost, limits: PictureLimits) -> None:
    """Refuse a picture that takes too long or too much memory.

    Raises:
        PictureRefused: IMAGE_TOO_COSTLY.
    """
    what = f"decoding this {file.kind} file of {file.width} × {file.height} pixels"
    if isinstance(file.layout, JpegLayout) and file.layout.scans > 1:
        what += f" and {file.layout.scans} scans"
    if cost.seconds > limits.max_seconds:
        raise PictureRefused(
            f"{what} takes about {cost.seconds:.1f} s; the limit is {limits.max_seconds:g} s",
            reason="IMAGE_TOO_COSTLY",
        )
    if cost.memory_bytes > limits.max_memory_bytes:
        step = "; as a JPEG it takes a fraction" if file.kind is Kind.WEBP else ""
        raise PictureRefused(
            f"{what} takes about {cost.memory_bytes // MIB} MiB of memory;"
            f" the limit is {limits.max_memory_bytes // MIB} MiB{step}",
            reason="IMAGE_TOO_COSTLY",
        )


def estimate_cost(file: PictureFile, side: int, reduction: int, *, converts: bool, in_strips: bool) -> Cost:
    """Estimate the decoding of a picture to the model's size.

    Args:
        file: its header.
        side: pixels a side of the result.
        reduction: of a JPEG, from `choose_reduction`.
        converts: whether the decoded pixels are turned, or converted from another colour model or depth.
        in_strips: whether this is done in strips, or with the whole picture.
    """
    match file.layout:
        case JpegLayout():
            decoding, pixels, memory = _estimate_jpeg(file, file.layout, reduction)
        case PngLayout():
            decoding, pixels, memory = _estimate_png(file, file.layout)
        case WebpLayout():
            decoding, pixels, memory = _estimate_webp(file, file.layout)
    after = pixels * (_RESIZE_PIXEL + _CONVERT_PIXEL * converts)
    if file.profile:
        after += (pixels if pixels <= STRIP_PIXELS else side**2) * _PROFILE_PIXEL + _PROFILE
    memory += 4 * side * max(file.width, file.height)  # resized along one axis
    if converts:
        memory += min(pixels, STRIP_PIXELS) * _CONVERT_BYTES if in_strips else pixels * _COPY_BYTES
    return Cost(_FIXED_SECONDS + (decoding + after) * _NS, _FIXED_BYTES + memory + 2 * len(file.essential))


def _estimate_jpeg(file: PictureFile, layout: JpegLayout, reduction: int) -> tuple[float, int, int]:
    """Nanoseconds, decoded pixels, bytes."""
    size = len(file.essential)
    if layout.is_buffered:
        entropy = size * _JPEG_SCAN_BYTE + layout.scanned_blocks * _JPEG_SCAN_BLOCK
    else:
        entropy = size * _JPEG_BYTE + layout.blocks * _JPEG_BLOCK
    if layout.is_arithmetic:
        entropy *= _JPEG_ARITHMETIC
    pixels = -(-file.width // reduction) * -(-file.height // reduction)
    memory = pixels * (1 if layout.components == 1 else 4) + layout.is_buffered * layout.blocks * _COEFFICIENT_BYTES
    return entropy + layout.blocks * _JPEG_TRANSFORM[reduction], pixels, memory


def _estimate_png(file: PictureFile, layout: PngLayout) -> tuple[float, int, int]:
    inflated = -(-file.width * layout.row_bits // 8) * file.height
    times = _PNG_INTERLACED if layout.is_interlaced else 1
    is_one_byte = layout.channels == 1 and layout.depth <= 8  # noqa: PLR2004
    bytes_a_pixel = 1 if is_one_byte else 2 if layout.channels == 1 else 4
    return times * (inflated * _PNG_BYTE + file.pixels * _PNG_PIXEL), file.pixels, file.pixels * bytes_a_pixel


def _estimate_webp(file: PictureFile, layout: WebpLayout) -> tuple[float, int, int]:
    a_byte, a_pixel = (_LOSSLESS_BYTE, _LOSSLESS_PIXEL) if layout.is_lossless else (_LOSSY_BYTE, _LOSSY_PIXEL)
    decoding = len(file.essential) * a_byte + layout.frame_pixels * a_pixel
    decoding += file.pixels * (_WEBP_ALPHA_PIXEL * (1 + layout.has_alpha))  # the canvas is copied twice
    return decoding, file.pixels, file.pixels * _WEBP_BYTES + layout.frame_pixels * _WEBP_FRAME_BYTES
