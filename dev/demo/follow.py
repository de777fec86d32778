"""The updater's interface for operators: `updates.v1` over its own socket."""

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from common.address import unix_target
from common.paths import UPDATES_SOCKET, run_folder
from dev.harness.control import RECONNECT_OPTIONS
from dev.harness.demo_model import MODEL
from dev.harness.waiting import eventually
from hotslot.updates.v1 import updates_pb2, updates_pb2_grpc

LOOK_SECONDS = 0.04
PATIENCE_SECONDS = 300.0
Stages = list[tuple[str, float]]


@dataclass(slots=True)
class Followed:
    """One update, from its publication to its end."""

    revision: str
    published: float  # time.monotonic()
    stages: Stages = field(default_factory=list)  # stage and when it was first seen
    outcome: str = ""
    update_id: str = ""
    message: str = ""
    ended: float = 0.0

    def began(self, stage: str) -> float | None:
        """When a stage was first seen."""
        return next((at for name, at in self.stages if name == stage), None)


class Operator:
    """Calls the updater about one model; waits for it while it does not run."""

    def __init__(self, state: Path, model: str = MODEL) -> None:
        self._model = model
        self._channel = grpc.insecure_channel(
            unix_target(run_folder(state) / UPDATES_SOCKET), options=RECONNECT_OPTIONS
        )
        self._stub = updates_pb2_grpc.UpdatesServiceStub(self._channel)

    def status(self) -> updates_pb2.ModelUpdates:
        """The update state of the model."""
        request = updates_pb2.GetStatusRequest(model=self._model)
        return (self._stub.GetStatus(request, timeout=10, wait_for_ready=True)).models[0]

    def wait_ready(self, revision: str) -> None:
        """Wait until the updater runs and knows the committed revision."""

        def is_ready() -> bool:
            with contextlib.suppress(grpc.RpcError, IndexError):
                return self.status().committed_revision == revision
            return False

        eventually(is_ready, PATIENCE_SECONDS, f"the updater knows {revision}", LOOK_SECONDS)

    def follow(self, followed: Followed, told: Callable[[str], None]) -> Followed:
        """Follow an update to its end; `told` is called with each stage as it begins.

        Raises:
            AssertionError: it takes too long.
        """
        eventually(
            lambda: self._look(followed, told), PATIENCE_SECONDS, f"the end of {followed.revision}", LOOK_SECONDS
        )
        return followed

    def evidence(self, followed: Followed) -> updates_pb2.GetUpdateResponse:
        """The recorded events and evidence of an update."""
        return self._stub.GetUpdate(updates_pb2.GetUpdateRequest(update_id=followed.update_id), timeout=10)

    def rollback(self) -> None:
        """Go back to the revision that was committed before."""
        self._stub.Rollback(updates_pb2.RollbackRequest(model=self._model), timeout=10)

    def resume(self) -> None:
        """Resume updates."""
        self._stub.Resume(updates_pb2.ResumeRequest(model=self._model), timeout=10)

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()

    def _look(self, followed: Followed, told: Callable[[str], None]) -> bool:
        try:
            seen = self.status()
            current = seen.current if seen.HasField("current") else None
            if current is not None and current.revision == followed.revision:
                followed.update_id = current.update_id
                stage = updates_pb2.UpdateStage.Name(seen.stage).removeprefix("UPDATE_STAGE_")
                if not followed.stages or followed.stages[-1][0] != stage:
                    followed.stages.append((stage, time.monotonic()))
                    told(stage)
                if seen.stage == updates_pb2.UPDATE_STAGE_HELD:
                    followed.outcome, followed.message = "HELD", seen.advice or current.message
            elif self._has_ended(followed):
                followed.ended = time.monotonic()
        except (grpc.RpcError, IndexError):
            return False  # it was killed, or is not back yet
        return bool(followed.outcome)

    def _has_ended(self, followed: Followed) -> bool:
        request = updates_pb2.ListHistoryRequest(model=self._model, page_size=5)
        past = (self._stub.ListHistory(request, timeout=10)).updates
        row = next((row for row in past if row.revision == followed.revision), None)
        if row is None or row.outcome in (
            updates_pb2.UPDATE_OUTCOME_UNSPECIFIED,
            updates_pb2.UPDATE_OUTCOME_ABANDONED,
        ):
            return False  # not begun yet, or about to begin again
        followed.outcome = updates_pb2.UpdateOutcome.Name(row.outcome).removeprefix("UPDATE_OUTCOME_")
        followed.update_id, followed.message = row.update_id, row.message
        return True
