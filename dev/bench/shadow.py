"""`make bench-shadow`: what copies for a second slot cost callers: latency and throughput, with a share and without.

The load is an open loop at a share of what the model serves. Both ways are played with the same arrival times, in turn,
so that what other processes of the machine do falls on both. Then callers in a closed loop fill the machine. Engines:
one that sleeps, where both slots share one device that computes a call at a time, like a card; and the demo model,
where both share the CPUs. p99 is that of all answers of one way; its ratio has an interval, from pairs of loads drawn
at random among those played. A goal is missed if the whole interval is beyond it, and not decided if only a part is.
"""

import argparse
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from common.paths import CONTROL_SOCKET, run_folder
from dev.harness.control import ControlClient
from dev.harness.demo_model import SETTINGS, SHAPES, golden_items, seal_revisions
from dev.harness.loadgen import PLACEHOLDER, Group, Loadgen, Played, playing
from dev.harness.numbers import percentile
from dev.harness.process import running_server
from dev.harness.scripted_engine import DEVICES_VARIABLE, SHARED_DEVICE_VARIABLE
from dev.harness.stack import Stack
from hotslot.control.v1 import control_pb2 as pb
from hotslot.entailment.v1 import entailment_pb2

PORT = 50175
CONNECTIONS = 8
CLIENTS = 16  # of the closed loop
WARM_SECONDS = 1.0  # left out at the start of each load
LIMIT_SECONDS = 30.0
LAST_SECONDS = 0.3  # of a load, in which copies are not counted
IDLE_SECONDS = 0.5  # without a further comparison, after which nothing is kept any more
MAX_SLOWER = 1.03  # p99 and throughput at a part of the load
MAX_COPIED = 0.01  # of the calls, that are copied while the machine is full
FULL_PAIRS = 2  # of loads that fill the machine: they show that nothing is copied
MIN_TAIL = 20  # answers above a p99 that decides
DRAWS = 300
SLEEPING = {"row_seconds": 0.004, "max_call_rows": 4}  # 250 rows a second


@dataclass(frozen=True, slots=True)
class Arm:
    """All loads played one way."""

    took: Sequence[float]  # seconds of each answer
    seconds: float
    failed: int

    @property
    def per_second(self) -> float:
        """Answers a second."""
        return len(self.took) / self.seconds if self.seconds else 0.0


@dataclass(frozen=True, slots=True)
class Ratio:
    """A ratio, and the interval in which 95 of 100 draws of the pairs fall."""

    value: float
    low: float
    high: float

    @property
    def text(self) -> str:
        """For the table."""
        return f"× {self.value:.3f} ({self.low:.3f} to {self.high:.3f})"

    def judge(self, name: str) -> list[str]:
        """A sentence if the goal is missed or not decided."""
        if self.low > MAX_SLOWER:
            return [f"{name} {self.text}"]
        return [f"{name} not decided"] if self.high > MAX_SLOWER else []


@dataclass(frozen=True, slots=True)
class Measured:
    """What came of one engine under one load."""

    engine: str
    load: str
    without: Arm
    copied: Arm
    compared: int
    dropped: int
    slower: Ratio  # p99 with copies, as a multiple of that without
    fewer: Ratio  # answers a second without copies, as a multiple of those with
    is_full: bool

    @property
    def misses(self) -> list[str]:
        """The goals that were missed, or are not decided."""
        found = []
        if self.without.failed or self.copied.failed:
            found.append(f"{self.without.failed + self.copied.failed} calls failed")
        if self.is_full and self.compared > MAX_COPIED * len(self.copied.took):
            found.append(f"{self.compared} copies while the machine was full")
        if not self.is_full and 0.01 * min(len(self.without.took), len(self.copied.took)) < MIN_TAIL:
            found.append("too few answers for a p99")
        return found + self.slower.judge("p99") + self.fewer.judge("throughput")


