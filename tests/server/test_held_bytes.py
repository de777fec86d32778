"""What the server holds for its callers is bounded, and let go when they leave."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from dev.harness.stack import DEADLINE_SECONDS, ENTAILMENT, Stack
from dev.harness.waiting import eventually
from inference.server.api.convert import InputLimits
from inference.server.api.entailment import EntailmentApi, PredictRules
from inference.server.api.stream import StreamRules
from inference.server.model.models import Models
from inference.server.scheduling.held_bytes import HeldBytes, HeldRules
from tests.server.simulated_connections import SimConnections, SimMemory
from tests.server.simulator import World
from tests.server.stream_caller import StreamCaller
from tests.server.test_stream import wait_still
from tests.stack.wire import item_message

MAX_OUTSTANDING = 8


def open_stream(world: World, caller: StreamCaller) -> "asyncio.Task[None]":
    """A stream on a simulated model."""
    rules = PredictRules(InputLimits(1000, 100), StreamRules(MAX_OUTSTANDING), max_deadline_seconds=60.0)
    held = HeldBytes(HeldRules(1 << 20, 1 << 20, 12.0), SimConnections(), SimMemory())
    api = EntailmentApi(Models([world.manager]), rules, world.clock, world.events.append, world.drain, held)
    return asyncio.create_task(api.stream_predict(None, caller.context))


@pytest.mark.fault("L4")
@pytest.mark.parametrize("message", [b"\xff", b""], ids=["no protobuf", "no items"])
async def test_malformed_messages_of_a_caller_that_never_reads_are_read_no_further(
    tmp_path: Path, message: bytes
) -> None:
    """Answers to malformed messages count as outstanding; once the caller reads them, its stream is read on."""
    world = await World(tmp_path).serving()
    caller = StreamCaller([message] * 100)
    stream = open_stream(world, caller)
    await world.settle()
    assert caller.sent == MAX_OUTSTANDING

    caller.read_answers(100)
    await stream

    assert len(caller.results) == 100


async def test_a_cancelled_request_drops_its_payload(tmp_path: Path) -> None:
    """The picture of a caller that has left is not kept while the runner computes it."""
    world = await World(tmp_path).serving()
    world.holds_items = True
    computed, waiting = world.ask("computed"), [world.ask("waiting") for _ in range(7)]
    await world.settle()

    for request in (computed, *waiting):
        world.manager.requests.cancel(request)

    assert {request.payload.size_bytes for request in (computed, *waiting)} == {0}
    assert world.manager.requests.intake.admission.size_bytes == 0


@pytest.mark.fault("L24")
def test_a_caller_that_leaves_during_a_write_is_cancelled(stack: Stack) -> None:
    """Ten callers that do not read their answers, and leave, are CANCELLED in the log; no crash is logged."""
    ended = len(stack.process.events("call_ended"))
    message = item_message("", b"x" * 100)
    sent = 0

    def pour() -> Iterator[bytes]:
        nonlocal sent
        while True:
            sent += 1
            yield message

    with grpc.insecure_channel(stack.address, options=[("grpc.http2.bdp_probe", 0)]) as channel:
        leave: Any = channel.stream_stream(f"/{ENTAILMENT}/StreamPredict")
        calls = [leave(pour(), timeout=DEADLINE_SECONDS) for _ in range(10)]
        wait_still(lambda: sent)
        for call in calls:
            call.cancel()

    eventually(lambda: len(stack.process.events("call_ended")) >= ended + 10, what="all calls have ended")
    assert {line["grpc_code"] for line in stack.process.events("call_ended")[ended:]} == {"Cancelled"}
    assert stack.process.events("call_crashed") == []
