"""What a slot asks of a runner, and whom it tells."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from hotslot.runner.v1 import runner_pb2
from inference.front.batching.dispatcher import Computed
from inference.front.request import Failure, Ticket
from inference.front.slots.runner_terms import RunnerEnding

if TYPE_CHECKING:
    from inference.front.slots.slot import Slot


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


class SlotOwner(Protocol):
    """Who is told what happens in a slot; decides what follows."""

    def slot_changed(self, slot: "Slot", change: str, detail: str = "") -> None:
        """For the log and the metrics."""
        ...

    def slot_ready(self, slot: "Slot") -> None:
        """Its process stands, and has said which devices there are."""
        ...

    def slot_started(self, slot: "Slot") -> None:
        """A process was started for it."""
        ...

    def slot_loaded(self, slot: "Slot") -> None:
        """Its load answers from now on."""
        ...

    def slot_refused(self, slot: "Slot", outcome: runner_pb2.LoadOutcome) -> None:
        """Its load failed; the process is without use."""
        ...

    def slot_ended(self, slot: "Slot", ending: RunnerEnding, suspects: list[Ticket], waiting: list[Ticket]) -> None:
        """Its process is gone."""
        ...

    def answered(self, slot: "Slot", ticket: Ticket, computed: Computed) -> None:
        """A request has its answer."""
        ...

    def failed(self, slot: "Slot", ticket: Ticket, failure: Failure) -> None:
        """A request has none."""
        ...

    def batch_begun(self, slot: "Slot", tickets: Sequence[Ticket]) -> None:
        """A batch is in the runner's hands."""
        ...

    def batch_done(self, slot: "Slot", reply: runner_pb2.BatchReply) -> None:
        """A batch has left the runner's hands."""
        ...
