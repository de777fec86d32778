"""`make bench-prepare`: pictures a second that are prepared, alone and through a server with 16 and 32 callers.

Half of the cores decode; the server, its runner and the load generator have the others, so that what they need is not
missing there. The engine computes nothing: the throughput is that of the preparation. Also: what decoding takes by the
estimate and by measurement, and how many items a second the demo model computes on one core.
"""

import argparse
import json
import os
import queue
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import psutil
from PIL import Image, ImageFile
from rich.console import Console
from rich.table import Table

from common.clock import SystemClock
from dev.bench.null_engine import NullEngine
from dev.harness.demo_model import SHAPES, golden_items
from dev.harness.loadgen import Group, play
from dev.harness.stack import Stack
from dev.parity.ours import load_source
from hotslot.entailment.v1 import entailment_pb2 as pb
from hotslot.runner.v1 import runner_pb2
from inference.runner.engines.base import EntailmentItem, PictureFormat, RowRange
from inference.runner.items import PendingItem
from inference.runner.pictures.decode import plan_picture, render
from inference.runner.pictures.options import PictureOptions
from inference.runner.prepare import PreparePool

SIDE = 480
CALLERS = (16, 32)
SECONDS = 20.0
MEMORY_BYTES = 512 << 20
RESULTS = Path(".bench/prepare.json")
GOAL, LONG_MS = 0.9, 20.0  # of the preparation alone; for pictures that take so long to decode


@dataclass(frozen=True, slots=True)
class Row:
    """One kind of pictures."""

    name: str
    kib: int
    estimated_ms: float
    measured_ms: float  # CPU time, in one process
    alone: float  # pictures a second
    served: Mapping[int, float]  # by callers
    deaths: int
    failed: int

    @property
    def share(self) -> float:
        """The lowest throughput through the server, as a share of that of the preparation alone."""
        return min(self.served.values()) / self.alone

    @property
    def is_short(self) -> bool:
        """Whether the goal is missed; of small pictures the server's own cost is the larger part."""
        return self.measured_ms >= LONG_MS and self.share < GOAL


