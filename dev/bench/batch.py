"""`make bench-batch`: `hotslot batch` over 100,000 rows, killed ten times, against the limit of its server.

A scripted engine computes 400 rows a second in calls of at most 8. First the Go load generator saturates the server
with as many streams: that is its limit. Then the batch runs; ten times it is killed with SIGKILL and started again. The
rate of the last run, which is left alone, is compared with the limit; then unary callers join it, and the factor is the
99th percentile of their latency over their own device time and one device call. At the end each row must have one line.

    make bench-batch ARGS="--rows 16000 --kills 3 --seconds 8"
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

from dev.bench.batch_parts import REFUSED, Parts, measure_parts
from dev.harness.loadgen import Group, Played, play
from dev.harness.numbers import percentile
from dev.harness.process import stack_environment
from dev.harness.stack import Stack
from hotslot.entailment.v1 import entailment_pb2 as pb

RESULTS = Path(".bench/batch.json")
ROW_SECONDS, CALL_ROWS = 0.0025, 8
STREAMS, STREAM_ROWS = 2, 32  # as `hotslot batch --concurrency 64`
PICTURES, PICTURE_BYTES = 64, 20_000
SECONDS, WARM_SECONDS = 30.0, 2.0
UNARY_CALLERS, UNARY_PAUSE, UNARY_ROWS = 4, 0.25, (1, 1, 1, 8)
SAMPLE_SECONDS = 0.25
FIRST_SHARE = 0.5  # of all rows: within them it is killed
MAX_FACTOR, MIN_RATE_SHARE, MAX_GROWTH_BYTES = 3.0, 0.9, 16 << 20
SEED = 1


@dataclass(frozen=True, slots=True)
class Sample:
    """The batch at one moment."""

    at: float  # unix time
    run: int
    lines: int
    resident_bytes: int


@dataclass(slots=True)
class Measured:
    """What came of it."""

    rows: int
    kills: int
    missing: int = 0
    doubled: int = 0
    exit_code: int = 0
    limit: float = 0.0  # rows a second
    alone: float = 0.0
    beside: float = 0.0  # rows a second of the batch while unary callers call
    together: float = 0.0  # of both
    unary: int = 0
    unary_failed: int = 0
    unary_p99: float = 0.0  # seconds
    factor: float = 0.0  # p99 of a unary call's latency, over its own device time and one device call
    factor_alone: float = 0.0  # the same without the batch: what this machine adds
    resident_early: int = 0  # bytes, most in the first tenth of the last run
    resident_late: int = 0  # … and in its last tenth
    resume_seconds: list[float] = field(default_factory=list)  # from a start until the first new line
    parts_alone: Parts = field(default_factory=Parts)  # of the unary callers without the batch
    parts_beside: Parts = field(default_factory=Parts)
    misses: list[str] = field(default_factory=list)


class Batch:
    """The batch as a process, started again and again, and observed."""

    def __init__(self, stack: Stack, table: Path, out: Path) -> None:
        self.out, self.samples = out, list[Sample]()
        self._words = ["batch", str(table), "--out", str(out), "--address", stack.address]
        self._folder = table.parent
        self._run, self._lines, self._read = 0, 0, 0
        self._started = 0.0

    def start(self) -> "subprocess.Popen[bytes]":
        """Start it."""
        self._run += 1
        self._started = time.time()
        with (self._folder / "batch.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "cli.main", *self._words],
                env=stack_environment("bench-batch"),
                cwd=self._folder,
                stdout=log,
                stderr=log,
            )

    def sample(self, process: "subprocess.Popen[bytes]") -> int:
        """Note lines and memory; returns the lines."""
        if self.out.exists():
            with self.out.open("rb") as file:
                file.seek(self._read)
                new = file.read()
            self._read += len(new)
            self._lines += new.count(b"\n")
        try:
            resident = psutil.Process(process.pid).memory_info().rss
        except psutil.Error:
            resident = 0
        self.samples.append(Sample(time.time(), self._run, self._lines, resident))
        return self._lines

    def of_run(self, run: int) -> list[Sample]:
        """The samples of one run, counted from 1."""
        return [one for one in self.samples if one.run == run and one.resident_bytes]

    def rate(self, since: float, until: float) -> float:
        """Rows a second between two moments."""
        inside = [one for one in self.samples if since <= one.at <= until]
        if len(inside) < 2:
            return 0.0
        return (inside[-1].lines - inside[0].lines) / (inside[-1].at - inside[0].at)


def main() -> int:
    """Measure and print; 1 if a goal was missed."""
    options = _parser().parse_args()
    with tempfile.TemporaryDirectory(prefix="hotslot-") as name:
        found = measure(Path(name), options.rows, options.kills, options.seconds)
    found.misses = list(judge(found))
    console = Console()
    console.print(table_of(found))
    for miss in found.misses:
        console.print(f"missed: {miss}")
    options.results.parent.mkdir(exist_ok=True)
    options.results.write_text(json.dumps(asdict(found), indent=1))
    console.print(f"machine load {os.getloadavg()[0]:.1f}; {options.results}")
    return 1 if found.misses else 0


def measure(folder: Path, rows: int, kills: int, seconds: float) -> Measured:
    """Start a server, measure its limit for so many seconds, then run the batch, also beside unary callers."""
    found = Measured(rows, kills)
    table = write_rows(folder, rows)
    script = {"row_seconds": ROW_SECONDS, "max_call_rows": CALL_ROWS}
    state = folder / "state"
    state.mkdir()
    with Stack(state, runner={"min_timeout_seconds": 20}, script=script) as stack:
        found.limit = measure_limit(stack, folder, seconds)
        found.parts_alone, alone = play_unary(stack, folder, seconds)
        found.factor_alone = measure_factor(alone, found.limit)
        batch = Batch(stack, table, folder / "results.jsonl")
        kill_often(batch, found)
        process = batch.start()
        found.parts_beside, played = finish(batch, process, stack, folder, seconds)
        found.exit_code = process.wait()
    note_rates(found, batch, played)
    count_rows(found, batch.out)
    return found


def write_rows(folder: Path, rows: int) -> Path:
    """A table of statements about a few pictures."""
    for number in range(PICTURES):
        (folder / f"{number}.png").write_bytes(os.urandom(PICTURE_BYTES))
    table = folder / "rows.jsonl"
    with table.open("w", encoding="ascii") as file:
        for number in range(rows):
            row = {"id": number, "image": f"{number % PICTURES}.png", "statement": f"statement {number}"}
            file.write(f"{json.dumps(row)}\n")
    return table


def measure_limit(stack: Stack, folder: Path, seconds: float) -> float:
    """Rows a second that the server answers if it always has enough of them."""
    request = pb.PredictRequest(image=pb.Image(content=os.urandom(PICTURE_BYTES)), statements=["statement"])
    group = Group("limit", [request], mode="stream", clients=STREAMS, window=STREAM_ROWS, leave=True)
    played = play(stack.address, [group], seconds, folder, STREAMS)
    counted = [one for one in played.outcomes if one.is_answer and WARM_SECONDS <= one.ended <= seconds]
    return len(counted) / (seconds - WARM_SECONDS)


def kill_often(batch: Batch, found: Measured) -> None:
    """Start and kill it, at random places of the first half."""
    numbers = random.Random(SEED)
    places = sorted(numbers.sample(range(1, int(FIRST_SHARE * found.rows)), found.kills))
    for place in places:
        process = batch.start()
        while process.poll() is None and batch.sample(process) < place:
            time.sleep(SAMPLE_SECONDS / 5)
        process.send_signal(signal.SIGKILL)
        process.wait()


def finish(
    batch: Batch, process: "subprocess.Popen[bytes]", stack: Stack, folder: Path, seconds: float
) -> tuple[Parts, Played]:
    """Let it end; in the middle of what is left unary callers join it."""
    joined = list[tuple[Parts, Played]]()
    before, begun = batch.sample(process), time.time()
    callers: threading.Thread | None = None
    while process.poll() is None:
        if batch.sample(process) == before:
            begun = time.time()  # it has sent nothing yet
        if callers is None and time.time() - begun >= seconds:
            callers = threading.Thread(target=lambda: joined.append(play_unary(stack, folder, seconds, process.pid)))
            callers.start()
        time.sleep(SAMPLE_SECONDS)
    if callers is None:
        raise AssertionError(
            f"the batch ended after {time.time() - begun:.0f} s; give more --rows ({before} were done)"
        )
    callers.join()
    return joined[0]


def play_unary(stack: Stack, folder: Path, seconds: float, batch: int | None = None) -> tuple[Parts, Played]:
    """Single calls, seldom in each other's way."""
    picture = pb.Image(content=os.urandom(1000))
    requests = [
        pb.PredictRequest(image=picture, statements=[f"statement {number}" for number in range(rows)])
        for rows in UNARY_ROWS
    ]
    group = Group("unary", requests, clients=UNARY_CALLERS, pause=UNARY_PAUSE)
    with measure_parts(stack, batch) as parts:
        played = play(stack.address, [group, REFUSED], seconds, folder, UNARY_CALLERS)
    parts.note_calls(played)
    return parts, played


