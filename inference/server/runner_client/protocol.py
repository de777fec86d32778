"""The words in which the server speaks of a runner: how it is started, whom it tells, how it ended."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from hotslot.runner.v1 import runner_pb2
from inference.server.runner_client.liveness import Patience


@dataclass(frozen=True, slots=True)
class RunnerSpec:
    """How runners are started and how long they are waited for."""

    engine: str  # whose imports are done before Hello; "" for none
    extra_engines: Mapping[str, str] = field(default_factory=dict)  # name to "module:function", from settings only
    device_policy: str = "auto"  # "auto", "cpu", "cuda", "cuda:N": which devices Hello may name
    heartbeat_seconds: float = 0.1
    silence_seconds: float = 2.0  # no heartbeat for so long: the runner is hung
    start_seconds: float = 60.0  # until Hello
    load_stall_seconds: float = 60.0  # of a load without progress
    retire_seconds: float = 10.0  # polite end, then kill
    oom_score_adj: int = 0  # added to the inherited value until the runner serves
    prepare_threads: int = 2

    @property
    def patience(self) -> Patience:
        """The limits that a runner is watched by."""
        return Patience(self.start_seconds, self.silence_seconds, self.load_stall_seconds)


class EndReason(StrEnum):
    """Why a runner is gone."""

    RETIRED = "retired"  # asked to, politely
    DIED = "died"  # by itself: a crash, an exit, the system's killer
    SILENT = "silent"  # no heartbeat
    GARBAGE = "garbage"  # what it said cannot be understood
    START_TIMEOUT = "start_timeout"
    LOAD_STALLED = "load_stalled"
    KILLED = "killed"  # asked for by `kill`


@dataclass(frozen=True, slots=True)
class RunnerEnding:
    """How a runner ended."""

    reason: EndReason
    detail: str  # for people and logs: exit code, signal, what kill was told
    exit_code: int | None  # negative: the signal


class RunnerListener(Protocol):
    """Who is told what a runner says.

    All on the loop's thread, from the loop itself and never from inside a call to the process.
    """

    def on_hello(self, hello: runner_pb2.Hello) -> None:
        """Its imports are done."""
        ...

    def on_load_progress(self, progress: runner_pb2.LoadProgress) -> None:
        """A load goes on."""
        ...

    def on_load_outcome(self, outcome: runner_pb2.LoadOutcome) -> None:
        """A load has ended, well or not."""
        ...

    def on_batch_reply(self, reply: runner_pb2.BatchReply) -> None:
        """Items have their outcomes."""
        ...

    def on_heartbeat(self, heartbeat: runner_pb2.Heartbeat) -> None:
        """It is there."""
        ...

    def on_end(self, ending: RunnerEnding) -> None:
        """It is gone. Exactly once, after everything it had said; nothing follows."""
        ...


class RunnerHandle(Protocol):
    """What a slot needs of a runner process."""

    @property
    def pid(self) -> int:
        """Process id."""
        ...

    @property
    def resident_bytes(self) -> int:
        """Resident memory; 0 if it cannot be read."""
        ...

    def spawn(self) -> None:
        """Start the process."""
        ...

    def load(self, request: runner_pb2.LoadBundle) -> None:
        """Load a bundle."""
        ...

    def send_batch(
        self, batch: runner_pb2.ComputeBatch, items: Sequence[tuple[runner_pb2.BatchItem, bytes]] = ()
    ) -> None:
        """Compute items: the batch's own, and such whose picture comes apart."""
        ...

    def cancel(self, item_ids: Sequence[int]) -> None:
        """Drop items."""
        ...

    def set_serving(self, serving: bool) -> None:  # noqa: FBT001  the runner's own interface
        """Say whether callers wait for it."""
        ...

    def retire(self) -> None:
        """End politely."""
        ...

    def kill(self, detail: str) -> None:
        """End at once."""
        ...

    async def wait_ended(self) -> None:
        """Wait until the process is gone."""
        ...
