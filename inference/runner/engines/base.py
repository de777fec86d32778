"""What every engine offers the runner: prepare on any thread, compute on the device thread."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from common.bundle import Bundle
from inference.wire import EntailmentScores

DEFAULT_MAX_PIXELS = 64_000_000  # of one picture
DEFAULT_MAX_SIDE = 16_384  # pixels

Progress = Callable[[str, float], None]  # phase ("reading", "warming_up"), share done 0..1


class BundleRefused(ValueError):
    """The bundle cannot be loaded by this engine; the sentence names key or tensor and what is supported."""


@dataclass(frozen=True, slots=True)
class EntailmentItem:
    """One picture and what is to be judged about it."""

    image: bytes  # JPEG, PNG or WebP file
    statements: tuple[str, ...]  # 1..32
    premise: str  # may be empty


@dataclass(frozen=True, slots=True)
class AddressItem:
    """Addresses to tag."""

    addresses: tuple[str, ...]  # 1..64


@dataclass(frozen=True, slots=True)
class AddressSpan:
    """One part of an address."""

    kind: str
    start: int  # first code point
    end: int  # code point after the last
    probability: float  # of the returned label, 0..1


Item = EntailmentItem | AddressItem
UnitResult = EntailmentScores | tuple[AddressSpan, ...]  # of one statement, of one address


class Prepared(Protocol):
    """An item, decoded and tokenised, in host memory."""

    @property
    def rows(self) -> int:
        """Device rows of the item: its statements or addresses."""
        ...


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some consecutive rows of one prepared item: what one device call computes of it."""

    prepared: Prepared
    start: int  # first row
    stop: int  # row after the last

    @property
    def rows(self) -> int:
        """Device rows of the chunk."""
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """What the server decides about a load."""

    device: str  # "cpu" or "cuda:N"
    precision: str  # "float32", "bfloat16"; "" takes the device's default
    threads: int  # compute threads on a CPU; 0 takes the engine's default
    max_image_pixels: int = DEFAULT_MAX_PIXELS
    max_image_side: int = DEFAULT_MAX_SIDE  # pixels


class Engine(Protocol):
    """A loaded model on one device.

    `prepare` may be called from several threads at once; everything else from the one device
    thread alone.
    """

    device: str  # "cpu" or "cuda:N"
    precision: str  # that it computes in
    max_call_rows: int  # device rows that pay in one call

    def prepare(self, item: Item) -> Prepared:
        """Decode and tokenise an item.

        Raises:
            InputRefused: the caller's item is wrong.
        """
        ...

    def compute(self, chunks: Sequence[Chunk]) -> list[tuple[UnitResult, ...]]:
        """Compute chunks in one device call.

        Returns:
            One tuple a chunk, one result a row, in order. Values may be NaN if the weights are bad:
            the runner looks.

        Raises:
            torch.OutOfMemoryError: the device has no memory left.
        """
        ...

    def warm_up(self, progress: Progress) -> None:
        """Run first inferences so that the first caller waits no longer than the hundredth."""
        ...

    def close(self) -> None:
        """Let go of what an exit does not free by itself."""
        ...


EngineLoader = Callable[[Path, Bundle, LoadOptions, Progress], Engine]
"""Opens a sealed bundle. Raises BundleRefused (wrong content) or the device's own memory error."""


@dataclass(frozen=True, slots=True)
class MemoryNeed:
    """What a load will take on its device, as the engine expects it. Bytes."""

    weights: int  # at the precision that they are computed in
    working: int  # what is made of them once, and the largest call

    @property
    def total(self) -> int:
        """Both."""
        return self.weights + self.working


NeedsOf = Callable[[Path, Bundle, LoadOptions], MemoryNeed | None]
"""Foretells a load from small files alone, allocating nothing; None if it cannot be said.

Raises ValueError, KeyError or OSError if the files are not as they should be: opening them will say more.
"""