def main() -> int:
    """Measure and print; 1 if the goal was missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of each load")
    parser.add_argument("--only", default="", help="kinds whose names contain this")
    parser.add_argument("--results", type=Path, default=RESULTS, help="JSON file (default: %(default)s)")
    options = parser.parse_args()
    ImageFile.MAXBLOCK = 64 << 20  # Pillow's encoder needs the whole file in one block
    cores = sorted(os.sched_getaffinity(0))
    decoding, others = cores[len(cores) // 2 :], cores[: len(cores) // 2] or cores
    rows = [
        measure(name, content, decoding, others, options.seconds)
        for name, content in pictures()
        if options.only in name
    ]
    console = Console(width=150)
    console.print(table_of(rows, len(decoding)))
    console.print(f"the demo model computes {measure_demo():.0f} items/s on one core")
    console.print(f"machine load {os.getloadavg()[0]:.1f} on {len(cores)} cores")
    options.results.parent.mkdir(exist_ok=True)
    options.results.write_text(json.dumps([asdict(row) for row in rows], indent=1), encoding="utf-8")
    return int(any(row.is_short or row.deaths or row.failed for row in rows))


def pictures() -> Iterator[tuple[str, bytes]]:
    """Name and file of each kind: soft colours with the noise of a camera."""
    small = _photo(640, 480)
    phone, large = _photo(4000, 3000), _photo(6000, 4000)
    yield "0.3 megapixels, JPEG", _encode(small, "JPEG", quality=85)
    yield "12 megapixels, JPEG", _encode(phone, "JPEG", quality=90)
    yield "12 megapixels, JPEG progressive", _encode(phone, "JPEG", quality=85, progressive=True)
    yield "24 megapixels, JPEG", _encode(large, "JPEG", quality=90)
    yield "12 megapixels, WebP", _encode(phone, "WEBP", quality=80, method=0)
    yield "6 megapixels, PNG", _encode(_photo(3000, 2000), "PNG", compress_level=1)


def measure(name: str, content: bytes, decoding: Sequence[int], others: Sequence[int], seconds: float) -> Row:
    """Measure one kind."""
    plan = plan_picture(content, SIDE, PictureOptions())
    measured = min(_cpu_seconds(lambda: render(plan, PictureOptions().rendering)) for _ in range(3))
    with tempfile.TemporaryDirectory() as folder:
        served, deaths, failed = _serve(content, decoding, others, seconds, Path(folder))
    alone = _prepare_alone(content, decoding, others, seconds)
    return Row(name, len(content) >> 10, 1000 * plan.cost.seconds, 1000 * measured, alone, served, deaths, failed)


def table_of(rows: Sequence[Row], cores: int) -> Table:
    """The table of all kinds."""
    table = Table(title=f"pictures a second, {cores} core(s) for decoding")
    titles = ("picture", "KiB", "estimated, ms", "measured, ms", "alone", *(f"{count} callers" for count in CALLERS))
    for title in (*titles, "share", "deaths", "failed"):
        table.add_column(title, justify="left" if title == "picture" else "right")
    for row in rows:
        table.add_row(
            row.name,
            str(row.kib),
            f"{row.estimated_ms:.1f}",
            f"{row.measured_ms:.1f}",
            f"{row.alone:.1f}",
            *(f"{row.served[count]:.1f}" for count in CALLERS),
            f"{row.share:.0%}",
            str(row.deaths),
            str(row.failed),
        )
    return table


def measure_demo() -> float:
    """Items a second that the demo model computes on one core, in calls of eight."""
    engine = load_source(SHAPES / "v1.0.0")
    items = [engine.prepare(EntailmentItem(asked.image, asked.statements[:1], "")) for _, asked in golden_items(8)]
    count, began = 0, time.monotonic()
    while time.monotonic() - began < 2.0:
        for item in items:
            item.patch_features = None  # each is a picture of its own
        engine.compute([RowRange(item, 0, 1) for item in items])
        count += len(items)
    return count / (time.monotonic() - began)


def _serve(
    content: bytes, decoding: Sequence[int], others: Sequence[int], seconds: float, folder: Path
) -> tuple[dict[int, float], int, int]:
    """Answers a second by number of callers; deaths of runners; calls without an answer."""
    request = pb.PredictRequest(image=pb.Image(content=content), statements=["a dog"])
    runner = {"prepare_processes": len(decoding), "prepare_memory_bytes": MEMORY_BYTES}
    served, failed = {}, 0
    with Stack(folder, runner=runner, script={"picture_side": SIDE}) as stack:
        pid = stack.control.active_pid()
        for server in (psutil.Process(stack.process.pid), psutil.Process(pid)):
            _pin(server, others)
        with _pinned_children(psutil.Process(pid), decoding):
            processors = ",".join(map(str, others))
            for callers in CALLERS:
                groups = [Group("calls", [request], clients=callers, deadline=60.0)]
                played = play(stack.address, groups, seconds, folder, 4, processors=processors)
                ended = [one for one in played.outcomes if one.is_answer and one.ended > seconds / 4]
                last = max(one.ended for one in ended)
                served[callers] = len(ended) / (last - seconds / 4)
                failed += sum(not one.is_answer for one in played.outcomes)
        deaths = sum(slot.restarts for slot in stack.control.status().slots)
    return served, deaths, failed


def _prepare_alone(content: bytes, decoding: Sequence[int], others: Sequence[int], seconds: float) -> float:
    """Pictures a second without a server: the pool has always some waiting."""
    ended: queue.SimpleQueue[PendingItem] = queue.SimpleQueue()
    pool = PreparePool(len(decoding), MEMORY_BYTES, 60.0, SystemClock(), lambda *_, **__: None, ended.put)
    process = psutil.Process()
    affinity = process.cpu_affinity()
    _pin(process, others)
    engine, count = NullEngine(), 0
    engine.pictures = PictureFormat(SIDE, PictureOptions())
    with _pinned_children(process, decoding):
        for number in range(4 * len(decoding) + 4):
            pool.submit(engine, _pending(number, content))
        began = time.monotonic()
        while (now := time.monotonic()) < began + seconds:
            item = ended.get()
            if item.outcome is not None:
                raise RuntimeError(str(item.outcome))
            pool.submit(engine, _pending(item.number + 1000, content))
            count += now > began + seconds / 4
    pool.decoders.close()
    process.cpu_affinity(affinity)
    return count / (time.monotonic() - began - seconds / 4)


def _pending(number: int, content: bytes) -> PendingItem:
    task = runner_pb2.EntailmentTask(statements=["a dog"])
    message = runner_pb2.Item(item_id=number, entailment=task, may_take_long=True)
    return PendingItem(number, 0, number, time.monotonic() + 600, message, content)


@contextmanager
def _pinned_children(process: psutil.Process, cores: Sequence[int]) -> Iterator[None]:
    """Keep all children of a process on some cores, as they come."""
    is_over = threading.Event()

    def pin() -> None:
        while not is_over.wait(0.1):
            for child in process.children():
                _pin(child, cores)

    thread = threading.Thread(target=pin, daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def _pin(process: psutil.Process, cores: Sequence[int]) -> None:
    try:
        for thread in process.threads():
            os.sched_setaffinity(thread.id, cores)
    except (psutil.Error, ProcessLookupError):
        pass  # it has ended


def _cpu_seconds(act: Callable[[], object]) -> float:
    begun = time.process_time()
    act()
    return time.process_time() - begun


def _photo(width: int, height: int) -> Image.Image:
    random = np.random.Generator(np.random.PCG64(width))
    down, right = np.mgrid[0:height, 0:width].astype(np.float32)
    waves = [np.sin(down / random.uniform(20, 300) + right / random.uniform(20, 300)) * 90 + 128 for _ in range(3)]
    grain = random.standard_normal((height, width, 1), dtype=np.float32) * 5
    return Image.fromarray(np.clip(np.stack(waves, axis=-1) + grain, 0, 255).astype(np.uint8))


def _encode(image: Image.Image, kind: str, **options: object) -> bytes:
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


if __name__ == "__main__":
    sys.exit(main())
