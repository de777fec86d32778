"""What waits for one slot's runner, in order. Pure: time is an argument."""

from collections import deque
from dataclasses import dataclass

from inference.server.request import PendingRequest


@dataclass(frozen=True, slots=True)
class BatchBudget:
    """How much one frame to a runner may carry."""

    max_items: int  # requests
    max_rows: int  # device rows
    max_bytes: int  # of payload; one request may be larger


class WaitingQueue:
    """First come, first served, except that a suspect is served by itself."""

    def __init__(self) -> None:
        self._requests: deque[PendingRequest] = deque()

    def __len__(self) -> int:
        return len(self._requests)

    def put(self, request: PendingRequest) -> None:
        """Add a request at the end."""
        self._requests.append(request)

    def take_all(self) -> list[PendingRequest]:
        """Empty the queue; settled requests are left out."""
        requests = [request for request in self._requests if not request.is_done]
        self._requests.clear()
        return requests

    def next_is_alone(self) -> bool:
        """Whether the next request must not share the runner."""
        self._drop_settled()
        return bool(self._requests) and self._requests[0].alone

    def take(self, budget: BatchBudget) -> list[PendingRequest]:
        """Take the next batch: everything that waits, up to the budget; at least one request if any waits.

        Tickets that nobody waits for any more are dropped on the way.
        """
        batch: list[PendingRequest] = []
        rows = size = 0
        while self._requests:
            request = self._requests[0]
            if request.is_done:
                self._requests.popleft()
                continue
            payload = request.payload
            rows += payload.rows
            size += payload.size_bytes
            is_over = rows > budget.max_rows or size > budget.max_bytes or len(batch) >= budget.max_items
            if batch and (is_over or request.alone):
                break
            batch.append(self._requests.popleft())
            if request.alone:
                break
        return batch

    def _drop_settled(self) -> None:
        while self._requests and self._requests[0].is_done:
            self._requests.popleft()
