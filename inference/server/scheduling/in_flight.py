"""The requests that a runner holds, and whether it is sent a further one. Pure."""

from collections.abc import Sequence

from hotslot.runner.v1 import runner_pb2
from inference.call_cost import CallCost
from inference.server.request import PendingRequest, Priority
from inference.server.scheduling.workload import WorkInFlight

WINDOW_CALLS = 2.0  # rows sent and not computed, in device calls, at least: one is computed, one is prepared
MAX_WINDOW_CALLS = 6.0
WINDOW_GROWTH = 1.25  # after a device call that was not full, or came late, although requests waited here
WINDOW_DECAY = 0.02  # device calls, after any other call
FULL_SHARE = 0.75  # of the rows of a full call: the last item often does not fit
IDLE_SHARE = 0.05  # of a device call's time before it, for which the device had nothing to compute
MAX_IN_FLIGHT_BYTES = 48 << 20  # of payload; below the maximum frame size of 64 MiB; a single item may exceed it
PREPARE_SECONDS = 1.0  # before a device call, its rows are sent at the latest
MAX_INTERRUPTIONS = 2  # ends of runners that held a request without computing it, before it is a suspect itself


class InFlight:
    """The requests that a runner holds, until their outcomes: cancelled ones too."""

    def __init__(self) -> None:
        self._requests: dict[int, PendingRequest] = {}  # by item id
        self._cancelled: set[int] = set()  # item ids
        self._slow: set[int] = set()  # item ids whose pictures take long; their rows are not counted
        self.size_bytes = 0
        self._rows: dict[int, int] = {}  # by priority
        self._computed_rows = 0  # of items whose outcome is still to come
        self.computing_since = 0.0  # when the first item was sent, or the latest device call ended

    def __len__(self) -> int:
        return len(self._requests)

    @property
    def requests(self) -> list[PendingRequest]:
        """The requests that are not done, each once."""
        return list({request.id: request for request in self._requests.values() if not request.is_done}.values())

    @property
    def rows_left(self) -> int:
        """Rows sent and not computed."""
        return max(0, sum(self._rows.values()) - self._computed_rows)

    @property
    def slow_items(self) -> int:
        """Items whose pictures take long."""
        return len(self._slow)

    def rows_of(self, priority: Priority) -> int:
        """Rows of the items of a priority."""
        return self._rows.get(priority, 0)

    def work(self, now: float) -> WorkInFlight:
        """What is left to compute."""
        rows = self.rows_left
        return WorkInFlight(min(rows, self.rows_of(Priority.INTERACTIVE)), rows, now - self.computing_since)

    @property
    def is_alone(self) -> bool:
        """Whether the runner holds a request that must be computed alone."""
        return any(request.alone for request in self._requests.values())

    def add(self, item_id: int, request: PendingRequest) -> None:
        """Add a request that is sent as this item."""
        self._requests[item_id] = request
        self.size_bytes += request.size_bytes
        if request.decoding_seconds:
            self._slow.add(item_id)
        else:
            self._rows[request.priority] = self.rows_of(request.priority) + request.rows

    def count_computed(self, rows: int) -> None:
        """Count the rows of a device call."""
        self._computed_rows += rows

    def split(self, computing: Sequence[int]) -> tuple[list[PendingRequest], list[PendingRequest]]:
        """The requests that may have ended the runner, and the others; none that is done.

        Those in the device call that ran at the end are suspects; if none ran, all are. A request that was held by
        several runners when they ended is one too: it may have ended them in its preparation.
        """
        running = {self._requests[item_id].id for item_id in computing if item_id in self._requests}
        suspects: list[PendingRequest] = []
        others: list[PendingRequest] = []
        for request in self.requests:
            request.interruptions += 1
            is_suspect = not running or request.id in running or request.interruptions > MAX_INTERRUPTIONS
            (suspects if is_suspect else others).append(request)
        return suspects, others

    def cancel(self, request: PendingRequest) -> list[int]:
        """Mark the items of a request as cancelled; returns their ids."""
        found = [item_id for item_id, held in self._requests.items() if held is request]
        self._cancelled.update(found)
        return found

    def is_cancelled(self, item_id: int) -> bool:
        """Whether an item was cancelled: its failure concerns nobody, its request may be in another slot by now."""
        return item_id in self._cancelled

    def remove(self, item_id: int, computed_rows: int) -> PendingRequest | None:
        """Remove and return the request of an outcome; None if it is unknown."""
        request = self._requests.pop(item_id, None)
        if request is not None:
            self.size_bytes -= request.size_bytes
            if item_id in self._slow:
                self._slow.discard(item_id)
            else:
                self._rows[request.priority] -= request.rows
            self._computed_rows -= computed_rows
            self._cancelled.discard(item_id)
        return request


def adapt_window(window_calls: float, call: runner_pb2.DeviceCall, call_rows: int, *, is_backlogged: bool) -> float:
    """The window, in device calls, after a device call.

    While requests wait in the queue, calls should be full and follow each other without a pause. If they do not,
    sending and preparing takes longer than the window lasts.

    Args:
        window_calls: the window before.
        call: has ended.
        call_rows: most rows of a call.
        is_backlogged: whether requests waited in the queue.
    """
    is_late = call.idle_seconds > IDLE_SHARE * call.computed_seconds
    if is_backlogged and (is_late or call.rows < FULL_SHARE * call_rows):
        return min(MAX_WINDOW_CALLS, window_calls * WINDOW_GROWTH)
    return max(WINDOW_CALLS, window_calls - WINDOW_DECAY)


def limit_window(window_calls: float, work: WorkInFlight, cost: CallCost, call_rows: int) -> float:
    """The window, in device calls: while a long call runs it is that call, until the next one is to be prepared.

    Args:
        window_calls: the window that keeps the device busy with calls of any length.
        work: what the runner holds.
        cost: of a device call.
        call_rows: most rows of a call.
    """
    left = cost.expected(min(work.rows, call_rows)) - work.elapsed_seconds
    return 1.0 if left > PREPARE_SECONDS and window_calls <= WINDOW_CALLS else window_calls


def may_send(request: PendingRequest, held: InFlight, call_rows: int, window_calls: float = WINDOW_CALLS) -> bool:
    """Whether the next request of the queue is sent now.

    A window of two device calls keeps the device busy while further items are prepared, or a larger one if that takes
    longer. What is sent beyond that could no longer be overtaken by a request whose turn comes first. An interactive
    request is sent although bulk requests fill the window, so that it waits for the running device call only.
    """
    if not held:
        return True
    if request.alone or held.is_alone or held.size_bytes + request.size_bytes > MAX_IN_FLIGHT_BYTES:
        return False
    if held.rows_left < window_calls * call_rows:
        return True
    return request.priority is Priority.INTERACTIVE and held.rows_of(Priority.INTERACTIVE) < call_rows
