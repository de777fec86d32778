"""Loads a sealed bundle: plans its memory, opens it, warms it up and measures the cost of a row."""

import struct
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from common import reasons
from common.bundle import Bundle, BundleBroken, read_bundle
from common.clock import Clock
from common.engine_files import Task
from hotslot.runner.v1 import runner_pb2
from inference.runner.engines.base import (
    BUILT_IN,
    AddressItem,
    BundleRefused,
    Engine,
    EntailmentItem,
    Item,
    LoadOptions,
    Progress,
    RowRange,
    estimator_for,
    loader_for,
)
from inference.runner.hardware import Hardware, measure_free_bytes
from inference.runner.pictures.cost import PictureLimits
from inference.runner.pictures.options import PictureOptions, Rendering
from inference.runner.plan import is_out_of_memory, plan_load
from inference.runner.reporting import describe_error

MEASURED_CALLS = 3
MEASURED_SECONDS = 0.25  # no further call starts after this time
SAMPLE_SIDE = 64  # pixels


class LoadRefused(ValueError):
    """A load failed. The message names no paths.

    Attributes:
        reason: BUNDLE_BROKEN, BUNDLE_FOREIGN, DOES_NOT_FIT, OUT_OF_MEMORY or LOAD_FAILED.
        needed_bytes: estimate of the plan, if memory is the reason; 0 if unknown.
        free_bytes: free memory of the device, if memory is the reason; 0 if unknown.
    """

    def __init__(self, reason: str, message: str, needed_bytes: int = 0, free_bytes: int = 0) -> None:
        super().__init__(message)
        self.reason = reason
        self.needed_bytes = needed_bytes
        self.free_bytes = free_bytes


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A warm model."""

    engine: Engine
    bundle: Bundle
    row_seconds: float  # measured cost of a single row
    needed_bytes: int  # estimate; 0 if the engine gives none


@dataclass(frozen=True, slots=True)
class LoadContext:
    """The environment of a load in its process."""

    extra: Mapping[str, str]  # additional engines, name to "module:function"
    hardware: Hardware
    clock: Clock
    log: Callable[..., None]
    threads: int  # CPU threads during the load
    on_planned: Callable[[int], None]  # called with the bytes that the load needs; 0 if there is no estimate
    kernels: Path | None = None  # see LoadOptions


def load_bundle(request: runner_pb2.LoadBundle, context: LoadContext, progress: Progress) -> LoadedModel:
    """Load a bundle. Device thread only.

    Raises:
        LoadRefused: the load failed; its allocations can be garbage-collected.
    """
    needed = 0
    try:
        bundle, options = _read_bundle(request, context)
        needed = _check_memory(request, bundle, options, context)
        context.on_planned(needed)
        engine = _open_bundle(Path(request.directory), bundle, options, context.extra, progress)
        start = context.clock.monotonic()
        engine.warm_up(progress)
        seconds = context.clock.monotonic() - start
        return LoadedModel(
            engine, bundle, _measure_row(engine, seconds, make_sample_item(bundle.task), context.clock), needed
        )
    except LoadRefused:
        raise
    except Exception as error:
        context.log("load_failed", level="error", error=describe_error(error))
        if is_out_of_memory(error):
            free = measure_free_bytes(context.hardware, request.device) or 0
            message = "the device's memory ran out while the model was loaded or warmed up"
            raise LoadRefused(reasons.OUT_OF_MEMORY, message, needed, free) from error
        raise LoadRefused("LOAD_FAILED", "the engine failed while it loaded the bundle") from error


def make_sample_item(task: str) -> Item:
    """Make a small item of a task, for measuring."""
    if task == Task.ADDRESS_TAGGING:
        return AddressItem(("浙江省杭州市余杭区文一西路969号",))
    return EntailmentItem(_grey_png(SAMPLE_SIDE), ("there is nothing in the picture",), "")


def _read_bundle(request: runner_pb2.LoadBundle, context: LoadContext) -> tuple[Bundle, LoadOptions]:
    try:
        bundle = read_bundle(Path(request.directory))
    except BundleBroken as error:
        raise LoadRefused("BUNDLE_BROKEN", str(error)) from error
    except OSError as error:
        sentence = f"the bundle cannot be read now: {(error.strerror or type(error).__name__).lower()}"
        raise LoadRefused("BUNDLE_BROKEN", sentence) from error
    if bundle.engine not in {*BUILT_IN, *context.extra}:
        raise LoadRefused("BUNDLE_FOREIGN", f"this build has no engine {bundle.engine[:80]!r}")
    pictures = read_picture_rules(request.pictures) if request.HasField("pictures") else PictureOptions()
    return bundle, LoadOptions(
        request.device, request.precision, context.threads, pictures, context.kernels, context.log
    )


def read_picture_rules(rules: runner_pb2.PictureRules) -> PictureOptions:
    """Convert the server's message."""
    limits = PictureLimits(
        rules.max_pixels, rules.max_side_pixels, rules.max_scans, rules.max_seconds, rules.max_memory_bytes
    )
    rendering = Rendering.AS_STOCK if rules.as_stock else Rendering.AS_SEEN
    return PictureOptions(limits, rendering, may_reduce=rules.reduced)


