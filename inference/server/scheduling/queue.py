"""The queue of one runner, first in, first out. Pure."""

from collections import deque
from dataclasses import dataclass

from inference.server.request import PendingRequest


@dataclass(frozen=True, slots=True)
class BatchBudget:
    """Limits of one batch."""

    max_items: int  # requests
    max_rows: int  # device rows
    max_bytes: int  # of payload; a single request may exceed it


@dataclass(frozen=True, slots=True)
class QueueDepth:
    """What waits."""

    requests: int
    rows: int


class WaitingQueue:
    """First in, first out; a suspect request gets a batch of its own."""

    def __init__(self) -> None:
        self._requests: deque[PendingRequest] = deque()

    def __len__(self) -> int:
        return len(self._requests)

    def depth(self) -> QueueDepth:
        """The requests that wait and are not done; from any thread."""
        waiting = [request for request in list(self._requests) if not request.is_done]
        return QueueDepth(len(waiting), sum(request.rows for request in waiting))

    def put(self, request: PendingRequest) -> None:
        """Append a request."""
        self._requests.append(request)

    def take_all(self) -> list[PendingRequest]:
        """Empty the queue and return the requests that are not done."""
        requests = [request for request in self._requests if not request.is_done]
        self._requests.clear()
        return requests

    def next_is_alone(self) -> bool:
        """Whether the next request must be computed alone."""
        self._drop_done()
        return bool(self._requests) and self._requests[0].alone

    def take(self, budget: BatchBudget) -> list[PendingRequest]:
        """Take the next batch: the requests at the front that fit the budget, and at least one if any waits.

        Requests that are done are dropped.
        """
        batch: list[PendingRequest] = []
        rows = size = 0
        while self._requests:
            request = self._requests[0]
            if request.is_done:
                self._requests.popleft()
                continue
            rows += request.rows
            size += request.size_bytes
            is_over = rows > budget.max_rows or size > budget.max_bytes or len(batch) >= budget.max_items
            if batch and (is_over or request.alone):
                break
            batch.append(self._requests.popleft())
            if request.alone:
                break
        return batch

    def _drop_done(self) -> None:
        while self._requests and self._requests[0].is_done:
            self._requests.popleft()