@dataclass(frozen=True, slots=True)
class Place:
    """A server whose new revision is on trial."""

    engine: str
    address: str
    control: ControlClient
    load_id: str
    requests: Sequence[entailment_pb2.PredictRequest]
    folder: Path

    def set_share(self, share: float) -> None:
        """Copy this share of the calls."""
        request = pb.SetTrafficRequest(
            change=self.control.change(),
            load_id=self.load_id,
            mode=pb.TRAFFIC_MODE_SHADOW,
            shadow=pb.ShadowPolicy(share=share),
        )
        self.control.stub.SetTraffic(request, timeout=LIMIT_SECONDS)

    def play(self, seconds: float, *, rate: float = 0.0, seed: int = 1) -> tuple[Played, int]:
        """Play a load: an open loop of a rate, else a closed one; also the calls compared until shortly before its end.

        What is kept then is compared afterwards, when the machine is idle.
        """
        group = Group("calls", self.requests, clients=CLIENTS, rate=rate)
        before = self.count()[0]
        with playing(Loadgen(self.address, [group], seconds, self.folder, CONNECTIONS, seed)) as load:
            time.sleep(seconds - LAST_SECONDS)
            compared = self.count()[0] - before
            return load.wait(), compared

    def count(self) -> tuple[int, int]:
        """Requests compared, and dropped, until now."""
        seen = self.control.status().trial.comparison
        return seen.requests_compared, sum(seen.dropped.values())

    def wait_idle(self) -> None:
        """Wait until nothing is kept for a copy any more."""
        before = (-1, -1)
        while before != (before := self.count()):
            time.sleep(IDLE_SECONDS)


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each load")
    parser.add_argument("--pairs", type=int, default=6, help="loads with copies, and as many without")
    parser.add_argument("--share", type=float, default=0.2, help="of the calls that are copied")
    parser.add_argument("--load", type=float, default=0.6, help="share of what the model serves")
    parser.add_argument("--engines", nargs="*", choices=ENGINES, default=list(ENGINES))
    options = parser.parse_args()
    found: list[Measured] = []
    for name in options.engines:
        with tempfile.TemporaryDirectory(prefix="hotslot-") as folder:
            found += ENGINES[name](Path(folder), options)
    Console(width=180).print(build_table(found, options.share))
    return 1 if any(one.misses for one in found) else 0


def run_sleeping(folder: Path, options: argparse.Namespace) -> list[Measured]:
    """An engine that sleeps; both slots' calls take turns on one card, for which the server's limit of a card holds."""
    environment = {SHARED_DEVICE_VARIABLE: str(folder / "device"), DEVICES_VARIABLE: "cuda:0"}
    stack = Stack(folder, runner={"min_timeout_seconds": 20}, script=SLEEPING, environment=environment)
    stack.bundle("r2", **SLEEPING)
    picture = entailment_pb2.Image(content=os.urandom(1000) + PLACEHOLDER)
    with stack:
        load_id = stack.control.trial(stack.answers.digest_of("r2"))
        requests = [entailment_pb2.PredictRequest(image=picture, statements=["a cat"])]
        place = Place("sleeps, one card", stack.address, stack.control, load_id, requests, folder)
        return measure(place, options)


def run_demo(folder: Path, options: argparse.Namespace) -> list[Measured]:
    """The demo model on the CPUs."""
    state = folder / "state"
    bundles = seal_revisions(state, {name: SHAPES / name for name in ("v1.0.0", "v1.1.0")})
    control = ControlClient(str(run_folder(state) / CONTROL_SOCKET))
    with running_server(folder, SETTINGS.format(state=state, port=PORT)):
        control.wait_ready()
        load_id = control.trial(bundles["v1.1.0"].bundle_digest)
        items = [replace(asked, image=asked.image + PLACEHOLDER) for _, asked in golden_items(64)]
        requests = [asked.request() for asked in items]
        found = measure(Place("demo, CPU", f"127.0.0.1:{PORT}", control, load_id, requests, folder), options)
    control.close()
    return found


ENGINES: dict[str, Callable[[Path, argparse.Namespace], list[Measured]]] = {"sleeping": run_sleeping, "demo": run_demo}


