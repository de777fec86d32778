"""Steady callers: no retries, ten seconds a call, every attempt counted, every answer checked."""

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field

import grpc

from dev.bench.stack import DEADLINE_SECONDS, Item, is_own
from dev.demo.world import PORT, World
from hotslot.entailment.v1 import entailment_pb2_grpc

CALLERS = 4
PAUSE_SECONDS = 0.02  # of a caller between two calls: the machine has other work, too
SPOILING_EVERY = 4  # one call in so many, while the word is in use


@dataclass(frozen=True, slots=True)
class Answer:
    """One good answer."""

    at: float  # time.perf_counter()
    seconds: float
    revision: str
    phase: str  # what was going on when it was asked


@dataclass(slots=True)
class Load:
    """What callers do and see."""

    phase: str = "starting"
    uses_the_word: bool = False
    attempts: int = 0
    failed: list[str] = field(default_factory=list)
    wrong: int = 0  # answers that are not their own revision's
    answers: list[Answer] = field(default_factory=list)

    def first_of(self, revision: str, since: float = 0.0) -> float | None:
        """When a revision first answered."""
        return next((one.at for one in self.answers if one.revision == revision and one.at >= since), None)

    def last_of(self, revision: str) -> float | None:
        """When a revision last answered."""
        return next((one.at for one in reversed(self.answers) if one.revision == revision), None)

    def by_revision(self) -> dict[str, int]:
        """Answers of each revision."""
        names = sorted({one.revision for one in self.answers})
        return {name: sum(one.revision == name for one in self.answers) for name in names}

    def longest_gap(self, since: float = 0.0, until: float = math.inf) -> float:
        """Longest time without any answer, seconds; of those that ended after `since` and began before `until`."""
        pairs = zip(self.answers, self.answers[1:], strict=False)
        return max((b.at - a.at for a, b in pairs if b.at >= since and a.at <= until), default=0.0)

    def p99(self, phases: Iterable[str]) -> float:
        """Seconds that 99 of 100 answers of some phases took at most; 0 if there are none."""
        chosen = set(phases)
        took = sorted(one.seconds for one in self.answers if one.phase in chosen)
        return took[min(len(took) - 1, int(len(took) * 0.99))] if took else 0.0


@contextlib.asynccontextmanager
async def calling(world: World) -> AsyncIterator[Load]:
    """Callers, until the end of the block."""
    load, ends = Load(), asyncio.Event()
    tasks = [asyncio.create_task(_call(number, world, load, ends)) for number in range(CALLERS)]
    try:
        yield load
    finally:
        ends.set()
        await asyncio.gather(*tasks)


async def _call(number: int, world: World, load: Load, ends: asyncio.Event) -> None:
    options = [("client", number), ("grpc.enable_http_proxy", 0), ("grpc.enable_retries", 0)]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{PORT}", options=options) as channel:
        stub = entailment_pb2_grpc.EntailmentServiceStub(channel)
        position = number
        while not ends.is_set():
            is_spoiling = load.uses_the_word and position % SPOILING_EVERY == 0
            items = world.spoiling if is_spoiling else world.items
            await _one(stub, items[position % len(items)], world, load)
            position += 1
            await asyncio.sleep(PAUSE_SECONDS)


async def _one(stub: "entailment_pb2_grpc.EntailmentServiceAsyncStub", item: Item, world: World, load: Load) -> None:
    name, request = item
    load.attempts += 1
    phase, begun = load.phase, time.perf_counter()
    try:
        response = await stub.Predict(request, timeout=DEADLINE_SECONDS)
    except grpc.aio.AioRpcError as error:
        load.failed.append(f"{phase}: {error.code().name}: {error.details()}")
        return
    now, revision = time.perf_counter(), response.served_by.revision
    load.answers.append(Answer(now, now - begun, revision, phase))
    expected = world.expected.get(revision, {}).get(name)
    load.wrong += expected is None or not is_own(response, expected)
