"""From a sealed bundle to a warm engine whose cost is known."""

import struct
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from common.bundle import Bundle, BundleBroken, read_bundle
from common.clock import Clock
from common.engine_files import Task
from hotslot.runner.v1 import runner_pb2
from inference.runner.engines.base import (
    DEFAULT_MAX_PIXELS,
    DEFAULT_MAX_SIDE,
    AddressItem,
    BundleRefused,
    Chunk,
    Engine,
    EntailmentItem,
    Item,
    LoadOptions,
    Progress,
)
from inference.runner.engines.catalog import BUILT_IN, loader_for
from inference.runner.log import describe
from inference.runner.oom import is_out_of_memory

MEASURED_CALLS = 3
MEASURED_SECONDS = 1.0  # no further call is begun after that
SAMPLE_SIDE = 64  # pixels


class LoadRefused(ValueError):
    """A load that failed; the reason is for machines, the sentence for people, without paths.

    Attributes:
        reason: BUNDLE_BROKEN, BUNDLE_FOREIGN, OUT_OF_MEMORY or LOAD_FAILED.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model that can compute."""

    engine: Engine
    bundle: Bundle
    unit_seconds: float  # measured, of one unit alone


def load(
    request: runner_pb2.LoadBundle,
    extra: Mapping[str, str],
    progress: Progress,
    clock: Clock,
    log: Callable[..., None],
) -> Loaded:
    """Open a bundle, warm it up and measure it. Device thread only.

    Raises:
        LoadRefused: it did not work; what was allocated is garbage now.
    """
    try:
        bundle, engine = _open(request, extra, progress)
        engine.warm_up(progress)
        return Loaded(engine, bundle, _measure(engine, sample_item(bundle.task), clock))
    except LoadRefused:
        raise
    except Exception as error:
        log("load_failed", level="error", error=describe(error))
        if is_out_of_memory(error):
            raise LoadRefused("OUT_OF_MEMORY", "the model does not fit into the device's memory") from error
        raise LoadRefused("LOAD_FAILED", "the engine failed while it loaded the bundle") from error


def sample_item(task: str) -> Item:
    """A small item of a task, to measure with."""
    if task == Task.ADDRESS_TAGGING:
        return AddressItem(("浙江省杭州市余杭区文一西路969号",))
    return EntailmentItem(_grey_png(SAMPLE_SIDE), ("there is nothing in the picture",), "")


def _open(request: runner_pb2.LoadBundle, extra: Mapping[str, str], progress: Progress) -> tuple[Bundle, Engine]:
    folder = Path(request.directory)
    try:
        bundle = read_bundle(folder)
    except BundleBroken as error:
        raise LoadRefused("BUNDLE_BROKEN", str(error)) from error
    if bundle.engine not in {*BUILT_IN, *extra}:
        raise LoadRefused("BUNDLE_FOREIGN", f"this build has no engine {bundle.engine[:80]!r}")
    options = LoadOptions(
        request.device,
        request.precision,
        request.threads,
        request.max_image_pixels or DEFAULT_MAX_PIXELS,
        request.max_image_side_pixels or DEFAULT_MAX_SIDE,
    )
    try:
        return bundle, loader_for(bundle.engine, extra)(folder, bundle, options, progress)
    except BundleRefused as error:
        raise LoadRefused("BUNDLE_BROKEN", str(error)) from error


def _measure(engine: Engine, item: Item, clock: Clock) -> float:
    """Seconds of one unit: the median of a few calls, or of as many as a short time allows."""
    prepared = engine.prepare(item)
    begun = clock.monotonic()
    seconds: list[float] = []
    while len(seconds) < MEASURED_CALLS and clock.monotonic() - begun < MEASURED_SECONDS:
        before = clock.monotonic()
        engine.compute([Chunk(prepared, 0, 1)])
        seconds.append(clock.monotonic() - before)
    return sorted(seconds)[len(seconds) // 2]


def _grey_png(side: int) -> bytes:
    rows = b"".join(b"\0" + b"\x80" * side for _ in range(side))
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_png_chunk(kind, content) for kind, content in parts)


def _png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
