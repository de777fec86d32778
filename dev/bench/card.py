"""`python -m dev.bench.card`, the second half of `make gpu`: the large OFA on a GPU, by rows per device call.

473 M parameters with random weights, in bfloat16, each row with its own picture. For every number of rows: items per
second, p50 and p95 of a call, and the model FLOPs utilization: the model's operations per second as a share of the
fastest matrix product measured between the calls. `--device cpu --source examples/shapes/v1.0.0` needs no GPU.
"""

import argparse
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table

from dev.bench.engine_child import nobody, percentile, seconds_of
from dev.bench.large_model import large_source, say, sealed_bundle
from dev.bench.work import work_of
from inference.runner.device import torch_dtype
from inference.runner.engines.base import EntailmentItem, LoadOptions, RowRange
from inference.runner.engines.ofa.config import read_config
from inference.runner.engines.ofa.engine import OfaEngine
from inference.runner.engines.ofa.load import load_ofa

ROWS = (1, 2, 4, 8, 16, 32)
STATEMENT = "there are two birds."
SIDE = 256  # pixels of a drawn picture
PEAK_SIDES = (4096, 8192)  # of square matrices; a CPU is spared the larger
PRODUCTS = 8  # consecutive: a GPU receives one while it computes another


@dataclass(frozen=True, slots=True)
class Point:
    """The measurements for one number of rows."""

    rows: int
    seconds: tuple[float, ...]  # of a call
    peak: float  # operations a second, of the fastest product that was seen
    operations: int  # of an item, of which the model is made

    @property
    def cells(self) -> tuple[str, ...]:
        """A line of the table."""
        median = percentile(self.seconds, 0.5)
        speed = self.rows / median
        return (
            *(str(self.rows), f"{speed:.1f}", f"{1e3 * median:.1f}", f"{1e3 * percentile(self.seconds, 0.95):.1f}"),
            *(f"{speed * self.operations / 1e12:.2f}", f"{speed * self.operations / self.peak:.1%}"),
        )


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda:0", help="cuda:N, or cpu to try the table")
    parser.add_argument("--source", type=Path, help="another model's folder; without it the large one is made (4 GB)")
    parser.add_argument("--calls", type=int, default=30, help="of each number of rows, at least 2")
    options = parser.parse_args()
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        say("there is no CUDA device here, so nothing was measured; --device cpu shows the table")
        return 0
    points = measure(options.source or large_source(), options.device, max(2, options.calls))
    name = torch.cuda.get_device_name(options.device) if options.device.startswith("cuda") else "a CPU"
    table = Table(title=f"an OFA in bfloat16 on {name}, a picture a row; peak {points[0].peak / 1e12:.2f} TFLOP/s")
    for title in ("rows a call", "items/s", "p50, ms", "p95, ms", "TFLOP/s", "share of peak"):
        table.add_column(title, justify="right")
    for point in points:
        table.add_row(*point.cells)
    Console().print(table)
    return 0


def measure(source: Path, device: str, calls: int) -> list[Point]:
    """Measure all numbers of rows up to the engine's limit for one call on this device."""
    folder, bundle = sealed_bundle(source, "bfloat16")
    engine = load_ofa(folder, bundle, LoadOptions(device, "bfloat16", 0), nobody)
    engine.warm_up(nobody)
    draw = np.random.default_rng(7)
    pictures = [_picture(draw) for _ in range(max(ROWS))]
    tokens = len(engine.prepare(EntailmentItem(pictures[0], (STATEMENT,), "")).prompts[0])
    operations = work_of(read_config(folder), tokens).model
    seen, best = [], 0.0
    for rows in [rows for rows in ROWS if rows <= engine.max_call_rows]:
        seconds = _calls(engine, pictures[:rows], calls)
        best = max(best, peak(device))
        seen.append((rows, seconds))
    return [Point(rows, seconds, best, operations) for rows, seconds in seen]


def peak(device: str) -> float:
    """Operations per second of the fastest square matrix product tried."""
    sides = PEAK_SIDES if device.startswith("cuda") else PEAK_SIDES[:1]
    return max(_product(side, device) for side in sides)


def _calls(engine: OfaEngine, pictures: Sequence[bytes], calls: int) -> tuple[float, ...]:
    """Seconds of calls in which every picture is new; the answers are on the host when a call returns.

    The first call selects kernels and is not counted.
    """
    seconds = []
    for _ in track(range(calls + 1), f"{len(pictures)} rows", console=Console(stderr=True)):
        chunks = [RowRange(engine.prepare(EntailmentItem(picture, (STATEMENT,), "")), 0, 1) for picture in pictures]
        seconds.append(seconds_of(partial(engine.compute, chunks)))
    return tuple(seconds[1:])


def _product(side: int, device: str) -> float:
    left, right = (torch.randn(side, side, device=device).to(torch_dtype("bfloat16")) for _ in range(2))
    out = torch.empty_like(left)

    def products() -> None:
        for _ in range(PRODUCTS):
            torch.mm(left, right, out=out)
        if device.startswith("cuda"):
            torch.cuda.synchronize(device)

    with torch.inference_mode():
        return 2 * PRODUCTS * side**3 / min(seconds_of(products) for _ in range(3))


def _picture(draw: np.random.Generator) -> bytes:
    file = io.BytesIO()
    Image.fromarray(draw.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


if __name__ == "__main__":
    raise SystemExit(main())
