"""The common part of all stacks: a hub folder, settings, clients, and functions that wait."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import grpc
import psutil

from common.address import unix_target
from common.bundle import Committed, read_committed
from common.paths import CONTROL_SOCKET, UPDATES_SOCKET, run_folder
from dev.harness.control import RECONNECT_OPTIONS, ControlClient
from dev.harness.revisions import MODEL, publish_scripted
from dev.harness.waiting import eventually
from hotslot.control.v1 import control_pb2
from hotslot.updates.v1 import updates_pb2 as pb
from hotslot.updates.v1.updates_pb2_grpc import UpdatesServiceStub

T = TypeVar("T")
LIMIT_SECONDS = 90.0
CALL_SECONDS = 20.0
PAUSE_SECONDS = 0.03  # between two looks; each is a call of a process, and the shortest stage lasts 0.5 s


class Deployment:
    """One model's server and updater on a state folder, with a folder hub.

    Args:
        folder: everything lies in it.
        state: hotslot's state folder, if it is to lie elsewhere.
    """

    def __init__(self, folder: Path, state: Path | None = None) -> None:
        self.folder, self.state = folder, state or folder / "state"
        self.state.mkdir(parents=True, exist_ok=True)
        self.hub, self.golden = folder / "hub", folder / "golden"
        self.config = folder / "hotslot.toml"

        self._control: ControlClient | None = None
        self._updates: grpc.Channel | None = None

    # Clients. Their channels connect once there is a process to answer.

    @property
    def control(self) -> ControlClient:
        """A client of the control socket."""
        if self._control is None:
            self._control = ControlClient(str(run_folder(self.state) / CONTROL_SOCKET), MODEL)
        return self._control

    @property
    def operator(self) -> UpdatesServiceStub:
        """A client of the operators' socket."""
        if self._updates is None:
            socket = run_folder(self.state) / UPDATES_SOCKET
            self._updates = grpc.insecure_channel(unix_target(socket), options=RECONNECT_OPTIONS)
        return UpdatesServiceStub(self._updates)

    def disconnect(self) -> None:
        """Close the channels."""
        if self._control is not None:
            self._control.close()
        if self._updates is not None:
            self._updates.close()
        self._control = self._updates = None

    # The hub.

    def publish(self, revision: str, **script: Any) -> None:  # noqa: ANN401  fields of Script
        """Publish a scripted revision."""
        publish_scripted(self.hub, revision, **script)

    # What can be seen.

    def committed(self) -> Committed | None:
        """The committed pointer: what a restart would load."""
        return read_committed(self.state).get(MODEL)

    def model_state(self) -> control_pb2.ModelState | None:
        """The model's state in the server; None while the server does not answer."""
        try:
            return self.control.status()
        except grpc.RpcError:
            return None

    def serving(self) -> str:
        """Revision of the slot that answers, as the server reports it; empty if none does."""
        state = self.model_state()
        rows = [] if state is None else [slot for slot in state.slots if slot.load_id == state.active_load_id]
        return rows[0].revision if rows else ""

    def is_on_trial(self) -> bool:
        """Whether a revision is on trial."""
        state = self.model_state()
        return state is not None and state.HasField("trial")

    def status(self) -> pb.ModelUpdates:
        """The update state that the updater reports."""
        (model,) = self.operator.GetStatus(pb.GetStatusRequest(), timeout=CALL_SECONDS, wait_for_ready=True).models
        return model

    def outcome(self, revision: str, limit: float = LIMIT_SECONDS) -> str:
        """How the last update to a revision ended; empty if it has not."""
        row = self._last_update(revision, limit)
        ended = row is not None and row.outcome != pb.UPDATE_OUTCOME_UNSPECIFIED
        return pb.UpdateOutcome.Name(row.outcome).removeprefix("UPDATE_OUTCOME_") if row is not None and ended else ""

    def reason(self, revision: str) -> str:
        """Why the last update to a revision ended without a commit; empty if it did not."""
        row = self._last_update(revision, LIMIT_SECONDS)
        return "" if row is None else row.reason

    def _last_update(self, revision: str, limit: float) -> pb.UpdateSummary | None:
        request = pb.ListHistoryRequest(page_size=20)
        rows = self.operator.ListHistory(request, timeout=limit, wait_for_ready=True).updates
        return next((row for row in rows if row.revision == revision), None)

    def is_quarantined(self, revision: str) -> bool:
        """Whether a revision is in quarantine."""
        return any(row.revision == revision for row in self.status().quarantine)

    # Waits.

    def logs(self) -> str:
        """The end of all logs, for a failed wait."""
        return ""

    def wait(self, ask: Callable[[], T | None], what: str, limit: float = LIMIT_SECONDS) -> T:
        """Wait until an answer is true; a process that does not answer now is asked again.

        Raises:
            AssertionError: it is not true in time.
        """

        def asked() -> T | None:
            try:
                return ask()
            except (grpc.RpcError, psutil.Error, OSError):
                return None

        try:
            return cast("T", eventually(asked, limit, what, PAUSE_SECONDS))  # None is never returned
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.logs()}") from None

    def wait_committed(self, revision: str, limit: float = LIMIT_SECONDS) -> None:
        """Wait until a revision is committed and serves."""

        def is_committed() -> bool:
            row = self.committed()
            return row is not None and row.revision == revision and self.serving() == revision

        self.wait(is_committed, f"{revision} is committed and serves", limit)

    def wait_stage(self, *stages: str, limit: float = LIMIT_SECONDS) -> None:
        """Wait for one of some stages, by their names."""
        numbers = {pb.UpdateStage.Value(f"UPDATE_STAGE_{stage}") for stage in stages}
        self.wait(lambda: self.status().stage in numbers, f"stage {' or '.join(stages)}", limit)

    def wait_rest(self, stage: str = "IDLE", limit: float = LIMIT_SECONDS) -> None:
        """Wait until the updater rests in a stage and nothing is on trial."""
        self.wait_stage(stage, limit=limit)
        self.wait(lambda: not self.control.status().HasField("trial"), "no trial is left", limit)

    def wait_alone(self, limit: float = LIMIT_SECONDS) -> None:
        """Wait until the updater rests and only the serving bundle is loaded."""
        self.wait_rest(limit=limit)

        def is_alone() -> bool:
            state = self.control.status()
            return state.ready and sum(bool(slot.load_id) for slot in state.slots) == 1

        self.wait(is_alone, "the serving bundle is loaded alone", limit)
