"""`python -m dev.bench.card`, the second half of `make gpu`: the large OFA on a GPU.

473 M parameters with random weights, in bfloat16, a picture a row. First through a server, with callers of a
picture and a statement each, and a second load beside them. Then the engine in this process: the time of a load and
its memory, planned and used; and for every number of rows of a call items per second, p50 and p95 of a call, and the
model FLOPs utilization: the model's operations per second as a share of the fastest matrix product measured. The texts
of a call have the same length, or different ones ("mixed").
`--device cpu --source examples/shapes/v1.0.0` needs no GPU.
"""

import argparse
import io
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table

from common.bundle import Bundle
from dev.bench import card_server
from dev.bench.engine_child import nobody, percentile, seconds_of
from dev.bench.large_model import large_source, say, sealed_bundle
from dev.bench.work import work_of
from inference.runner.device import torch_dtype
from inference.runner.engines.base import EntailmentItem, LoadOptions, RowRange
from inference.runner.engines.ofa.engine import OfaEngine
from inference.runner.engines.ofa.load import estimate_ofa_memory, load_ofa
from inference.runner.plan import plan_load

ROWS = (1, 2, 4, 8, 16, 32)
STATEMENT = "there are two birds."
SIDE = 256  # pixels of a drawn picture
PEAK_SIDES = (4096, 8192)  # of square matrices; a CPU is spared the larger
PRODUCTS = 8  # consecutive: a GPU receives one while it computes another
FILE_WIDTH = 160  # characters
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class LoadCost:
    """One load in this process."""

    context_seconds: float  # the device's context, created before
    read_seconds: float
    warm_up_seconds: float
    planned_bytes: int  # by the plan, with its margin
    used_bytes: int  # of the device after all calls, beyond the context
    peak_bytes: int  # most that torch has reserved


@dataclass(frozen=True, slots=True)
class Point:
    """The measurements for one number of rows."""

    rows: int
    kind: str  # of its texts: "equal" or "mixed" lengths
    seconds: tuple[float, ...]  # of a call
    operations: int  # of an item, of which the model is made

    def cells(self, peak: float) -> tuple[str, ...]:
        """A line of the table; `peak` in operations per second."""
        median = percentile(self.seconds, 0.5)
        speed = self.rows / median
        return (
            *(str(self.rows), self.kind, f"{speed:.1f}", f"{1e3 * median:.1f}"),
            *(f"{1e3 * percentile(self.seconds, 0.95):.1f}", f"{speed * self.operations / 1e12:.2f}"),
            f"{speed * self.operations / peak:.1%}",
        )


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda:0", help="cuda:N, or cpu to try the tables")
    parser.add_argument("--source", type=Path, help="another model's folder; without it the large one is made (4 GB)")
    parser.add_argument("--calls", type=int, default=30, help="of each number of rows, at least 2")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each load of the server; 0: no server")
    parser.add_argument("--json", type=Path, help="also write all numbers to this file")
    options = parser.parse_args()
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        say("there is no CUDA device here, so nothing was measured; --device cpu shows the tables")
        return 0
    console = Console()
    if not console.is_terminal:
        console = Console(width=FILE_WIDTH)  # a file has no width of its own
    folder, bundle = sealed_bundle(options.source or large_source(), "bfloat16")
    served: list[card_server.ServerRow] = []
    if options.seconds > 0:
        served = card_server.measure(bundle, options.device, options.seconds)
        console.print(card_server.table(served))
    load, points, best = measure(folder, bundle, options.device, max(2, options.calls))
    name = torch.cuda.get_device_name(options.device) if options.device.startswith("cuda") else "a CPU"
    console.print(_load_table(load, name))
    console.print(_call_table(points, best, name))
    if options.json:
        numbers = {"device": name, "peak": best, "load": asdict(load), "calls": [asdict(point) for point in points]}
        options.json.write_text(json.dumps({**numbers, "server": [asdict(row) for row in served]}, indent=1) + "\n")
    return 0


