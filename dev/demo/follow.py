"""The updater as its operator sees it: `updates.v1` over its own socket."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from common.paths import UPDATES_SOCKET, run_folder
from dev.bench.stack import MODEL
from hotslot.updates.v1 import updates_pb2, updates_pb2_grpc

LOOK_SECONDS = 0.04
PATIENCE_SECONDS = 300.0
Stages = list[tuple[str, float]]


class NotSo(RuntimeError):
    """Something did not come about."""


@dataclass(slots=True)
class Followed:
    """One update, from its publication to its end."""

    revision: str
    published: float  # time.perf_counter()
    stages: Stages = field(default_factory=list)  # stage and when it was first seen
    outcome: str = ""
    update_id: str = ""
    message: str = ""
    ended: float = 0.0

    def began(self, stage: str) -> float | None:
        """When a stage was first seen."""
        return next((at for name, at in self.stages if name == stage), None)


class Operator:
    """Asks the updater; while it is away, waits for it."""

    def __init__(self, state: Path) -> None:
        self._channel = grpc.aio.insecure_channel(
            f"unix:{run_folder(state) / UPDATES_SOCKET}",
            options=[("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 500)],
        )
        self._stub = updates_pb2_grpc.UpdatesServiceStub(self._channel)

    async def status(self) -> updates_pb2.ModelUpdates:
        """Where updates stand."""
        request = updates_pb2.GetStatusRequest(model=MODEL)
        return (await self._stub.GetStatus(request, timeout=10, wait_for_ready=True)).models[0]

    async def ready(self, revision: str) -> None:
        """Wait until the updater runs and knows what is committed."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:
                try:
                    if (await self.status()).committed_revision == revision:
                        return
                except (grpc.aio.AioRpcError, IndexError):
                    pass
                await asyncio.sleep(LOOK_SECONDS)

    async def follow(self, followed: Followed, told: Callable[[str], None]) -> Followed:
        """Follow an update to its end, telling each stage as it begins.

        Raises:
            NotSo: it takes too long.
        """
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                while not await self._look(followed, told):  # noqa: ASYNC110  it tells when it is asked, not else
                    await asyncio.sleep(LOOK_SECONDS)
        except TimeoutError as error:
            raise NotSo(f"{followed.revision} came to no end; last seen: {followed.stages[-1:]}") from error
        return followed

    async def evidence(self, followed: Followed) -> updates_pb2.GetUpdateResponse:
        """All that is kept of an update."""
        return await self._stub.GetUpdate(updates_pb2.GetUpdateRequest(update_id=followed.update_id), timeout=10)

    async def rollback(self) -> None:
        """Go back to the revision that was committed before."""
        await self._stub.Rollback(updates_pb2.RollbackRequest(model=MODEL), timeout=10)

    async def resume(self) -> None:
        """Take updates again."""
        await self._stub.Resume(updates_pb2.ResumeRequest(model=MODEL), timeout=10)

    async def close(self) -> None:
        """Let go of the socket."""
        await self._channel.close()

    async def _look(self, followed: Followed, told: Callable[[str], None]) -> bool:
        try:
            seen = await self.status()
            current = seen.current if seen.HasField("current") else None
            if current is not None and current.revision == followed.revision:
                followed.update_id = current.update_id
                stage = updates_pb2.UpdateStage.Name(seen.stage).removeprefix("UPDATE_STAGE_")
                if not followed.stages or followed.stages[-1][0] != stage:
                    followed.stages.append((stage, time.perf_counter()))
                    told(stage)
                if seen.stage == updates_pb2.UPDATE_STAGE_HELD:
                    followed.outcome, followed.message = "HELD", seen.advice or current.message
            elif await self._has_ended(followed):
                followed.ended = time.perf_counter()
        except (grpc.aio.AioRpcError, IndexError):
            return False  # it was killed, or is not back yet
        return bool(followed.outcome)

    async def _has_ended(self, followed: Followed) -> bool:
        request = updates_pb2.ListHistoryRequest(model=MODEL, page_size=5)
        past = (await self._stub.ListHistory(request, timeout=10)).updates
        row = next((row for row in past if row.revision == followed.revision), None)
        if row is None or row.outcome in (
            updates_pb2.UPDATE_OUTCOME_UNSPECIFIED,
            updates_pb2.UPDATE_OUTCOME_ABANDONED,
        ):
            return False  # not begun yet, or about to begin again
        followed.outcome = updates_pb2.UpdateOutcome.Name(row.outcome).removeprefix("UPDATE_OUTCOME_")
        followed.update_id, followed.message = row.update_id, row.message
        return True
