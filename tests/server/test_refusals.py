"""Refusals of the control socket: of slots that do not empty in time, and their size.

gRPC replaces a status whose trailers exceed 8 KiB with RESOURCE_EXHAUSTED.
"""

import asyncio
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from common.errors import Conflict, Interrupted, NotFound, to_status
from dev.harness.answers import question
from hotslot.control.v1 import control_pb2 as pb
from hotslot.control.v1.control_pb2 import SettingsReload
from inference.server.api.interceptors import Call, current_call
from inference.server.api.task import InputLimits
from inference.server.control.report import build_model_state
from inference.server.control.servicer import ControlApi
from inference.server.model.models import Models
from inference.server.model.stats import StatsKey
from tests.server.simulator import SimRunner, World

MAX_TRAILER_BYTES = 8 << 10
OTHER_TRAILER_BYTES = 1 << 10  # request id, pushback, gRPC's own
CHANGE = pb.Change(model="shapes", transaction_id="t")


class Progress:
    """What a caller of LoadSlot reads."""

    def __init__(self) -> None:
        self.sent: list[pb.LoadSlotResponse] = []

    async def write(self, message: pb.LoadSlotResponse) -> None:
        """Read it."""
        self.sent.append(message)


async def test_a_conflict_fits_into_the_trailers_with_counters_of_many_revisions(tmp_path: Path) -> None:
    """The state in the details of a conflict has slots and trial, and no counters."""
    world = await World(tmp_path).serving()
    load = await world.trial()
    for number in range(40):
        row = world.manager.stats.get(StatsKey(f"sha256:{number:064}", "cpu"))
        row.count_answer(0.1)
        for rows in (1, 2, 4, 8):
            row.count_call(0.1, rows)
    state_bytes = build_model_state(world.manager, world.clock).ByteSize()
    assert state_bytes > MAX_TRAILER_BYTES
    call = Call("ControlService", "ActivateSlot", "unary", "id", "", 0.0, is_echoed=False, timeout=None)
    current_call.set(call)
    api = _make_api(world)
    change = pb.Change(model="shapes", transaction_id="t", expected_generation=99)
    context: Any = None

    with pytest.raises(Conflict) as refusal:
        await api.activate_slot(pb.ActivateSlotRequest(change=change, load_id="x").SerializeToString(), context)

    (state,) = call.details
    assert to_status(refusal.value, state).ByteSize() < MAX_TRAILER_BYTES - OTHER_TRAILER_BYTES
    assert state.generation == world.pair.generation
    assert state.trial.load_id == load.load_id


@pytest.fixture
async def endless(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """A server whose runners do not end when they are told to, and that does not wait for it."""
    monkeypatch.setattr("inference.server.control.servicer._RETIRE_LIMIT_SECONDS", 0.0)
    monkeypatch.setattr(SimRunner, "retire", lambda _: None)
    monkeypatch.setattr(SimRunner, "kill", lambda _, __, is_retiring: None)
    current_call.set(Call("ControlService", "", "unary", "id", "", 0.0, is_echoed=False, timeout=None))
    return await World(tmp_path).serving()


async def test_a_slot_whose_process_has_not_ended_in_time_is_in_use(endless: World) -> None:
    """No internal error: `retire_seconds` may be longer than the call waits. The slot is empty later, not before."""
    load, context = await endless.candidate(), cast("Any", None)
    request = pb.RetireSlotRequest(change=CHANGE, load_id=load.load_id).SerializeToString()

    refusals = []
    for _ in range(2):
        with pytest.raises(Conflict) as refusal:
            await _make_api(endless).retire_slot(request, context)
        refusals.append(refusal.value.reason)
    endless.runners[-1].end()
    emptied = await _make_api(endless).retire_slot(request, context)

    assert refusals == ["SLOT_IN_USE", "SLOT_IN_USE"]
    assert [slot.load_id for slot in emptied.state.slots].count("") == 1


async def test_a_probe_whose_caller_is_gone_ends(tmp_path: Path) -> None:
    """Those of its items that wait, too: nothing keeps the slot, which can be retired at once."""
    current_call.set(Call("ControlService", "", "unary", "id", "", 0.0, is_echoed=False, timeout=None))
    world = await World(tmp_path).serving()
    load = await world.candidate()
    world.holds_items = True
    items = [question(str(number)).request() for number in range(3)]
    request = pb.ProbeSlotRequest(model=world.manager.options.model, load_id=load.load_id)
    request.entailment.requests.extend(items)
    context = cast("Any", SimpleNamespace(time_remaining=lambda: None))
    probing = asyncio.ensure_future(_make_api(world).probe_slot(request.SerializeToString(), context))
    await world.settle()
    was_leased = world.manager.machine.slots["b"].is_leased
    probing.cancel()
    await asyncio.wait({probing})
    retire = pb.RetireSlotRequest(change=CHANGE, load_id=load.load_id).SerializeToString()
    world.holds_items = False
    world.runner("b").compute()
    await world.settle()

    assert (was_leased, world.manager.machine.slots["b"].is_leased, world.manager.requests.waiting) == (True, False, 0)
    assert [slot.load_id for slot in (await _make_api(world).retire_slot(retire, context)).state.slots].count("") == 1


async def test_a_failed_load_says_why_although_its_process_has_not_ended_in_time(endless: World) -> None:
    """The caller's next load is refused then, as long as no slot is free."""
    endless.holds_loads = True
    digest, context = endless.bundle("r2").bundle_digest, cast("Any", Progress())
    request = pb.LoadSlotRequest(change=CHANGE, bundle_digest=digest)
    loading = asyncio.ensure_future(_make_api(endless).load_slot(request.SerializeToString(), context))
    await endless.settle()
    endless.commands.retire(context.sent[0].load_id, 0)

    with pytest.raises(Interrupted) as failure:
        await loading

    assert failure.value.reason == "LOAD_RETIRED"


def test_a_long_message_fits_into_the_trailers() -> None:
    """A long sentence, for example of a runner's failure, is shortened; code and reason stay."""
    error = NotFound("界" * 10_000, reason="LOAD_UNKNOWN", field="load_id", resource=("load", "x" * 128))

    status = to_status(error)

    encoded_message = 9 * len(status.message)  # percent-encoded in `grpc-message`
    assert status.ByteSize() + encoded_message < MAX_TRAILER_BYTES - OTHER_TRAILER_BYTES
    assert status.message.endswith("界…")


def _make_api(world: World) -> ControlApi:
    return ControlApi(Models([world.manager]), InputLimits(1000, 1 << 20), world.clock, datetime.now(UTC), _no_reload)


async def _no_reload(**_options: bool) -> SettingsReload:
    return SettingsReload()
