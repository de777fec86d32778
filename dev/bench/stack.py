"""A real server on the demo model, for benchmarks: sealed revisions, the control socket, callers who count."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import grpc
from google.protobuf.duration_pb2 import Duration

from common.bundle import Bundle, Committed, Origin, bundle_folder, commit
from common.paths import CONTROL_SOCKET, run_folder
from common.sealing import ConvertLimits, run_convert
from hotslot.control.v1 import control_pb2, control_pb2_grpc
from hotslot.entailment.v1 import entailment_pb2, entailment_pb2_grpc
from inference.runner.engines.base import EntailmentItem, LoadOptions, PreparedItem, RowRange
from inference.runner.engines.ofa.load import load_ofa
from inference.wire import EntailmentScores

ROOT = Path(__file__).resolve().parents[2]
SHAPES = ROOT / "examples" / "shapes"
MODEL = "shapes"
DEADLINE_SECONDS = 10.0
TOLERANCE = 1e-4  # of a probability: the sum order of a batch moves the last bits
SETTINGS = """
state_dir = "{state}"
[[models]]
name = "shapes"
precision = "float32"
[server]
port = {port}
metrics_port = -1
drain_delay_seconds = 0
[runner]
threads = 1
[logs]
level = "warning"
"""

Item = tuple[str, entailment_pb2.PredictRequest]
Scores = tuple[float, float, float]


@dataclass(slots=True)
class Tally:
    """What the callers saw."""

    attempts: int = 0
    failed: list[str] = field(default_factory=list)
    wrong: int = 0  # answers that are not their own revision's
    by_revision: dict[str, int] = field(default_factory=dict)
    took: list[float] = field(default_factory=list)  # seconds of each answer
    last: float = 0.0  # when the last answer came
    gap: float = 0.0  # longest time without an answer, seconds

    def begin(self) -> None:
        """Measure the gap from now on."""
        self.last, self.gap = time.perf_counter(), 0.0

    def add(self, seconds: float) -> None:
        """An answer came."""
        now = time.perf_counter()
        self.took.append(seconds)
        self.gap = max(self.gap, now - self.last)
        self.last = now


def seal_revisions(state: Path, folders: Mapping[str, Path]) -> dict[str, Bundle]:
    """Convert revisions, and commit the first."""
    state.mkdir(parents=True, exist_ok=True)
    bundles = {name: run_convert(path, state, name, ConvertLimits(), "float32") for name, path in folders.items()}
    first = next(iter(bundles.values()))
    commit(state, Committed(MODEL, first.bundle_digest, first.source_digest, first.revision, Origin.IMPORT))
    return bundles


def golden_items(count: int) -> list[Item]:
    """The first items of the demo's golden set, as requests."""
    rows = [json.loads(line) for line in (SHAPES / "golden" / "golden.jsonl").read_text().splitlines()]
    items = []
    for row in rows[:count]:
        request = entailment_pb2.PredictRequest(statements=row["statements"])
        request.image.content = (SHAPES / "golden" / row["image"]).read_bytes()
        items.append((row["item"], request))
    return items


def answers_of(state: Path, bundle: Bundle, items: list[Item]) -> dict[str, list[Scores]]:
    """What the bare engine says, beforehand, without any server."""
    options = LoadOptions("cpu", "float32", 1)
    engine = load_ofa(bundle_folder(state, bundle.bundle_digest), bundle, options, lambda _phase, _share: None)
    found = {}
    for name, request in items:
        prepared = engine.prepare(EntailmentItem(request.image.content, tuple(request.statements), ""))
        [scores] = engine.compute([_whole(prepared)])
        found[name] = [(one.yes, one.no, one.maybe) for one in scores if isinstance(one, EntailmentScores)]
    return found


@contextlib.contextmanager
def running_server(folder: Path, port: int, text: str = "") -> Iterator[subprocess.Popen[bytes]]:
    """The server, in a process group of its own; its log beside the state, its settings as given or the demo's."""
    settings = folder / "hotslot.toml"
    settings.write_text(text or SETTINGS.format(state=folder / "state", port=port))
    with (folder / "log").open("wb") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", "inference.server.server"],
            cwd=ROOT,
            env={**os.environ, "HOTSLOT_CONFIG": str(settings)},
            stdout=log,
            stderr=log,
        )
    try:
        yield child
    finally:
        child.send_signal(signal.SIGTERM)
        child.wait(30)


