"""`make bench-served`: what hotslot, LitServe and MLServer deliver of what the demo model's engine computes.

All three have the same engine with one thread, and calls of the same number of rows; the peers gather their batches as
their documentation describes. The bare engine computes full calls of the same items. Everything is measured in turn, in
every round, in two placements: the engine has a core, the server and the load generator have the other one; or the
engine and the server share a core, and the load generator has the other one. All of it takes about five minutes: the
placements share the time, and a round begins only if one as long as the longest would end within it.
"""

import argparse
import contextlib
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from common.bundle import bundle_folder
from dev.bench.peer_programs.bare_engine import ITEMS
from dev.bench.peer_servers import (
    HOTSLOT,
    LITSERVE,
    MLSERVER,
    Batches,
    Server,
    end_on_sigterm,
    group_for,
    running,
    with_this_process,
)
from dev.harness.answers import Question
from dev.harness.demo_model import SHAPES, golden_items, seal_revisions
from dev.harness.loadgen import play
from dev.harness.numbers import percentile
from dev.harness.process import ROOT

NAMES = (HOTSLOT, LITSERVE, MLSERVER)
CONNECTIONS = 4
WARM_SECONDS = 0.7  # before each load
MINUTES = 5.0  # of all placements
END_SECONDS = 10.0  # of the servers of a placement
SETTINGS = "[runner]\nthreads = 1\n"


@dataclass(frozen=True, slots=True)
class Placement:
    """Which core has what."""

    title: str
    server: int
    engine: int
    load: int
    goal: float  # share of the bare engine


APART = Placement("engine on one core, server and load on the other", 0, 1, 0, 0.95)
TOGETHER = Placement("engine and server on one core, load on the other", 1, 1, 0, 0.85)
PLACEMENTS = {"a": APART, "b": TOGETHER}


@dataclass(frozen=True, slots=True)
class Bare:
    """What the bare engine did in one round."""

    rows: int
    computed: float  # seconds
    prepared: float

    @property
    def per_second(self) -> float:
        """Rows a second, without the preparation."""
        return self.rows / self.computed

    @property
    def with_preparation(self) -> float:
        """Rows a second of one thread that prepares them, too."""
        return self.rows / (self.computed + self.prepared)


@dataclass(slots=True)
class Delivered:
    """What a server delivered to a number of callers, one entry for each round."""

    per_second: list[float] = field(default_factory=list)
    shares: list[float] = field(default_factory=list)  # of the bare engine beside it
    took: list[float] = field(default_factory=list)  # seconds of a call
    failed: int = 0


Found = dict[tuple[int, str], Delivered]  # by callers and server


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=2.0, help="length of each load of a round")
    parser.add_argument("--rounds", type=int, default=4, help="in each of which every server is called, at most")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="that all of it takes, at most")
    parser.add_argument("--callers", type=int, nargs="*", default=[8, 32, 64], help="callers in a closed loop")
    parser.add_argument("--servers", nargs="*", default=NAMES, choices=NAMES, help="which ones")
    parser.add_argument("--placements", nargs="*", default=list(PLACEMENTS), choices=list(PLACEMENTS))
    parser.add_argument("--batch-ms", type=float, default=5.0, help="that a batch of the peers waits for requests")
    options = parser.parse_args()
    end_on_sigterm()
    end = time.monotonic() + 60 * options.minutes
    for number, name in enumerate(options.placements):
        share = (end - time.monotonic()) / (len(options.placements) - number)
        options.end = time.monotonic() + share - END_SECONDS
        with tempfile.TemporaryDirectory() as folder:
            place = PLACEMENTS[name]
            bare: list[Bare] = []
            found = measure(Path(folder), place, bare, options)
        rounds = max(len(one.shares) for one in found.values())
        print(f"\n{place.title}; {rounds} rounds, machine load {os.getloadavg()[0]:.1f} at the end\n")
        print("\n".join(format_table(found, bare, place.goal)), flush=True)
    return 0


