"""The largest request on a large model by the whole way: answered or refused in time, and never taken for a hang."""

import asyncio
import time
from dataclasses import dataclass

import grpc
from rich.table import Table

from common.bundle import Bundle, Committed, Origin, commit
from dev.bench.large_model import FOLDER
from dev.bench.stack import MODEL, SETTINGS, ControlClient, running_server
from hotslot.entailment.v1 import entailment_pb2, entailment_pb2_grpc

PORT = 50_993
DEADLINES = (600.0, 10.0, 2.0)  # seconds: plenty, perhaps, never


@dataclass(frozen=True, slots=True)
class Asked:
    """One request."""

    deadline: float
    code: str
    seconds: float


def ask(bundle: Bundle, precision: str, image: bytes, statements: list[str]) -> Table:
    """Serve a bundle, and ask as many statements with each deadline."""
    state = FOLDER.absolute() / "state"
    commit(state, Committed(MODEL, bundle.bundle_digest, bundle.source_digest, bundle.revision, Origin.IMPORT))
    settings = SETTINGS.replace('precision = "float32"', f'precision = "{precision}"').replace("threads = 1", "")
    with running_server(FOLDER.absolute(), PORT, settings.format(state=state, port=PORT)):
        rows, restarts = asyncio.run(_ask(image, statements))
    table = Table(
        title=f"one request of {len(statements)} statements, {precision}; runners ended meanwhile: {restarts}"
    )
    for title in ("deadline", "outcome", "after"):
        table.add_column(title, justify="right")
    for row in rows:
        table.add_row(f"{row.deadline:g} s", row.code, f"{row.seconds:.2f} s")
    return table


async def _ask(image: bytes, statements: list[str]) -> tuple[list[Asked], int]:
    control = ControlClient(FOLDER.absolute() / "state")
    before = await control.ready()
    rows = []
    async with grpc.aio.insecure_channel(f"127.0.0.1:{PORT}") as channel:
        stub = entailment_pb2_grpc.EntailmentServiceStub(channel)
        for deadline in DEADLINES:
            request = entailment_pb2.PredictRequest(statements=statements)
            request.image.content = image
            began, code = time.perf_counter(), "OK"
            try:
                await stub.Predict(request, timeout=deadline)
            except grpc.aio.AioRpcError as error:
                code = f"{error.code().name}: {error.details()}"
            rows.append(Asked(deadline, code, time.perf_counter() - began))
    after = await control.state()
    await control.close()
    ended = sum(slot.restarts for slot in after.slots) - sum(slot.restarts for slot in before.slots)
    return rows, ended
