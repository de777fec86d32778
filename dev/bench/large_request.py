"""The largest request to a large model through a server: answered or refused in time, and not mistaken for a hang."""

import time
from dataclasses import dataclass
from typing import Any

import grpc
from rich.table import Table

from common.bundle import Bundle
from common.paths import CONTROL_SOCKET, run_folder
from dev.bench.large_model import FOLDER
from dev.harness.answers import Question
from dev.harness.control import ControlClient
from dev.harness.demo_model import MODEL, SETTINGS
from dev.harness.pointer import commit_bundle
from dev.harness.process import running_server
from hotslot.entailment.v1.entailment_pb2_grpc import EntailmentServiceStub

PORT = 50_993
DEADLINES = (600.0, 10.0, 2.0)  # seconds: plenty, perhaps, never


@dataclass(frozen=True, slots=True)
class LargeReply:
    """One request."""

    deadline: float
    code: str
    seconds: float


def ask(bundle: Bundle, precision: str, image: bytes, statements: list[str]) -> Table:
    """Serve a bundle, and send the statements with each deadline."""
    state = FOLDER.absolute() / "state"
    commit_bundle(state, bundle, MODEL)
    settings = SETTINGS.replace('precision = "float32"', f'precision = "{precision}"').replace("threads = 1", "")
    with running_server(FOLDER.absolute(), settings.format(state=state, port=PORT)):
        rows, restarts = _ask(Question(image, tuple(statements)))
    table = Table(
        title=f"one request of {len(statements)} statements, {precision}; runners ended meanwhile: {restarts}"
    )
    for title in ("deadline", "outcome", "after"):
        table.add_column(title, justify="right")
    for row in rows:
        table.add_row(f"{row.deadline:g} s", row.code, f"{row.seconds:.2f} s")
    return table


def _ask(asked: Question) -> tuple[list[LargeReply], int]:
    control = ControlClient(str(run_folder(FOLDER.absolute() / "state") / CONTROL_SOCKET), MODEL)
    before = control.wait_ready()
    rows = []
    with grpc.insecure_channel(f"127.0.0.1:{PORT}") as channel:
        stub = EntailmentServiceStub(channel)
        for deadline in DEADLINES:
            began, code = time.perf_counter(), "OK"
            try:
                stub.Predict(asked.request(), timeout=deadline)
            except grpc.RpcError as error:
                call: Any = error
                code = f"{call.code().name}: {call.details()}"
            rows.append(LargeReply(deadline, code, time.perf_counter() - began))
    after = control.status()
    control.close()
    ended = sum(slot.restarts for slot in after.slots) - sum(slot.restarts for slot in before.slots)
    return rows, ended