def note_rates(found: Measured, batch: Batch, played: Played) -> None:
    """Rates, memory and latencies of the last run, and how soon the others went on."""
    last = batch.of_run(found.kills + 1)
    first_new = next(one.at for before, one in pairwise(last) if one.lines > before.lines)
    found.alone = batch.rate(first_new + WARM_SECONDS, played.began)
    found.beside = batch.rate(played.began + WARM_SECONDS, played.began + played.seconds)
    inside = [one for one in played.outcomes if WARM_SECONDS <= one.ended <= played.seconds and one.is_answer]
    found.together = found.beside + sum(one.rows for one in inside) / (played.seconds - WARM_SECONDS)
    unary = played.of("unary")
    found.unary, found.unary_failed = len(unary), sum(not one.is_answer for one in unary)
    found.unary_p99 = percentile([one.took for one in inside], 0.99)
    found.factor = measure_factor(played, found.limit)
    tenth = max(1, len(last) // 10)
    warm = [one for one in last if one.at >= first_new + WARM_SECONDS] or last
    found.resident_early = max(one.resident_bytes for one in warm[:tenth])
    found.resident_late = max(one.resident_bytes for one in warm[-tenth:])
    for run in range(1, found.kills + 2):
        samples = batch.of_run(run)
        new = next((one.at for before, one in pairwise(samples) if one.lines > before.lines), None)
        if samples and new is not None:
            found.resume_seconds.append(round(new - samples[0].at, 2))


def measure_factor(played: Played, limit: float) -> float:
    """The 99th percentile of latency over own device time and one device call."""
    inside = [one for one in played.outcomes if WARM_SECONDS <= one.ended <= played.seconds and one.is_answer]
    return percentile([one.took * limit / (one.rows + CALL_ROWS) for one in inside], 0.99)


def count_rows(found: Measured, out: Path) -> None:
    """How many rows have no line, or more than one."""
    with out.open("rb") as file:
        lines = Counter(json.loads(line)["row"] for line in file)
    found.missing = sum(row not in lines for row in range(1, found.rows + 1))
    found.doubled = sum(count > 1 for count in lines.values())


def judge(found: Measured) -> Iterator[str]:
    """The goals that were missed."""
    if found.missing or found.doubled or found.exit_code:
        yield f"{found.missing} rows have no line, {found.doubled} have several; exit code {found.exit_code}"
    if found.alone < MIN_RATE_SHARE * found.limit:
        yield f"{found.alone:.0f} rows/s are {found.alone / found.limit:.0%} of the server's limit"
    if found.factor > MAX_FACTOR or found.unary_failed or not found.unary:
        yield f"unary p99 is {found.factor:.1f} times its device time and one call; {found.unary_failed} failed"
        if not found.parts_beside.is_quiet:
            yield f"the run was not quiet: other programs took {found.parts_beside.other_cores:.2f} cores meanwhile"
    if found.resident_late - found.resident_early > MAX_GROWTH_BYTES:
        yield f"memory grows by {(found.resident_late - found.resident_early) >> 20} MiB"


def table_of(found: Measured) -> Table:
    """All figures."""
    table = Table(title=f"hotslot batch, {found.rows:,} rows, {found.kills} kills", show_header=False)
    rows = {
        "rows without a line, with several": f"{found.missing}, {found.doubled}",
        "the server's limit": f"{found.limit:.0f} rows/s",
        "the batch alone": f"{found.alone:.0f} rows/s, {found.alone / found.limit:.1%}",
        "the batch beside unary callers": f"{found.beside:.0f} rows/s; with theirs {found.together:.0f}",
        "unary callers, p99": f"{1000 * found.unary_p99:.0f} ms, factor {found.factor:.1f} (without the batch"
        f" {found.factor_alone:.1f}); {found.unary_failed} of {found.unary} failed",
        "its parts beside the batch": found.parts_beside.describe(),
        "its parts without the batch": found.parts_alone.describe(),
        "resident, early and late": f"{found.resident_early >> 20} and {found.resident_late >> 20} MiB",
        "from a start until the first new line": f"{max(found.resume_seconds, default=0):.1f} s at most",
    }
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of the limit, and of the unary callers")
    parser.add_argument("--results", type=Path, default=RESULTS, help="JSON file (default: %(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
