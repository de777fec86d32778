"""What copies cost callers, in simulated time: the shipped server, runners and arrivals that are the same both ways.

`make bench-shadow` measures the same on real processes, where the rest of the machine is in the numbers.
"""

import asyncio
import heapq
import itertools
import random
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from dev.harness.numbers import percentile
from hotslot.runner.v1 import runner_pb2
from inference.server.model.pair import ShadowPolicy
from inference.server.request import PendingRequest
from inference.server.scheduling.admission import Capacity
from tests.server.simulator import SimRunner, World

SERVICE_SECONDS = 0.01
LOAD, SHARE, CALLS = 0.6, 0.2, 3000
MIN_COMPARED = {"cpu": 0.9 * SHARE * CALLS, "cuda:0": 0.02 * CALLS}  # on a card copies have a twentieth of the time
MAX_SLOWER = 1.03
TICK_SECONDS = 0.05
SLOW_COPY = 2.0  # on a CPU a copy is computed on one thread, at low priority …
BESIDE_COPY = 1.02  # … and costs a call beside it about this


@dataclass(slots=True)
class Play:
    """One load in simulated time."""

    world: World
    is_shared: bool  # whether both slots' calls take turns on one device; else each has its own
    events: list[tuple[float, int, str, object]] = field(default_factory=list)
    numbers: "itertools.count[int]" = field(default_factory=itertools.count)
    busy: set[str] = field(default_factory=set)  # devices
    computing: set[int] = field(default_factory=set)  # item ids by runner
    waiting: list[tuple[float, PendingRequest]] = field(default_factory=list)
    took: list[float] = field(default_factory=list)

    def at(self, seconds: float, what: str, about: object = None) -> None:
        """Let something happen later."""
        heapq.heappush(self.events, (seconds, next(self.numbers), what, about))

    async def run(self) -> list[float]:
        """Play to the last answer; returns the latencies."""
        while self.events and (self.waiting or any(row[2] != "tick" for row in self.events)):
            self.world.clock.seconds, _, what, about = heapq.heappop(self.events)
            now = self.world.clock.seconds
            if what == "arrival":
                self.waiting.append((now, self.world.ask(f"text {next(self.numbers)}", seconds=60.0)))
            elif what == "tick":
                self.world.manager.tick()
                self.at(now + TICK_SECONDS, "tick")
            elif isinstance(about, tuple):
                runner, item = about
                self.busy.discard(self._device_of(runner))
                self.computing.discard(id(item))
                runner.answer(item)
            await self._settle()
            self._begin(now)
            done = [row for row in self.waiting if row[1].is_done]
            self.took += [now - began for began, _ in done]
            self.waiting = [row for row in self.waiting if not row[1].is_done]
        return self.took

    async def _settle(self) -> None:
        for _ in range(6):
            await asyncio.sleep(0)

    def _device_of(self, runner: SimRunner) -> str:
        return "card" if self.is_shared else str(runner.pid)

    def _begin(self, now: float) -> None:
        """Every device that is free begins with what came first."""
        runners = [self.world.runner(slot) for slot in ("b", "a")]
        copying = any(item.priority == 2 and id(item) in self.computing for one in runners for item in one.items)
        for runner in sorted(runners, key=lambda one: min((item.priority for item in one.items), default=9)):
            idle = [item for item in runner.items if id(item) not in self.computing]
            if idle and self._device_of(runner) not in self.busy:
                item = min(idle, key=lambda one: (one.priority, one.item_id))
                self.busy.add(self._device_of(runner))
                self.computing.add(id(item))
                self.at(now + self._service(item, is_beside_copy=copying), "done", (runner, item))

    def _service(self, item: runner_pb2.Item, *, is_beside_copy: bool) -> float:
        if self.is_shared:
            return SERVICE_SECONDS
        if item.priority == 2:
            return SLOW_COPY * SERVICE_SECONDS
        return SERVICE_SECONDS * (BESIDE_COPY if is_beside_copy else 1.0)


async def play(state: Path, device: str, share: float, load: float) -> tuple[list[float], int]:
    """The latencies of a load, and how many calls were compared."""
    world = World(state, device=device, capacity=Capacity(1000, 1 << 24), self_test_seconds=1e9)
    world.call_rows, world.devices = 1, [device]
    await world.serving()
    loaded = await world.candidate()
    world.commands.activate(loaded.load_id, 3600.0, "t1", 0, shadow=ShadowPolicy(share))
    await world.settle()
    for _ in range(5):  # so that the cost of a call is known
        await world.ask("warm").outcome
    await world.settle()
    world.holds_items = True
    chance, at = random.Random(101), world.clock.seconds
    played = Play(world, is_shared=device != "cpu")
    for _ in range(CALLS):
        at += chance.expovariate(load / SERVICE_SECONDS)
        played.at(at, "arrival")
    played.at(world.clock.seconds, "tick")
    took = await played.run()
    comparison = world.manager.requests.shadows.comparison
    return took, 0 if comparison is None else comparison.requests


@pytest.mark.fault("T4")
@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
async def test_a_fifth_of_the_calls_is_copied_at_less_than_three_percent(tmp_path: Path, device: str) -> None:
    """At 60 % of the load the 99th percentile grows by less than that, on CPUs and on a card that both slots share."""
    without, _ = await play(tmp_path / "without", device, 0.0, LOAD)
    copied, compared = await play(tmp_path / "copied", device, SHARE, LOAD)

    ratio = percentile(copied, 0.99) / percentile(without, 0.99)
    print(f"{device}: {compared} of {CALLS} compared, p99 × {ratio:.4f}")  # noqa: T201
    assert len(copied) == len(without) == CALLS
    assert compared > MIN_COMPARED[device]
    assert ratio < MAX_SLOWER
