"""What a runner holds, whether it is sent a further request, and how long a new one would take. Pure."""

from collections.abc import Hashable, Sequence
from typing import TypeVar

from common.records import record
from hotslot.runner.v1 import runner_pb2
from inference.call_cost import CallCost
from inference.server.request import Flow, InputId, PendingRequest, Priority
from inference.server.scheduling.fair_queue import FairQueue

T = TypeVar("T", bound=Hashable)

WINDOW_CALLS = 2.0  # rows sent and not computed, in device calls, at least: one is computed, one is prepared
MAX_WINDOW_CALLS = 6.0
WINDOW_GROWTH = 1.25  # after a device call that was not full, or came late, although requests waited here
WINDOW_DECAY = 0.02  # device calls, after any other call
FULL_SHARE = 0.75  # of the rows of a full call: the last item often does not fit
IDLE_SHARE = 0.05  # of a device call's time before it, for which the device had nothing to compute
MAX_IN_FLIGHT_BYTES = 48 << 20  # of payload; below the maximum frame size of 64 MiB; a single item may exceed it
PREPARE_SECONDS = 1.0  # before a device call, its rows are sent at the latest
MAX_INTERRUPTIONS = 2  # ends of runners that held a request without computing it, before it is a suspect itself


@record
class WorkInFlight:
    """Rows that were sent to the runner and are not computed."""

    interactive_rows: int
    rows: int  # of both priorities
    elapsed_seconds: float  # of the present device call


class InFlight:
    """The requests that a runner holds, until their outcomes: cancelled ones too."""

    def __init__(self) -> None:
        self.items: dict[int, PendingRequest] = {}  # by item id; empty if it holds nothing
        self._cancelled: set[int] = set()  # item ids
        self._slow: set[int] = set()  # item ids whose pictures take long; their rows are not counted
        self._alone: set[int] = set()  # item ids that nothing else must be held beside
        self.copies: set[int] = set()  # item ids that no caller waits for
        self._abandoned: dict[int, InputId] = {}  # by item id: inputs of requests that are done, and still computed
        self.size_bytes = 0
        self._rows = [0, 0]  # by priority
        self._computed_rows = 0  # of items whose outcome is still to come
        self.computing_since = 0.0  # when the first item was sent, or the latest device call ended

    def __len__(self) -> int:
        return len(self.items)

    @property
    def requests(self) -> list[PendingRequest]:
        """The requests that are not done, each once."""
        return list({request.id: request for request in self.items.values() if not request.is_done}.values())

    @property
    def rows_left(self) -> int:
        """Rows sent and not computed."""
        return max(0, sum(self._rows) - self._computed_rows)

    @property
    def slow_items(self) -> int:
        """Items whose pictures take long."""
        return len(self._slow)

    @property
    def has_callers(self) -> bool:
        """Whether it holds anything but copies."""
        return len(self.items) > len(self.copies)

    def rows_of(self, priority: Priority) -> int:
        """Rows of the items of a priority."""
        return self._rows[priority]

    def work(self, now: float) -> WorkInFlight:
        """The work that is left to compute."""
        interactive, bulk = self._rows
        rows = max(0, interactive + bulk - self._computed_rows)
        return WorkInFlight(min(rows, interactive), rows, now - self.computing_since)

    @property
    def is_alone(self) -> bool:
        """Whether the runner holds a request that must be computed alone."""
        return bool(self._alone)

    def add(self, item_id: int, request: PendingRequest) -> None:
        """Add a request that is sent as this item."""
        self.items[item_id] = request
        self.size_bytes += request.size_bytes
        if request.alone:
            self._alone.add(item_id)
        if request.is_copy:
            self.copies.add(item_id)
        if request.decoding_seconds:
            self._slow.add(item_id)
        else:
            self._rows[request.priority] += request.rows

    def count_computed(self, rows: int) -> None:
        """Count the rows of a device call."""
        self._computed_rows += rows

    def split(self, computing: Sequence[int]) -> tuple[list[PendingRequest], list[PendingRequest]]:
        """The requests that may have ended the runner, and the others; none that is done.

        Those in the device call that ran at the end are suspects; if none ran, all are. A request that was held by
        several runners when they ended is one too: it may have ended them in its preparation.
        """
        running = {self.items[item_id].id for item_id in computing if item_id in self.items}
        suspects: list[PendingRequest] = []
        others: list[PendingRequest] = []
        for request in self.requests:
            request.interruptions += 1
            is_suspect = not running or request.id in running or request.interruptions > MAX_INTERRUPTIONS
            (suspects if is_suspect else others).append(request)
        return suspects, others

    def abandon(self, request: PendingRequest) -> None:
        """Remember the input of a request that is done although the runner holds it: it may end the runner yet."""
        held = [item_id for item_id, one in self.items.items() if one is request]
        if held:
            self._abandoned.update(dict.fromkeys(held, request.payload.identify()))

    def find_abandoned(self, computing: Sequence[int]) -> list[InputId]:
        """The inputs in the device call that ran at the end whose requests were done before."""
        return [self._abandoned[item_id] for item_id in computing if item_id in self._abandoned]

    def cancel(self, request: PendingRequest) -> list[int]:
        """Mark the items of a request as cancelled; returns the ids of those that were not."""
        found = [item_id for item_id, held in self.items.items() if held is request and item_id not in self._cancelled]
        self._cancelled.update(found)
        return found

    def is_cancelled(self, item_id: int) -> bool:
        """Whether an item was cancelled: its failure concerns nobody, its request may be in another slot by now."""
        return item_id in self._cancelled

    def remove(self, item_id: int, computed_rows: int) -> PendingRequest | None:
        """Remove and return the request of an outcome; None if it is unknown."""
        request = self.items.pop(item_id, None)
        if request is not None:
            self.size_bytes -= request.size_bytes
            self._alone.discard(item_id)
            self.copies.discard(item_id)
            self._abandoned.pop(item_id, None)
            if item_id in self._slow:
                self._slow.discard(item_id)
            else:
                self._rows[request.priority] -= request.rows
            self._computed_rows -= computed_rows
            self._cancelled.discard(item_id)
        return request


