"""The size of refusals: gRPC replaces a status whose trailers exceed 8 KiB with RESOURCE_EXHAUSTED."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from common.errors import Conflict, NotFound, to_status
from hotslot.control.v1 import control_pb2 as pb
from hotslot.control.v1.control_pb2 import SettingsReload
from inference.server.api.interceptors import Call, current_call
from inference.server.api.task import InputLimits
from inference.server.control.report import build_model_state
from inference.server.control.servicer import ControlApi
from inference.server.model.models import Models
from inference.server.model.stats import StatsKey
from tests.server.simulator import World

MAX_TRAILER_BYTES = 8 << 10
OTHER_TRAILER_BYTES = 1 << 10  # request id, pushback, gRPC's own


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
    api = ControlApi(Models([world.manager]), InputLimits(1, 1), world.clock, datetime.now(UTC), _no_reload)
    change = pb.Change(model="shapes", transaction_id="t", expected_generation=99)
    context: Any = None

    with pytest.raises(Conflict) as refusal:
        await api.activate_slot(pb.ActivateSlotRequest(change=change, load_id="x").SerializeToString(), context)

    (state,) = call.details
    assert to_status(refusal.value, state).ByteSize() < MAX_TRAILER_BYTES - OTHER_TRAILER_BYTES
    assert state.generation == world.pair.generation
    assert state.trial.load_id == load.load_id


def test_a_long_message_fits_into_the_trailers() -> None:
    """A long sentence, for example of a runner's failure, is shortened; code and reason stay."""
    error = NotFound("界" * 10_000, reason="LOAD_UNKNOWN", field="load_id", resource=("load", "x" * 128))

    status = to_status(error)

    encoded_message = 9 * len(status.message)  # percent-encoded in `grpc-message`
    assert status.ByteSize() + encoded_message < MAX_TRAILER_BYTES - OTHER_TRAILER_BYTES
    assert status.message.endswith("界…")


async def _no_reload(**_options: bool) -> SettingsReload:
    return SettingsReload()
