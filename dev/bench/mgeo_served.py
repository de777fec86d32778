"""A server with the base MGeo and callers of single usual addresses: items a second, latency, and the server's cost.

The cost is CPU time for each item, of the runner, of the server and of the callers, who are in this process: they take
CPUs that the engine could use, so that on a machine of few CPUs the rate by the clock falls below the bare engine's.
"""

import asyncio
import shutil
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import grpc
import psutil

from common.bundle import bundle_folder, read_bundle
from dev.bench.engine_child import percentile
from dev.bench.mgeo_texts import make_texts
from dev.harness.pointer import commit_bundle
from dev.harness.stack import Stack
from hotslot.address.v1 import address_pb2, address_pb2_grpc

CALLERS = (1, 8, 64)
BATCHES = (1, 8, 32)  # of the bare engine
DEADLINE_SECONDS = 60.0
WARM_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Served:
    """What callers saw."""

    callers: int
    items_per_second: float
    p50: float  # seconds
    p95: float  # seconds
    runner_cpu: float  # seconds of CPU time for each item
    server_cpu: float
    caller_cpu: float

    @property
    def engine_batch(self) -> int:
        """The batch of the bare engine with which this is compared."""
        return max(batch for batch in BATCHES if batch <= self.callers)


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
            stack.wait_calm()  # a standby process that starts takes CPU time
            asyncio.run(_call(stack.address, _Processes(psutil.Process(stack.active_pid()), ()), 8, WARM_SECONDS))
            processes = _Processes(psutil.Process(stack.active_pid()), stack.process.living())
            return [asyncio.run(_call(stack.address, processes, callers, seconds)) for callers in CALLERS]


class _Processes:
    """CPU seconds of the runner that computes, of the rest of the stack, and of this process with the callers."""

    def __init__(self, runner: psutil.Process, stack: Iterable[int]) -> None:
        self._runner = runner
        self._others = [psutil.Process(pid) for pid in stack if pid != runner.pid]

    def read(self) -> tuple[float, float, float]:
        """The CPU seconds that they have used."""
        return _read_cpu(self._runner), sum(map(_read_cpu, self._others)), time.process_time()


def _read_cpu(process: psutil.Process) -> float:
    used = process.cpu_times()
    return used.user + used.system


async def _call(address: str, processes: _Processes, callers: int, seconds: float) -> Served:
    texts = make_texts("usual", 256)
    taken: list[float] = []
    async with grpc.aio.insecure_channel(address) as channel:
        stub = address_pb2_grpc.AddressTaggingServiceStub(channel)
        before_cpu, begun = processes.read(), time.perf_counter()

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
        used = [(after - before) / len(taken) for after, before in zip(processes.read(), before_cpu, strict=True)]
    times = (percentile(tuple(taken), 0.5), percentile(tuple(taken), 0.95))
    return Served(callers, len(taken) / passed, *times, *used)