class SlowPictures:
    """Requests whose pictures take long to decode: they wait apart, in fair order, and keep no other waiting.

    A runner that is sent such a picture without notice says what it takes and drops it. It is sent again when the
    runner holds fewer than it can decode at once; it does not count in the window of the others.
    """

    def __init__(self, interactive_share: float) -> None:
        self.queue: FairQueue[PendingRequest] = FairQueue(interactive_share)
        self.places = 1  # such items that the runner takes at once, as it says

    def postpone(self, request: PendingRequest, seconds: float, places: int) -> None:
        """Let a request wait until the runner has a place for it.

        Args:
            request: refused by the runner for now.
            seconds: estimated decoding time.
            places: concurrent slow decodes that the runner allows.
        """
        request.decoding_seconds = seconds
        self.places = max(1, places)
        self.put(request)

    def put(self, request: PendingRequest) -> None:
        """Append a request of which a runner has said what it takes."""
        self.queue.put(request, request.rows, request.flow)

    def choose(self, held: InFlight) -> PendingRequest | None:
        """The request whose turn it is, which stays in the queue; None if there is none or no place.

        One that must be computed alone is returned although the runner holds others: none is sent before it, or the
        runner would always hold some (see `must_wait`).

        Args:
            held: what the runner holds.
        """
        request = self.queue.peek()
        if request is None or not held or request.alone:
            return request
        if held.is_alone or held.slow_items >= self.places:
            return None
        return request if held.size_bytes + request.size_bytes <= MAX_IN_FLIGHT_BYTES else None


def must_wait(request: PendingRequest, held: InFlight) -> bool:
    """Whether a request must be computed alone, and the runner still holds others."""
    return request.alone and bool(held)


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
    request is sent although bulk requests fill the window, so that it waits for the running device call only, and for
    interactive ones before it.
    """
    if not held.items:
        return True
    if request.alone or held.is_alone or held.size_bytes + request.size_bytes > MAX_IN_FLIGHT_BYTES:
        return False
    if held.rows_left < window_calls * call_rows:
        return True
    return request.priority is Priority.INTERACTIVE and held.rows_of(Priority.INTERACTIVE) < WINDOW_CALLS * call_rows


def may_send_copy(copy: PendingRequest, held: InFlight) -> bool:
    """Whether the next copy is sent now: beside other copies only, with which it fits into one frame."""
    return not held or (not held.has_callers and held.size_bytes + copy.size_bytes <= MAX_IN_FLIGHT_BYTES)


@record
class Estimate:
    """Expected seconds of a request, by part; all are 0 if no call was measured yet."""

    in_flight: float = 0.0  # until the runner can compute it, were it sent now
    queued: float = 0.0  # of the device work before it in the queue, in fair order
    own: float = 0.0  # of its own rows, at the lowest cost measured lately
    shared_call: float = 0.0  # from the begin of its first device call, which it shares with others, to its answer
    is_first: bool = False  # nothing else of its flow waits

    @property
    def wait(self) -> float:
        """Until its first device call begins."""
        return self.in_flight + self.queued

    @property
    def total(self) -> float:
        """Until it is answered."""
        return self.in_flight + self.queued + max(self.own, self.shared_call)


def estimate_request(
    queue: FairQueue[T], work: WorkInFlight, flow: Flow, rows: int, cost: CallCost, call_rows: int
) -> Estimate:
    """The expected seconds of a new request of `rows` rows.

    Args:
        queue: what waits.
        work: what the runner holds.
        flow: of the request.
        rows: of the request.
        cost: of a device call.
        call_rows: most rows of a device call.
    """
    others = work.rows + queue.rows
    return Estimate(
        in_flight=seconds_in_flight(work, flow.priority, cost, call_rows) if work.rows else 0.0,
        queued=cost.expected_work(queue.rows_before(flow, rows), call_rows) if queue.entries else 0.0,
        own=cost.at_best(rows),
        is_first=not queue.entries or not queue.has_waiting(flow),
        shared_call=max(cost.expected_work(rows, call_rows), cost.expected(min(call_rows, rows + others))),
    )


def seconds_in_flight(work: WorkInFlight, priority: Priority, cost: CallCost, call_rows: int) -> float:
    """Expected seconds until the runner can compute further rows of a priority.

    An interactive request waits for interactive rows and for the call that runs; a bulk request waits for all.
    """
    rows = work.rows
    if not rows:
        return 0.0
    if priority is Priority.INTERACTIVE:
        rows = min(rows, work.interactive_rows + call_rows)
    elapsed = min(work.elapsed_seconds, cost.expected(min(work.rows, call_rows)))
    return max(0.0, cost.expected_work(rows, call_rows) - elapsed)


def is_too_late(
    work: WorkInFlight, priority: Priority, rows: int, cost: CallCost, call_rows: int, seconds_left: float
) -> bool:
    """Whether a request can no longer be answered in time, even at the lowest cost measured lately."""
    wait = cost.best_share * seconds_in_flight(work, priority, cost, call_rows) if work.rows else 0.0
    return wait + cost.at_best(rows) > seconds_left
