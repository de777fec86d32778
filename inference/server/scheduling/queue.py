"""The queue of one runner, first in, first out. Pure."""

from collections import deque
from dataclasses import dataclass

from inference.server.request import PendingRequest


@dataclass(frozen=True, slots=True)
class QueueDepth:
    """What waits."""

    requests: int
    rows: int


class WaitingQueue:
    """First in, first out. Requests that are done are dropped when their turn comes."""

    def __init__(self) -> None:
        self._requests: deque[PendingRequest] = deque()

    def __len__(self) -> int:
        return len(self._requests)

    def depth(self) -> QueueDepth:
        """The requests that wait and are not done; from any thread."""
        waiting = [request for request in list(self._requests) if not request.is_done]
        return QueueDepth(len(waiting), sum(request.rows for request in waiting))

    def put(self, request: PendingRequest) -> None:
        """Add a request."""
        self._requests.append(request)

    def peek(self) -> PendingRequest | None:
        """The request that `take` would return, if any."""
        while self._requests and self._requests[0].is_done:
            self._requests.popleft()
        return self._requests[0] if self._requests else None

    def take(self) -> PendingRequest | None:
        """Remove and return the next request, if any."""
        request = self.peek()
        if request is not None:
            self._requests.popleft()
        return request

    def remove(self, request: PendingRequest) -> None:
        """Forget a request whose caller is gone, if it is in the queue."""
        if request in self._requests:
            self._requests.remove(request)

    def take_all(self) -> list[PendingRequest]:
        """Empty the queue and return the requests that are not done."""
        requests = [request for request in self._requests if not request.is_done]
        self._requests.clear()
        return requests
