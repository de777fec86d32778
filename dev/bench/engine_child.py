"""One process, one precision, one number of threads: this machine's peak, then the engine. Prints one JSON line."""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from common.bundle import read_bundle
from dev.bench.parts import PartTimes
from dev.bench.work import work_of
from inference.runner.device import torch_dtype
from inference.runner.engines.base import EntailmentItem, LoadOptions, RowRange
from inference.runner.engines.kernels import get_kernels
from inference.runner.engines.linear import multiply, supports_products
from inference.runner.engines.ofa.config import read_config
from inference.runner.engines.ofa.engine import OfaEngine, OfaPreparedItem
from inference.runner.engines.ofa.load import load_ofa
from inference.runner.process import keep_freed_memory

Clock = Callable[[], float]
PEAK_SHAPES = ((1024, 1024, 1024), (2048, 2048, 2048), (4096, 4096, 4096), (928, 1024, 4096))
PICTURE = Path("tests/ofa/pictures/colour.png")
STATEMENTS = ("there are two birds.", "a man is reading on the street")


@dataclass(frozen=True, slots=True)
class Measured:
    """The measurements of one process: seconds of the chosen clock, operations per second."""

    precision: str
    threads: int
    peak: float  # best of PEAK_SHAPES
    first: tuple[float, ...]  # picture and one statement
    second: tuple[float, ...]  # one more statement about it
    after_warm_up: float  # the very first answer
    operations: int  # of `first`, of which the model is made
    executed: int  # of `first`, by our engine
    parts: dict[str, float]  # seconds of an answer by part


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--precision", required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--items", type=int, required=True)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--kernels", type=Path, help="folder of compiled kernels; without: torch's operations")
    options = parser.parse_args()
    keep_freed_memory()
    clock = time.perf_counter if options.clock == "wall" else cpu_clock
    measured = measure(options.folder, options.precision, options.threads, options.items, clock, options.kernels)
    sys.stdout.write(json.dumps(asdict(measured)))
    return 0


def cpu_clock() -> float:
    """CPU seconds of a thread, of which other programs on this machine take nothing."""
    return time.process_time() / torch.get_num_threads()


def measure(
    folder: Path, precision: str, threads: int, items: int, clock: Clock, kernels: Path | None = None
) -> Measured:
    """Measure everything."""
    torch.set_num_threads(threads)
    engine = load_ofa(folder, read_bundle(folder), LoadOptions("cpu", precision, threads, kernels=kernels), nobody)
    engine.warm_up(nobody)
    item = engine.prepare(EntailmentItem(PICTURE.read_bytes(), STATEMENTS, ""))
    first, second, peaks = [], [], []
    for _ in range(items):
        item.patch_features = None
        first.append(seconds_of(lambda: engine.compute([RowRange(item, 0, 1)]), clock))
        second.append(seconds_of(lambda: engine.compute([RowRange(item, 1, 2)]), clock))
        peaks.append(peak(precision, clock))  # between items: both see the same hour
    work = work_of(read_config(folder), len(item.prompts[0]))
    parts = _parts(engine, item, items, clock)
    seen = (max(peaks), tuple(first), tuple(second), first[0])
    return Measured(precision, threads, *seen, work.model, work.executed, parts)


def _parts(engine: OfaEngine, item: OfaPreparedItem, items: int, clock: Clock) -> dict[str, float]:
    """Seconds of a first statement, by part; measured separately, since timing costs a little."""
    times = PartTimes(clock)
    with times.watching(engine):
        for _ in range(items):
            item.patch_features = None
            engine.compute([RowRange(item, 0, 1)])
    return {part: seconds / items for part, seconds in times.seconds.items()}


def peak(precision: str, clock: Clock = time.perf_counter) -> float:
    """Operations per second of the fastest matrix product tried."""
    return max(_product(*shape, torch_dtype(precision), clock) for shape in PEAK_SHAPES)


def _product(rows: int, inner: int, columns: int, dtype: torch.dtype, clock: Clock) -> float:
    """By torch's usual product, by oneDNN's and by that of compiled kernels, where this machine has them."""
    kernels = get_kernels()
    left, right = torch.randn(rows, inner).to(dtype), torch.randn(columns, inner).to(dtype)
    out = torch.empty(rows, columns, dtype=dtype)
    with torch.inference_mode():
        times = [seconds_of(lambda: torch.mm(left, right.T, out=out), clock) for _ in range(3)]
        if supports_products("cpu", dtype):
            times += [seconds_of(lambda: multiply(left, right), clock) for _ in range(3)]
        if kernels is not None and kernels.supports_products(right):
            times += [seconds_of(lambda: kernels.multiply(left, right, None), clock) for _ in range(3)]
    return 2 * rows * inner * columns / min(times)


def seconds_of(work: Callable[[], object], clock: Clock = time.perf_counter) -> float:
    """The seconds of a call."""
    begun = clock()
    work()
    return clock() - begun


def percentile(values: tuple[float, ...], share: float) -> float:
    """The percentile for a share."""
    return statistics.quantiles(values, n=100, method="inclusive")[round(share * 100) - 1]


def nobody(_phase: str, _share: float) -> None:
    """Ignore progress."""


if __name__ == "__main__":
    raise SystemExit(main())