def measure(folder: Path, place: Placement, bare: list[Bare], options: argparse.Namespace) -> Found:
    """Start all servers, and call them in turn, with the bare engine before each."""
    state = folder / "state"
    bundle = seal_revisions(state, {"v1.0.0": SHAPES / "v1.0.0"})["v1.0.0"]
    sealed = bundle_folder(state, bundle.bundle_digest)
    asked = [one for _, one in golden_items(ITEMS)]
    found: Found = defaultdict(Delivered)
    with contextlib.ExitStack() as opened:
        engine = opened.enter_context(running_engine(sealed, place.engine))
        rows = json.loads(_read_line(engine))["call_rows"]
        own = None if place.engine == place.server else place.engine
        batches = Batches(sealed, rows, options.batch_ms / 1000, own)
        servers = [
            opened.enter_context(running(name, folder, place.server, batches, SETTINGS)) for name in options.servers
        ]
        bare.append(measure_bare(engine, options.seconds / 2))
        took: list[float] = []
        while may_begin_round(took, options.rounds, options.end - time.monotonic()):
            began = time.monotonic()
            for callers, server in itertools.product(options.callers, servers):
                if server.name == HOTSLOT:
                    server.pin_runners(place.engine)
                one = found[callers, server.name]
                measure_one(folder, server, place, asked, callers, options.seconds, one)
                bare.append(measure_bare(engine, options.seconds / 2))
                mean = statistics.mean(beside.per_second for beside in bare[-2:])
                one.shares.append(one.per_second[-1] / mean)
            took.append(time.monotonic() - began)
    return found


def may_begin_round(took: Sequence[float], most: int, left: float) -> bool:
    """Whether a further round begins; the first one does in any case. Pure.

    Args:
        took: seconds of each round before.
        most: rounds at most.
        left: seconds.
    """
    return not took or (len(took) < most and max(took) <= left)


def measure_one(
    folder: Path,
    server: Server,
    place: Placement,
    asked: Sequence[Question],
    callers: int,
    seconds: float,
    into: Delivered,
) -> None:
    """One load of a server."""
    group = group_for(server.name, asked, "unary", callers)
    total = WARM_SECONDS + seconds
    played = play(server.address, [group], total, folder, connections=CONNECTIONS, processors=str(place.load))
    steady = [one for one in played.outcomes if WARM_SECONDS <= one.ended < total]
    answered = [one.took for one in steady if one.is_answer]
    into.per_second.append(len(answered) / seconds)
    into.took += answered
    into.failed += sum(not one.is_answer for one in played.outcomes)


@contextlib.contextmanager
def running_engine(sealed: Path, core: int) -> Iterator[subprocess.Popen[str]]:
    """The bare engine on a core, for `measure_bare`."""
    command = ["taskset", "-c", str(core), sys.executable, "-m", "dev.bench.peer_programs.bare_engine", str(sealed)]
    # A session of its own, as the servers have: the kernel shares a core among sessions.
    process = subprocess.Popen(
        with_this_process(command),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait(10)


def measure_bare(process: subprocess.Popen[str], seconds: float) -> Bare:
    """Let the bare engine compute for some seconds."""
    assert process.stdin is not None
    process.stdin.write(f"{seconds}\n")
    process.stdin.flush()
    return Bare(**json.loads(_read_line(process)))


def _read_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def format_table(found: Mapping[tuple[int, str], Delivered], bare: Sequence[Bare], goal: float) -> list[str]:
    """As Markdown, a row for each number of callers and server; medians of the rounds."""
    rate, whole = (
        statistics.median(one) for one in zip(*((b.per_second, b.with_preparation) for b in bare), strict=True)
    )
    lines = [
        f"The bare engine computes {rate:.0f} rows/s in full calls, {whole:.0f} if its thread prepares them, too.\n",
        "| callers | server | rows/s | share of the bare engine | lowest, highest | p50, ms | p95, ms | failed |",
        "|---:|---|---:|---:|---:|---:|---:|---:|",
    ]
    for (callers, name), one in sorted(found.items()):
        share = f"{statistics.median(one.shares):.0%}" + (f" (goal {goal:.0%})" if name == HOTSLOT else "")
        spread = f"{min(one.shares):.0%}, {max(one.shares):.0%}"
        p50, p95 = (f"{1000 * percentile(one.took, part):.1f}" for part in (0.5, 0.95))
        cells = (
            str(callers),
            name,
            f"{statistics.median(one.per_second):.0f}",
            share,
            spread,
            p50,
            p95,
            str(one.failed),
        )
        lines.append("| " + " | ".join(cells) + " |")
    return lines


if __name__ == "__main__":
    raise SystemExit(main())