class ControlClient:
    """The control socket."""

    def __init__(self, state: Path) -> None:
        self._channel = grpc.aio.insecure_channel(f"unix:{run_folder(state) / CONTROL_SOCKET}")
        self._stub = control_pb2_grpc.ControlServiceStub(self._channel)

    async def state(self) -> control_pb2.ModelState:
        """The model now."""
        request = control_pb2.GetStatusRequest(model=MODEL)
        return (await self._stub.GetStatus(request, timeout=5, wait_for_ready=True)).models[0]

    async def ready(self, seconds: float = 120.0) -> control_pb2.ModelState:
        """Wait until the model is ready."""
        async with asyncio.timeout(seconds):
            while not (state := await self.state()).ready:  # noqa: ASYNC110  another process is waited for
                await asyncio.sleep(0.02)
        return state

    async def swap(self, digest: str) -> float:
        """Load, activate, commit, retire the old one; seconds of the load."""
        change = control_pb2.Change(model=MODEL, transaction_id="bench")
        old = (await self.state()).active_load_id
        begun = time.perf_counter()
        request = control_pb2.LoadSlotRequest(change=change, bundle_digest=digest)
        load_id = ""
        async for progress in self._stub.LoadSlot(request, timeout=120):
            load_id = progress.load_id
        seconds = time.perf_counter() - begun
        activate = control_pb2.ActivateSlotRequest(change=change, load_id=load_id, trial_lease=Duration(seconds=60))
        await self._stub.ActivateSlot(activate, timeout=5)
        await self._stub.CommitSlot(control_pb2.CommitSlotRequest(change=change, load_id=load_id), timeout=5)
        await self._stub.RetireSlot(control_pb2.RetireSlotRequest(change=change, load_id=old), timeout=60)
        return seconds

    async def active_pid(self) -> int:
        """Process of the slot that answers."""
        state = await self.state()
        return next(slot.pid for slot in state.slots if slot.load_id == state.active_load_id)

    async def close(self) -> None:
        """Let go of the socket."""
        await self._channel.close()


@contextlib.asynccontextmanager
async def callers(
    port: int, clients: int, items: list[Item], expected: Mapping[str, Mapping[str, list[Scores]]]
) -> AsyncIterator[Tally]:
    """Clients that call in a circle, without retries, every attempt counted, every answer checked."""
    tally, ends = Tally(), asyncio.Event()

    async def call(number: int) -> None:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=[("client", number)]) as channel:
            stub = entailment_pb2_grpc.EntailmentServiceStub(channel)
            position = number
            while not ends.is_set():
                name, request = items[position % len(items)]
                position += 1
                tally.attempts += 1
                begun = time.perf_counter()
                try:
                    response = await stub.Predict(request, timeout=DEADLINE_SECONDS)
                except grpc.aio.AioRpcError as error:
                    tally.failed.append(f"{error.code().name}: {error.details()}")
                    continue
                tally.add(time.perf_counter() - begun)
                revision = response.served_by.revision
                tally.by_revision[revision] = tally.by_revision.get(revision, 0) + 1
                tally.wrong += not is_own(response, expected[revision][name])

    tasks = [asyncio.create_task(call(number)) for number in range(clients)]
    tally.begin()
    try:
        yield tally
    finally:
        ends.set()
        await asyncio.gather(*tasks)


def is_own(response: entailment_pb2.PredictResponse, expected: list[Scores]) -> bool:
    """Whether an answer is what the bare engine said of that revision."""
    got = [(result.scores.yes, result.scores.no, result.scores.maybe) for result in response.results]
    pairs = zip(got, expected, strict=True)
    return all(abs(a - b) <= TOLERANCE for one, other in pairs for a, b in zip(one, other, strict=True))


def _whole(prepared: PreparedItem) -> RowRange[PreparedItem]:
    return RowRange(prepared, 0, prepared.rows)
