"""The interface of a runner process: its events and how it ended."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from hotslot.runner.v1 import runner_pb2
from inference.wire import Picture


class EndReason(StrEnum):
    """Why a runner ended."""

    RETIRED = "retired"  # by `retire`
    DIED = "died"  # unexpectedly: a crash, an exit, the OOM killer
    SILENT = "silent"  # no heartbeat
    GARBAGE = "garbage"  # it sent invalid data
    START_TIMEOUT = "start_timeout"
    LOAD_STALLED = "load_stalled"
    KILLED = "killed"  # by `kill`


@dataclass(frozen=True, slots=True)
class RunnerEnding:
    """How a runner ended."""

    reason: EndReason
    detail: str  # for logs: exit code, signal, or the argument of `kill`
    computing: tuple[int, ...] = ()  # ids of the items in the device call that ran at the end


class RunnerListener(Protocol):
    """Receives the events of a runner.

    Called on the loop's thread, from the loop itself and never from inside a call to the process.
    """

    def on_hello(self, hello: runner_pb2.Hello) -> None:
        """The process can load; its imports are done."""
        ...

    def on_load_progress(self, progress: runner_pb2.LoadProgress) -> None:
        """Progress of a load."""
        ...

    def on_load_outcome(self, outcome: runner_pb2.LoadOutcome) -> None:
        """A load has succeeded or failed."""
        ...

    def on_items_reply(self, reply: runner_pb2.ItemsReply) -> None:
        """Outcomes of items, and device calls that have ended."""
        ...

    def on_heartbeat(self, heartbeat: runner_pb2.Heartbeat) -> None:
        """A heartbeat."""
        ...

    def on_end(self, ending: RunnerEnding) -> None:
        """The process has ended, or was killed and does not end. Called exactly once, after all other events."""
        ...


class RunnerHandle(Protocol):
    """The part of a runner process that a slot uses."""

    @property
    def pid(self) -> int:
        """Process id."""
        ...

    @property
    def resident_bytes(self) -> int:
        """Resident memory; 0 if it cannot be read."""
        ...

    @property
    def is_silent(self) -> bool:
        """Whether half of the time without a heartbeat has passed after which the process is killed."""
        ...

    def spawn(self) -> None:
        """Start the process."""
        ...

    def load(self, request: runner_pb2.LoadBundle) -> None:
        """Load a bundle."""
        ...

    def send_items(self, items: Sequence[tuple[runner_pb2.Item, Picture]]) -> None:
        """Compute items, each with its picture."""
        ...

    def cancel(self, item_ids: Sequence[int]) -> None:
        """Cancel items."""
        ...

    def set_serving(self, serving: bool) -> None:  # noqa: FBT001  the runner's own interface
        """Set whether requests may be routed to it: the process gets full priority."""
        ...

    def yield_cpus(self) -> None:
        """Compute only when no other process wants the CPUs, until `set_serving`: it is given copies only."""
        ...

    def retire(self) -> None:
        """End the process after it has answered what was sent."""
        ...

    def kill(self, detail: str, *, is_retiring: bool = False) -> None:
        """Kill the process; one that retires has more time to free its memory."""
        ...

    async def wait_ended(self) -> None:
        """Wait until `on_end` was called: the process has ended, or does not and keeps its memory."""
        ...
