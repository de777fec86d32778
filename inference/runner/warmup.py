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
from inference.runner.engines.catalog import BUILT_IN, loader_for, needs_of
from inference.runner.hardware import Hardware, free_bytes
from inference.runner.plan import is_out_of_memory, plan_load
from inference.runner.reporting import describe

MEASURED_CALLS = 3
MEASURED_SECONDS = 0.25  # no further call is begun after that: a large model's load waits for its warm-up alone
SAMPLE_SIDE = 64  # pixels


class LoadRefused(ValueError):
    """A load that failed; the reason is for machines, the sentence for people, without paths.

    Attributes:
        reason: BUNDLE_BROKEN, BUNDLE_FOREIGN, DOES_NOT_FIT, OUT_OF_MEMORY or LOAD_FAILED.
        needed_bytes: what the plan said, if memory is the reason; 0 if it said nothing.
        free_bytes: what there was on the device, if memory is the reason; 0 if nobody knows.
    """

    def __init__(self, reason: str, message: str, needed_bytes: int = 0, free_bytes: int = 0) -> None:
        super().__init__(message)
        self.reason = reason
        self.needed_bytes = needed_bytes
        self.free_bytes = free_bytes


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model that can compute."""

    engine: Engine
    bundle: Bundle
    row_seconds: float  # measured, of one row alone
    needed_bytes: int  # as planned; 0 if the engine does not say


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a load is given of the process around it."""

    extra: Mapping[str, str]  # more engines, name to "module:function"
    hardware: Hardware
    clock: Clock
    log: Callable[..., None]
    threads: int  # that compute on a CPU while it is loaded


def load(request: runner_pb2.LoadBundle, around: Surroundings, progress: Progress) -> Loaded:
    """See whether a bundle fits, open it, warm it up and measure it. Device thread only.

    Raises:
        LoadRefused: it did not work; what was allocated is garbage now.
    """
    needed = 0
    try:
        bundle, options = _read(request, around)
        needed = _planned(Path(request.directory), bundle, options, around)
        engine = _open(Path(request.directory), bundle, options, around.extra, progress)
        begun = around.clock.monotonic()
        engine.warm_up(progress)
        seconds = around.clock.monotonic() - begun
        return Loaded(engine, bundle, _row_seconds(engine, seconds, sample_item(bundle.task), around.clock), needed)
    except LoadRefused:
        raise
    except Exception as error:
        around.log("load_failed", level="error", error=describe(error))
        if is_out_of_memory(error):
            free = free_bytes(around.hardware, request.device) or 0
            message = "the device's memory ran out while the model was loaded or warmed up"
            raise LoadRefused("OUT_OF_MEMORY", message, needed, free) from error
        raise LoadRefused("LOAD_FAILED", "the engine failed while it loaded the bundle") from error


def sample_item(task: str) -> Item:
    """A small item of a task, to measure with."""
    if task == Task.ADDRESS_TAGGING:
        return AddressItem(("浙江省杭州市余杭区文一西路969号",))
    return EntailmentItem(_grey_png(SAMPLE_SIDE), ("there is nothing in the picture",), "")


def _read(request: runner_pb2.LoadBundle, around: Surroundings) -> tuple[Bundle, LoadOptions]:
    try:
        bundle = read_bundle(Path(request.directory))
    except BundleBroken as error:
        raise LoadRefused("BUNDLE_BROKEN", str(error)) from error
    if bundle.engine not in {*BUILT_IN, *around.extra}:
        raise LoadRefused("BUNDLE_FOREIGN", f"this build has no engine {bundle.engine[:80]!r}")
    options = LoadOptions(
        request.device,
        request.precision,
        around.threads,
        request.max_image_pixels or DEFAULT_MAX_PIXELS,
        request.max_image_side_pixels or DEFAULT_MAX_SIDE,
    )
    return bundle, options


def _planned(folder: Path, bundle: Bundle, options: LoadOptions, around: Surroundings) -> int:
    """What the load needs by plan; 0 if the engine cannot say, and then the load itself will."""
    needs = needs_of(bundle.engine, around.extra)
    if needs is None:
        return 0
    try:
        need = needs(folder, bundle, options)
    except (ValueError, KeyError, OSError) as error:
        around.log("load_not_planned", level="warning", error=describe(error))
        return 0
    if need is None:
        return 0
    plan = plan_load(options.device, need, free_bytes(around.hardware, options.device))
    around.log("load_planned", device=plan.device, needed_bytes=plan.needed, free_bytes=plan.free, fits=plan.fits)
    if not plan.fits:
        raise LoadRefused("DOES_NOT_FIT", plan.sentence, plan.needed, plan.free or 0)
    return plan.needed


def _open(folder: Path, bundle: Bundle, options: LoadOptions, extra: Mapping[str, str], progress: Progress) -> Engine:
    try:
        return loader_for(bundle.engine, extra)(folder, bundle, options, progress)
    except BundleRefused as error:
        raise LoadRefused("BUNDLE_BROKEN", str(error)) from error


def _row_seconds(engine: Engine, warm_up_seconds: float, item: Item, clock: Clock) -> float:
    """Seconds of one row: the least of a few calls, or of as many as a short time allows.

    A load often shares the machine with what serves: the slower calls tell about that, not about the model. A warm-up
    that was one long call of one row says enough: the self-test, which follows every load, corrects it.
    """
    if engine.max_call_rows == 1 and warm_up_seconds > MEASURED_SECONDS:
        return warm_up_seconds
    prepared = engine.prepare(item)
    begun = clock.monotonic()
    seconds: list[float] = []
    while len(seconds) < MEASURED_CALLS and clock.monotonic() - begun < MEASURED_SECONDS:
        before = clock.monotonic()
        engine.compute([Chunk(prepared, 0, 1)])
        seconds.append(clock.monotonic() - before)
    return min(seconds)


def _grey_png(side: int) -> bytes:
    rows = b"".join(b"\0" + b"\x80" * side for _ in range(side))
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_png_chunk(kind, content) for kind, content in parts)


def _png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
