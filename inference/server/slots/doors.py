"""What a slot asks of a runner."""

from collections.abc import Sequence
from typing import Protocol

from hotslot.runner.v1 import runner_pb2


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
