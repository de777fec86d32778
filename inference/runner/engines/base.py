"""The interface of an engine, and finding engines by name.

An engine's module is imported only when one of its bundles is loaded.
"""

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar, cast

from common.bundle import Bundle
from inference.runner.pictures.options import PictureOptions
from inference.wire import AddressSpan, EntailmentScores

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Pixels = NDArray[np.uint8]  # (side, side, 3)
else:
    Pixels = object  # numpy comes with an engine that needs it: importing it takes half the time of a runner's start
Progress = Callable[[str, float], None]  # phase ("reading", "compiling", "warming_up"), share done 0..1


def log_nothing(*_arguments: object, **_fields: object) -> None:
    """Ignore an event."""


class BundleRefused(ValueError):
    """The bundle cannot be loaded by this engine; the message names the key or tensor and what is supported."""


@dataclass(frozen=True, slots=True)
class PictureFormat:
    """The decoded pictures that an engine takes: RGB, square; the aspect ratio is not kept."""

    side: int  # pixels
    options: PictureOptions


@dataclass(frozen=True, slots=True)
class EntailmentItem:
    """One picture and the statements to judge."""

    image: bytes  # JPEG, PNG or WebP file
    statements: tuple[str, ...]  # 1..32
    premise: str  # may be empty
    pixels: Pixels | None = None  # the decoded picture, where the engine has `pictures` and a runner prepares the item


@dataclass(frozen=True, slots=True)
class AddressItem:
    """Addresses to tag."""

    addresses: tuple[str, ...]  # 1..64


Item = EntailmentItem | AddressItem
# Of one statement, of one address; None of a row without a result: a long address has several rows and one result.
RowResult = EntailmentScores | tuple[AddressSpan, ...] | None


class PreparedItem(Protocol):
    """An item, decoded and tokenised, in host memory."""

    @property
    def rows(self) -> int:
        """Device rows of the item: one for each statement, one or more for each address."""
        ...


ItemT_co = TypeVar("ItemT_co", covariant=True)


@dataclass(frozen=True, slots=True)
class RowRange(Generic[ItemT_co]):
    """Consecutive rows of one item; the unit that device calls are composed of."""

    item: ItemT_co  # the prepared item, or its id while calls are planned
    start: int  # first row
    stop: int  # row after the last

    @property
    def rows(self) -> int:
        """Number of device rows."""
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """Load parameters that the server chooses."""

    device: str  # "cpu" or "cuda:N"
    precision: str  # "float32", "bfloat16"; "" takes the device's default
    threads: int  # compute threads on a CPU; 0 takes the engine's default
    pictures: PictureOptions = field(default_factory=PictureOptions)
    kernels: Path | None = None  # folder of compiled kernels; None: none are used
    log: Callable[..., None] = log_nothing  # name, level and fields of an event


class Engine(Protocol):
    """A loaded model on one device.

    `prepare` may be called from several threads at once; all other methods only from the device thread.
    """

    device: str  # "cpu" or "cuda:N"
    precision: str  # of the computation
    max_call_rows: int  # rows in one device call beyond which throughput does not grow
    pictures: PictureFormat | None  # in which a runner decodes the pictures of its items; None: not at all

    def prepare(self, item: Item) -> PreparedItem:
        """Decode and tokenise an item.

        Raises:
            InputRefused: the caller's item is invalid.
        """
        ...

    def compute(self, ranges: Sequence[RowRange[PreparedItem]]) -> list[tuple[RowResult, ...]]:
        """Compute row ranges in one device call.

        Returns:
            One tuple for each range, one result for each row, in order. Values may be NaN or infinite if the weights
            are bad; the runner checks them.

        Raises:
            torch.OutOfMemoryError: the device has no memory left.
        """
        ...

    def warm_up(self, progress: Progress) -> None:
        """Run first inferences, so that the first caller waits no longer than later ones."""
        ...

    def close(self) -> None:
        """Free what the end of the process does not free."""
        ...


def kernels_of(engine: Engine) -> str:
    """Which compiled kernels an engine uses, see `kernels.name_kernels`: its attribute `kernels`, if it has one."""
    return str(getattr(engine, "kernels", ""))


EngineLoader = Callable[[Path, Bundle, LoadOptions, Progress], Engine]
"""Opens a sealed bundle. Raises BundleRefused (wrong content) or the device's own memory error."""


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Device memory that a load is expected to take, in bytes."""

    weights: int  # at the precision of the computation
    working: int  # tables derived from the weights, activations of the largest call, and what libraries allocate

    @property
    def total(self) -> int:
        """Weights and working memory together."""
        return self.weights + self.working


MemoryEstimator = Callable[[Path, Bundle, LoadOptions], MemoryEstimate | None]
"""Estimates a load from the bundle's configuration and headers, without reading weights; None if it cannot.

Raises ValueError, KeyError or OSError if the files are invalid; the load itself then reports the details.
"""


BUILT_IN: Mapping[str, str] = {
    "ofa": "inference.runner.engines.ofa.load:load_ofa",
    "mgeo": "inference.runner.engines.mgeo.load:load_mgeo",
}
ESTIMATORS: Mapping[str, str] = {
    "ofa": "inference.runner.engines.ofa.load:estimate_ofa_memory",
    "mgeo": "inference.runner.engines.mgeo.load:estimate_mgeo_memory",
}
ESTIMATOR_NAME = "MEMORY_ESTIMATOR"  # attribute of an extra engine's module


def loader_for(engine: str, extra: Mapping[str, str] | None = None) -> EngineLoader:
    """Return the function that opens an engine's bundles.

    Args:
        engine: name, from the bundle.
        extra: additional engines, name to "module:function". Only settings may supply it, never a bundle: importing a
            module that a bundle names would run the bundle's code.

    Raises:
        BundleRefused: this build has no such engine.
        RuntimeError: an extra engine is not "module:function" or cannot be imported.
    """
    known = {**(extra or {}), **BUILT_IN}
    if engine not in known:
        raise BundleRefused(f"engine {engine[:80]!r} is unknown; this build has {', '.join(sorted(known))}")
    return cast("EngineLoader", _import(engine, known[engine]))


def estimator_for(engine: str, extra: Mapping[str, str] | None = None) -> MemoryEstimator | None:
    """Return the engine's memory estimator; an extra engine may define `MEMORY_ESTIMATOR` in its module.

    Raises:
        RuntimeError: the built-in estimator cannot be imported.
    """
    if engine in ESTIMATORS:
        return cast("MemoryEstimator", _import(engine, ESTIMATORS[engine]))
    module, _, _ = (extra or {}).get(engine, "").partition(":")
    own: MemoryEstimator | None = getattr(importlib.import_module(module), ESTIMATOR_NAME, None) if module else None
    return own


def _import(engine: str, location: str) -> object:
    module, _, function = location.partition(":")
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise RuntimeError(f"engine {engine!r} cannot be imported from {location!r}") from error
