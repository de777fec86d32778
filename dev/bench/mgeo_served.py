"""A server with the base MGeo and callers of single usual addresses: items a second, and the callers' latency."""

import asyncio
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import grpc

from common.bundle import bundle_folder, read_bundle
from dev.bench.engine_child import percentile
from dev.bench.mgeo_texts import make_texts
from dev.harness.pointer import commit_bundle
from dev.harness.stack import Stack
from hotslot.address.v1 import address_pb2, address_pb2_grpc

CALLERS = (1, 8, 64)
DEADLINE_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Served:
    """What callers saw."""

    callers: int
    items_per_second: float
    p50: float  # seconds
    p95: float  # seconds


def measure_served(folder: Path, precision: str, threads: int, seconds: float) -> list[Served]:
    """Serve a converted folder and call it."""
    with tempfile.TemporaryDirectory(dir=folder.parent) as name:
        state = Path(name)
        bundle = read_bundle(folder)
        shutil.copytree(folder, bundle_folder(state, bundle.bundle_digest))
        model = {"task": "token-classification", "device": "cpu", "precision": precision}
        runner = {"extra_engines": {}, "threads": threads}
        stack = Stack(state, committed=None, runner=runner, models=("addresses",), model=model)
        commit_bundle(state, bundle, "addresses")
        with stack:
            return [asyncio.run(_call(stack.address, callers, seconds)) for callers in CALLERS]


async def _call(address: str, callers: int, seconds: float) -> Served:
    texts = make_texts("usual", 256)
    taken: list[float] = []
    async with grpc.aio.insecure_channel(address) as channel:
        stub = address_pb2_grpc.AddressTaggingServiceStub(channel)
        begun = time.perf_counter()

        async def caller(number: int) -> None:
            step = number
            while time.perf_counter() - begun < seconds:
                before = time.perf_counter()
                request = address_pb2.PredictRequest(addresses=[texts[step % len(texts)]])
                await stub.Predict(request, timeout=DEADLINE_SECONDS)
                taken.append(time.perf_counter() - before)
                step += callers

        await asyncio.gather(*(caller(number) for number in range(callers)))
        passed = time.perf_counter() - begun
    return Served(callers, len(taken) / passed, percentile(tuple(taken), 0.5), percentile(tuple(taken), 0.95))