def measure(folder: Path, bundle: Bundle, device: str, calls: int) -> tuple[LoadCost, list[Point], float]:
    """Load, and measure all numbers of rows up to the engine's limit for one call; the last result is the peak."""
    options = LoadOptions(device, "bfloat16", 0)
    context_seconds = seconds_of(lambda: free_bytes(device))
    before = free_bytes(device)
    planned = plan_load(device, estimate_ofa_memory(folder, bundle, options), None).needed
    begun = time.perf_counter()
    engine = load_ofa(folder, bundle, options, nobody)
    synchronise(device)
    read_seconds = time.perf_counter() - begun
    begun = time.perf_counter()
    engine.warm_up(nobody)
    warm_up_seconds = time.perf_counter() - begun
    points = _points(engine, calls)
    load = LoadCost(
        *(context_seconds, read_seconds, warm_up_seconds, planned, before - free_bytes(device)),
        torch.cuda.max_memory_reserved() if device.startswith("cuda") else 0,
    )
    return load, points, max(peak(device) for _ in range(3))


def _points(engine: OfaEngine, calls: int) -> list[Point]:
    draw = np.random.default_rng(7)
    asked = [(_picture(draw), f"{'a ' * (number % 16)}{STATEMENT}") for number in range(max(ROWS))]
    found = []
    for rows in [rows for rows in ROWS if rows <= engine.max_call_rows]:
        for kind in ("equal", "mixed") if rows > 1 else ("equal",):
            texts = [text if kind == "mixed" else STATEMENT for _, text in asked[:rows]]
            items = [EntailmentItem(asked[number][0], (text,), "") for number, text in enumerate(texts)]
            tokens = sum(len(engine.prepare(item).prompts[0]) for item in items) // rows
            found.append(Point(rows, kind, _calls(engine, items, calls), work_of(engine.model.config, tokens).model))
    return found


def free_bytes(device: str) -> int:
    """Free bytes of a card, whose context is created by the first call; 0 for a CPU."""
    return torch.cuda.mem_get_info(device)[0] if device.startswith("cuda") else 0


def synchronise(device: str) -> None:
    """Wait for a card."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def peak(device: str) -> float:
    """Operations per second of the fastest square matrix product tried."""
    sides = PEAK_SIDES if device.startswith("cuda") else PEAK_SIDES[:1]
    return max(_product(side, device) for side in sides)


def _calls(engine: OfaEngine, items: Sequence[EntailmentItem], calls: int) -> tuple[float, ...]:
    """Seconds of calls in which every picture is new; the answers are on the host when a call returns.

    The first call selects kernels and is not counted.
    """
    seconds = []
    for _ in track(range(calls + 1), f"{len(items)} rows", console=Console(stderr=True)):
        ranges = [RowRange(engine.prepare(item), 0, 1) for item in items]
        seconds.append(seconds_of(partial(engine.compute, ranges)))
    return tuple(seconds[1:])


def _product(side: int, device: str) -> float:
    left, right = (torch.randn(side, side, device=device).to(torch_dtype("bfloat16")) for _ in range(2))
    out = torch.empty_like(left)

    def products() -> None:
        for _ in range(PRODUCTS):
            torch.mm(left, right, out=out)
        synchronise(device)

    with torch.inference_mode():
        return 2 * PRODUCTS * side**3 / min(seconds_of(products) for _ in range(3))


def _picture(draw: np.random.Generator) -> bytes:
    file = io.BytesIO()
    Image.fromarray(draw.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


def _load_table(load: LoadCost, name: str) -> Table:
    table = Table(title=f"a load of an OFA in bfloat16 on {name}")
    for title in ("context", "read", "warm-up", "planned", "used after all calls", "reserved at most"):
        table.add_column(title, justify="right")
    seconds = (load.context_seconds, load.read_seconds, load.warm_up_seconds)
    sizes = (load.planned_bytes, load.used_bytes, load.peak_bytes)
    table.add_row(*(f"{value:.2f} s" for value in seconds), *(f"{value / MIB:.0f} MiB" for value in sizes))
    return table


def _call_table(points: Sequence[Point], best: float, name: str) -> Table:
    table = Table(title=f"an OFA in bfloat16 on {name}, a picture a row; peak {best / 1e12:.2f} TFLOP/s")
    for title in ("rows a call", "lengths", "items/s", "p50, ms", "p95, ms", "TFLOP/s", "share of peak"):
        table.add_column(title, justify="right")
    for point in points:
        table.add_row(*point.cells(best))
    return table


if __name__ == "__main__":
    raise SystemExit(main())