def measure(place: Place, options: argparse.Namespace) -> list[Measured]:
    """A part of the load, then a full machine."""
    place.set_share(0.0)
    place.play(WARM_SECONDS + 1)
    full = steady([place.play(options.seconds)[0]]).per_second
    rate = options.load * full
    return [
        compare(place, f"{options.load:.0%} ({rate:.0f} calls/s)", options, rate),
        compare(place, f"full ({CLIENTS} callers)", options, 0.0),
    ]


def compare(place: Place, load: str, options: argparse.Namespace, rate: float) -> Measured:
    """Play the same loads with copies and without, in turn."""
    played: dict[float, list[Played]] = {0.0: [], options.share: []}
    compared, dropped = 0, place.count()[1]
    for number in range(options.pairs if rate else min(FULL_PAIRS, options.pairs)):
        order = (0.0, options.share) if number % 2 else (options.share, 0.0)
        for share in order:
            place.set_share(share)
            load_played, copies = place.play(options.seconds, rate=rate, seed=number + 1)
            played[share].append(load_played)
            compared += copies
            place.wait_idle()
    pairs = [
        (steady([with_copies]), steady([without]))
        for with_copies, without in zip(played[options.share], played[0.0], strict=True)
    ]
    return Measured(
        place.engine,
        load,
        steady(played[0.0]),
        steady(played[options.share]),
        compared,
        place.count()[1] - dropped,
        estimate(pairs, lambda copied, without: tail(copied) / max(tail(without), 1e-6)),
        estimate(pairs, lambda copied, without: without.per_second / max(copied.per_second, 1e-6)),
        is_full=not rate,
    )


def steady(loads: Sequence[Played]) -> Arm:
    """The calls that began after the start of each load; throughput counts those that ended before its end."""
    kept = [one for load in loads for one in load.outcomes if one.at >= WARM_SECONDS and one.ended <= load.seconds]
    seconds = sum(load.seconds - WARM_SECONDS for load in loads)
    return Arm([one.took for one in kept if one.is_answer], seconds, sum(not one.is_answer for one in kept))


def estimate(pairs: Sequence[tuple[Arm, Arm]], ratio: Callable[[Arm, Arm], float]) -> Ratio:
    """A ratio of all loads with copies to all without; its interval from pairs that are drawn with replacement."""
    chance = random.Random(1)
    drawn = [ratio(*map(join, zip(*chance.choices(pairs, k=len(pairs)), strict=True))) for _ in range(DRAWS)]
    return Ratio(ratio(*map(join, zip(*pairs, strict=True))), percentile(drawn, 0.025), percentile(drawn, 0.975))


def join(arms: Sequence[Arm]) -> Arm:
    """All loads as one."""
    took = [seconds for arm in arms for seconds in arm.took]
    return Arm(took, sum(arm.seconds for arm in arms), sum(arm.failed for arm in arms))


def tail(arm: Arm) -> float:
    """p99, seconds."""
    return percentile(arm.took, 0.99)


def build_table(found: Sequence[Measured], share: float) -> Table:
    """Show both ways beside each other."""
    table = Table(title=f"callers while a second slot answers {share:.0%} of their calls too | and while it does not")
    for title in (
        "engine",
        "load",
        "answers/s",
        "p50, ms",
        "p99, ms",
        "p99, ratio",
        "answers/s, ratio",
        "compared",
        "dropped",
    ):
        table.add_column(title, justify="right")
    table.add_column("missed")
    for one in found:
        table.add_row(
            one.engine,
            one.load,
            f"{one.copied.per_second:.1f} | {one.without.per_second:.1f}",
            f"{1000 * percentile(one.copied.took, 0.5):.1f} | {1000 * percentile(one.without.took, 0.5):.1f}",
            f"{1000 * tail(one.copied):.1f} | {1000 * tail(one.without):.1f}",
            one.slower.text,
            one.fewer.text,
            str(one.compared),
            str(one.dropped),
            "; ".join(one.misses) or "-",
        )
    return table


if __name__ == "__main__":
    sys.exit(main())
