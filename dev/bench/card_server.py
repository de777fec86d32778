"""The large OFA through a server: answers per second by number of callers, alone and with a second load beside them."""

import asyncio
import hashlib
import io
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import grpc
import numpy as np
from PIL import Image
from rich.table import Table

from common.bundle import Bundle, bundle_folder, compute_bundle_digest, write_bundle
from common.paths import CONTROL_SOCKET, run_folder
from dev.bench.engine_child import percentile
from dev.bench.large_model import FOLDER, say
from dev.harness.answers import Question
from dev.harness.control import CHANNEL_OPTIONS, ControlClient
from dev.harness.demo_model import MODEL
from dev.harness.pointer import commit_bundle
from dev.harness.process import free_port, running_server
from hotslot.entailment.v1.entailment_pb2_grpc import EntailmentServiceStub
from hotslot.status.v1 import status_pb2
from hotslot.status.v1.status_pb2_grpc import StatusServiceStub
from inference.runner.worker import SAMPLE_SECONDS

SETTINGS = """
state_dir = "{state}"
[[models]]
name = "shapes"
device = "{device}"
precision = "bfloat16"
[server]
port = {port}
metrics_port = -1
drain_delay_seconds = 0
[runner]
min_timeout_seconds = 30.0
prepare_processes = {threads}
max_call_rows = {items}
"""
CLIENTS = (1, 16, 64)
SETUPS = ((2, 16), (8, 32))  # threads that decode pictures, most rows of a device call
PICTURES = 256
SIZE = (640, 480)  # pixels
GRAIN = 16  # a drawn picture is enlarged by this factor: as many bytes as a photograph
DEADLINE_SECONDS = 20.0
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class ServerRow:
    """One load."""

    setup: tuple[int, int]  # of SETUPS
    clients: int
    answered: int
    failed: int
    seconds: float
    p50: float  # seconds of a call
    p95: float
    used_bytes: int  # of the device at the end, by all processes
    load_seconds: float = 0.0  # of the second load beside it; 0 if there was none


def measure(bundle: Bundle, device: str, seconds: float) -> list[ServerRow]:
    """Serve a bundle of `large_model.FOLDER` with each of SETUPS, and call it."""
    state = FOLDER.absolute() / "state"
    commit_bundle(state, bundle, MODEL)
    other = _copy(state, bundle)
    questions = _questions()
    rows = []
    for threads, items in SETUPS:
        say(f"serving with {threads} threads that decode, {items} rows a call")
        port = free_port()
        settings = SETTINGS.format(state=state, device=device, port=port, threads=threads, items=items)
        with running_server(FOLDER.absolute(), settings):
            control = ControlClient(str(run_folder(state) / CONTROL_SOCKET), MODEL)
            control.wait_ready()
            rows += asyncio.run(_loads(f"127.0.0.1:{port}", questions, seconds, (threads, items)))
            rows.append(asyncio.run(_load_beside(f"127.0.0.1:{port}", questions, control, other, (threads, items))))
            control.close()
    return rows


def _copy(state: Path, bundle: Bundle) -> Bundle:
    """The same files as another revision."""
    source = f"sha256:{hashlib.sha256(bundle.source_digest.encode()).hexdigest()}"
    digest = compute_bundle_digest(source, bundle.engine, bundle.converter, bundle.precision)
    other = replace(bundle, bundle_digest=digest, source_digest=source, revision="v2")
    folder = bundle_folder(state, digest)
    if not folder.exists():
        folder.mkdir()
        for file in bundle.files:
            (folder / file.name).hardlink_to(bundle_folder(state, bundle.bundle_digest) / file.name)
        write_bundle(folder, other)
    return other


