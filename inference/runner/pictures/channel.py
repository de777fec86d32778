"""Messages between a runner and a decoder process, over a socket pair.

The runner sends a request. The decoder answers at once with a refusal, or with the estimated cost; for a quick picture
the pixels follow, for another one the runner first says whether to go on.

Requests of several small pictures are sent at once. Their answers come in the same order, several at once, too; a
picture that turns out not to be quick is answered with its estimated cost, and not decoded.
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
_AS_STOCK, _MAY_REDUCE, _IS_JOINED, _IS_FOLLOWED = 1, 2, 4, 8


@dataclass(frozen=True, slots=True)
class DecodeRequest:
    """The header of a request; the content follows."""

    length: int  # bytes of the content
    side: int  # pixels a side of the result
    options: PictureOptions
    quick: Cost  # a picture of at most this cost is decoded without asking
    is_joined: bool = False  # with others: a picture that is not quick is not decoded, and the decoder does not ask
    is_followed: bool = False  # the next request follows at once: the answer may be held for a moment

    def pack(self) -> bytes:
        """The bytes to send."""
        limits, options = self.options.limits, self.options
        flags = _AS_STOCK * (options.rendering is Rendering.AS_STOCK) + _MAY_REDUCE * options.may_reduce
        flags += _IS_JOINED * self.is_joined + _IS_FOLLOWED * self.is_followed
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
    quick = Cost(quick_seconds, quick_memory)
    return DecodeRequest(length, side, options, quick, bool(flags & _IS_JOINED), bool(flags & _IS_FOLLOWED))


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