def _check_memory(request: runner_pb2.LoadBundle, bundle: Bundle, options: LoadOptions, context: LoadContext) -> int:
    """Return the estimated need in bytes; 0 if the engine gives no estimate.

    Raises:
        LoadRefused: the estimate exceeds the free memory.
    """
    estimator = estimator_for(bundle.engine, context.extra)
    if estimator is None:
        return 0
    try:
        estimate = estimator(Path(request.directory), bundle, options)
    except (ValueError, KeyError, OSError) as error:
        context.log("load_not_planned", level="warning", error=describe_error(error))
        return 0
    if estimate is None:
        return 0
    free = measure_free_bytes(context.hardware, options.device)
    plan = plan_load(options.device, estimate, free, request.reserved_bytes)
    numbers = {"needed_bytes": plan.needed, "free_bytes": plan.free, "reserved_bytes": plan.reserved}
    context.log("load_planned", device=plan.device, **numbers, fits=plan.fits)
    if not plan.fits:
        raise LoadRefused(reasons.DOES_NOT_FIT, plan.message, plan.needed, plan.free or 0)
    return plan.needed


def _open_bundle(
    folder: Path, bundle: Bundle, options: LoadOptions, extra: Mapping[str, str], progress: Progress
) -> Engine:
    try:
        return loader_for(bundle.engine, extra)(folder, bundle, options, progress)
    except BundleRefused as error:
        raise LoadRefused("BUNDLE_BROKEN", str(error)) from error


def _measure_row(engine: Engine, warm_up_seconds: float, item: Item, clock: Clock) -> float:
    """Measure the seconds of one row: the least of up to `MEASURED_CALLS` calls within `MEASURED_SECONDS`.

    The least, because a load often shares the machine with a serving process, which slows single calls down. A long
    warm-up of a single row is taken as the measurement; the self-test after every load corrects it.
    """
    if engine.max_call_rows == 1 and warm_up_seconds > MEASURED_SECONDS:
        return warm_up_seconds
    prepared = engine.prepare(item)
    start = clock.monotonic()
    seconds: list[float] = []
    while len(seconds) < MEASURED_CALLS and clock.monotonic() - start < MEASURED_SECONDS:
        before = clock.monotonic()
        engine.compute([RowRange(prepared, 0, 1)])
        seconds.append(clock.monotonic() - before)
    return min(seconds)


def _grey_png(side: int) -> bytes:
    rows = b"".join(b"\0" + b"\x80" * side for _ in range(side))
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_png_chunk(kind, content) for kind, content in parts)


def _png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