def table(rows: Sequence[ServerRow]) -> Table:
    """All rows."""
    picture = f"a JPEG of {SIZE[0]} × {SIZE[1]} a call"
    grid = Table(title=f"an OFA in bfloat16 through a server with {os.cpu_count()} CPUs; {picture}")
    titles = ("decoding threads", "rows a call", "callers", "answers/s", "p50, ms", "p95, ms", "failed")
    for title in (*titles, "load beside", "in use"):
        grid.add_column(title, justify="right")
    for row in rows:
        grid.add_row(
            *(str(row.setup[0]), str(row.setup[1]), str(row.clients), f"{row.answered / row.seconds:.1f}"),
            *(f"{1e3 * row.p50:.1f}", f"{1e3 * row.p95:.1f}", str(row.failed)),
            f"{row.load_seconds:.2f} s" if row.load_seconds else "",
            f"{row.used_bytes / MIB:.0f} MiB" if row.used_bytes else "",
        )
    return grid


async def _loads(
    address: str, questions: Sequence[Question], seconds: float, setup: tuple[int, int]
) -> list[ServerRow]:
    rows = []
    for clients in CLIENTS:
        async with asyncio.timeout(seconds + 2 * DEADLINE_SECONDS):
            stop = asyncio.Event()
            asyncio.get_running_loop().call_later(seconds, stop.set)
            rows.append(await _load(address, questions, clients, stop, setup))
    return rows


async def _load_beside(
    address: str, questions: Sequence[Question], control: ControlClient, bundle: Bundle, setup: tuple[int, int]
) -> ServerRow:
    """The largest load, while another bundle is loaded into the free slot."""
    stop = asyncio.Event()
    load = asyncio.create_task(_load(address, questions, CLIENTS[-1], stop, setup))
    await asyncio.sleep(1.0)
    begun = time.perf_counter()
    await asyncio.to_thread(control.load, bundle.bundle_digest)
    loaded = time.perf_counter() - begun
    await asyncio.sleep(2 * SAMPLE_SECONDS)  # the memory of both is seen then
    stop.set()
    return replace(await load, load_seconds=loaded)


async def _load(
    address: str, questions: Sequence[Question], clients: int, stop: asyncio.Event, setup: tuple[int, int]
) -> ServerRow:
    """Callers without pauses and retries, until `stop`."""
    took: list[float] = []
    failed = 0

    async def call(number: int) -> None:
        nonlocal failed
        async with grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS) as channel:
            stub = EntailmentServiceStub(channel)
            turn = number
            while not stop.is_set():
                turn += clients
                begun = time.perf_counter()
                try:
                    await stub.Predict(questions[turn % len(questions)].request(), timeout=DEADLINE_SECONDS)
                except grpc.aio.AioRpcError as error:
                    failed += 1
                    if failed == 1:
                        say(f"failed: {error.code().name}: {error.details()}")
                else:
                    took.append(time.perf_counter() - begun)

    begun = time.perf_counter()
    await asyncio.gather(*(call(number) for number in range(clients)))
    seconds = time.perf_counter() - begun
    if len(took) < 2:
        raise RuntimeError("fewer than two answers")
    p50, p95 = (percentile(tuple(took), share) for share in (0.5, 0.95))
    return ServerRow(setup, clients, len(took), failed, seconds, p50, p95, await _used_bytes(address))


async def _used_bytes(address: str) -> int:
    async with grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS) as channel:
        state = await StatusServiceStub(channel).GetServerStatus(status_pb2.GetServerStatusRequest())
    return max((int(gpu.used_bytes) for gpu in state.resources.gpus), default=0)


def _questions() -> list[Question]:
    """Pictures of their own, and statements of 2 to 17 words."""
    draw = np.random.default_rng(11)
    return [Question(_photograph(draw), (f"{'two ' * (number % 16)}birds fly.",)) for number in range(PICTURES)]


def _photograph(draw: np.random.Generator) -> bytes:
    coarse = draw.integers(0, 256, (SIZE[1] // GRAIN, SIZE[0] // GRAIN, 3), dtype=np.uint8)
    file = io.BytesIO()
    picture = Image.fromarray(coarse).resize(SIZE, Image.Resampling.BICUBIC)
    noise = draw.integers(-6, 7, (SIZE[1], SIZE[0], 3))
    Image.fromarray((np.asarray(picture, dtype=int) + noise).clip(0, 255).astype(np.uint8)).save(
        file, "JPEG", quality=85
    )
    return file.getvalue()
