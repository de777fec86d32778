"""Messages between a runner and a decoder process, over a socket pair.

The runner sends a request. The decoder answers at once with a refusal, or with the estimated cost; for a quick picture
the pixels follow, for another one the runner first says whether to go on.
"""

import struct
from dataclasses import dataclass

from inference.runner.pictures.cost import Cost, PictureLimits
from inference.runner.pictures.options import PictureOptions, Rendering

READY = b"r"  # a decoder's first byte, when it can take requests
GO_ON, DROP = b"g", b"d"
REFUSED, ESTIMATED, PIXELS = 1, 2, 3  # kinds of responses
REASONS = ("IMAGE_UNREADABLE", "IMAGE_TOO_LARGE", "IMAGE_TOO_COSTLY")
OVERRUN_FACTOR = 6  # how many times its estimate a picture may take: other machines are slower
REQUEST = struct.Struct(">IHBQIIdQdQ")
RESPONSE = struct.Struct(">BBIdQ")
NO_COST = Cost(0.0, 0)
_AS_STOCK, _MAY_REDUCE = 1, 2


@dataclass(frozen=True, slots=True)
class DecodeRequest:
    """The header of a request; the content follows."""

    length: int  # bytes of the content
    side: int  # pixels a side of the result
    options: PictureOptions
    quick: Cost  # a picture of at most this cost is decoded without asking

    def pack(self) -> bytes:
        """The bytes to send."""
        limits, options = self.options.limits, self.options
        flags = _AS_STOCK * (options.rendering is Rendering.AS_STOCK) + _MAY_REDUCE * options.may_reduce
        return REQUEST.pack(
            self.length,
            self.side,
            flags,
            limits.max_pixels,
            limits.max_side,
            limits.max_scans,
            limits.max_seconds,
            limits.max_memory_bytes,
            self.quick.seconds,
            self.quick.memory_bytes,
        )


def unpack_request(data: bytes) -> DecodeRequest:
    """The header in `REQUEST.size` bytes."""
    length, side, flags, pixels, most_side, scans, seconds, memory, quick_seconds, quick_memory = REQUEST.unpack(data)
    rendering = Rendering.AS_STOCK if flags & _AS_STOCK else Rendering.AS_SEEN
    limits = PictureLimits(pixels, most_side, scans, seconds, memory)
    options = PictureOptions(limits, rendering, bool(flags & _MAY_REDUCE))
    return DecodeRequest(length, side, options, Cost(quick_seconds, quick_memory))


@dataclass(frozen=True, slots=True)
class Response:
    """The header of a response; `length` bytes follow: a message or pixels."""

    kind: int  # REFUSED, ESTIMATED or PIXELS
    reason: str = ""  # of a refusal
    length: int = 0
    cost: Cost = NO_COST  # the estimate

    def pack(self) -> bytes:
        """The bytes to send."""
        reason = REASONS.index(self.reason) if self.reason else 0
        return RESPONSE.pack(self.kind, reason, self.length, self.cost.seconds, self.cost.memory_bytes)


def unpack_response(data: bytes | bytearray) -> Response:
    """The header in `RESPONSE.size` bytes.

    Raises:
        ValueError: the decoder sent something else.
    """
    kind, reason, length, seconds, memory_bytes = RESPONSE.unpack(data)
    if kind not in (REFUSED, ESTIMATED, PIXELS) or reason >= len(REASONS):
        raise ValueError("not a decoder's response")
    return Response(kind, REASONS[reason], length, Cost(seconds, memory_bytes))
