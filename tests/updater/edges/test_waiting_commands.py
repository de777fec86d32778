"""Commands that wait take no thread from the calls that answer at once."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event, Thread
from typing import Any, cast

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from common.address import unix_target
from common.clock import SystemClock
from common.logs import get_logger
from dev.harness.waiting import eventually
from hotslot.status.v1 import status_pb2
from hotslot.updates.v1 import updates_pb2 as pb
from hotslot.updates.v1.updates_pb2_grpc import UpdatesServiceStub
from updater.commands import CommandQueue
from updater.core.record import ModelRecord
from updater.service.callers import WORKERS, CommandGroup, CommandPlaces
from updater.service.golden import GoldenApi
from updater.service.servicer import ModelHandle, SettingsCalls, UpdatesApi
from updater.stages.commands import CommandResult
from updater.stages.transitions import Transition
from updater.status import StatusPublisher

LIMIT_SECONDS = 10.0
MODEL, OTHER = "shapes", "other"


class BusyUpdater:
    """The operators' server of an updater that is in the middle of a step which nothing interrupts."""

    def __init__(self, folder: Path) -> None:
        self.commands = CommandQueue(Event())
        handle = ModelHandle(StatusPublisher(ModelRecord(MODEL), SystemClock()), self.commands)
        self.other_commands = CommandQueue(Event())
        other = ModelHandle(StatusPublisher(ModelRecord(OTHER), SystemClock()), self.other_commands)
        settings = SettingsCalls(lambda: (MODEL, OTHER), status_pb2.SettingsStatus, lambda **_: cast("Any", None))
        api = UpdatesApi(
            {MODEL: handle, OTHER: other}.get,
            settings,
            lambda: cast("Any", None),
            lambda _digest: None,
            get_logger(),
            GoldenApi(dict, get_logger()),
        )
        self.workers = ThreadPoolExecutor(WORKERS)
        self.server = grpc.server(self.workers)
        self.server.add_generic_rpc_handlers((api.handlers(),))
        target = unix_target(folder / "updates.sock")
        self.server.add_insecure_port(target)
        self.server.start()
        self.channel = grpc.insecure_channel(target)
        self.stub = UpdatesServiceStub(self.channel)

    @property
    def waiting(self) -> int:
        """Commands in the queue."""
        return len(self.commands._queue)  # noqa: SLF001  what the loop would find

    def poll(self, times: int) -> list[Any]:
        """Callers of CheckNow whose command is applied, and who wait for a hub that does not answer."""
        calls = [self.stub.CheckNow.future(pb.CheckNowRequest(model=MODEL), timeout=60) for _ in range(times)]
        eventually(lambda: self.waiting == times, what="the commands are in the queue")
        while (command := self.commands.oldest(ModelRecord(MODEL))) is not None:
            assert self.commands.take(command)
            self.commands.answer(CommandResult(command, Transition(ModelRecord(MODEL))))
        return calls

    def close(self) -> None:
        """End it."""
        self.channel.close()
        self.server.stop(None).wait()


@pytest.fixture
def busy(tmp_path: Path) -> Iterator[BusyUpdater]:
    """An updater in the middle of a long step."""
    one = BusyUpdater(tmp_path)
    yield one
    one.close()


def list_reasons(calls: list[Any]) -> list[str]:
    """The reasons with which calls have ended."""
    return [from_rpc(call.exception(LIMIT_SECONDS)) for call in calls]


def from_rpc(error: Any) -> str:  # noqa: ANN401  a call that has failed
    """The reason of a failed call."""
    status = rpc_status.from_call(error)
    assert status is not None, error
    for detail in status.details:
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info):
            return info.reason
    return ""


def test_waiting_commands_leave_the_status_its_threads(busy: BusyUpdater) -> None:
    """Ten of each kind: four of a group wait, the others are told at once that they do not; the status is answered."""
    calls: dict[str, list[Any]] = {"rollback": [], "resume": [], "check": []}
    for _ in range(10):
        calls["rollback"].append(busy.stub.Rollback.future(pb.RollbackRequest(model=MODEL), timeout=60))
        calls["resume"].append(busy.stub.Resume.future(pb.ResumeRequest(model=MODEL), timeout=60))
        calls["check"].append(busy.stub.CheckNow.future(pb.CheckNowRequest(model=MODEL), timeout=60))
    eventually(lambda: busy.waiting == 12, what="four of each group wait")
    eventually(lambda: all(sum(call.done() for call in group) == 6 for group in calls.values()), what="refused")
    refused = [call for group in calls.values() for call in group if call.done()]

    assert list_reasons(refused) == ["UPDATER_BUSY"] * 18
    assert busy.stub.GetStatus(pb.GetStatusRequest(), timeout=LIMIT_SECONDS).models[0].model == MODEL

    for group in calls.values():
        for call in group:
            call.cancel()
    eventually(lambda: busy.waiting == 0, what="commands of callers who have gone are dropped")
    assert busy.commands.oldest(ModelRecord(MODEL)) is None


def test_a_command_is_dropped_at_its_callers_deadline(busy: BusyUpdater) -> None:
    """Also where the caller did not hang up."""
    with pytest.raises(grpc.RpcError):
        busy.stub.Pause(pb.PauseRequest(model=MODEL), timeout=0.2)
    eventually(lambda: busy.waiting == 0, what="the command is dropped")


def test_callers_who_have_gone_leave_their_places(busy: BusyUpdater) -> None:
    """Also those whose command was applied, and who waited for the answer of the hub."""
    for call in busy.poll(4):
        call.cancel()

    def asks_again() -> bool:
        call = busy.stub.CheckNow.future(pb.CheckNowRequest(model=MODEL), timeout=60)
        eventually(lambda: call.done() or busy.waiting, what="the fifth caller waits, or is refused")
        return not call.done()

    assert eventually(asks_again, what="the fifth caller waits")


def test_waiting_callers_do_not_delay_the_end_of_the_process(busy: BusyUpdater) -> None:
    """The interpreter waits for the threads that answer them."""
    busy.poll(4)
    busy.server.stop(0.1).wait()
    ended = Thread(target=busy.workers.shutdown, daemon=True)
    ended.start()
    ended.join(LIMIT_SECONDS)
    assert not ended.is_alive()


def test_a_model_in_a_long_step_refuses_no_command_to_another(busy: BusyUpdater) -> None:
    """Its places are its own: a rollback of a healthy model is carried out."""
    stuck = [busy.stub.Rollback.future(pb.RollbackRequest(model=MODEL), timeout=60) for _ in range(5)]
    eventually(lambda: any(call.done() for call in stuck), what="four wait, the fifth is refused")
    healthy = busy.stub.Rollback.future(pb.RollbackRequest(model=OTHER), timeout=60)
    command = eventually(lambda: busy.other_commands.oldest(ModelRecord(OTHER)), what="the command is in the queue")
    assert command is not None
    assert busy.other_commands.take(command)
    busy.other_commands.answer(CommandResult(command, Transition(ModelRecord(OTHER))))
    assert healthy.exception(LIMIT_SECONDS) is None


def test_a_removed_model_leaves_nothing_among_the_places() -> None:
    """And its last command leaves its place to nobody."""
    places = CommandPlaces()
    with places.take("a", CommandGroup.STEP), places.take("b", CommandGroup.STEP):
        pass
    assert not places._taken  # noqa: SLF001  what grows with the names of models
