"""How long a new request would take: what is in flight, what is before it in the queue, its own rows. Pure."""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import TypeVar

from inference.call_cost import CallCost
from inference.server.request import Flow, Priority
from inference.server.scheduling.fair_queue import FairQueue

T = TypeVar("T", bound=Hashable)


@dataclass(frozen=True, slots=True)
class WorkInFlight:
    """Rows that were sent to the runner and are not computed."""

    interactive_rows: int
    rows: int  # of both priorities
    elapsed_seconds: float  # of the present device call


@dataclass(frozen=True, slots=True)
class Estimate:
    """Expected seconds of a request, by part; all are 0 if no call was measured yet."""

    in_flight: float = 0.0  # until the runner can compute it, were it sent now
    queued: float = 0.0  # of the device work before it in the queue, in fair order
    own: float = 0.0  # of its own rows, at the lowest cost measured lately
    shared_call: float = 0.0  # from the begin of its first device call, which it shares with others, to its answer

    @property
    def wait(self) -> float:
        """Until its first device call begins."""
        return self.in_flight + self.queued

    @property
    def total(self) -> float:
        """Until it is answered."""
        return self.wait + max(self.own, self.shared_call)


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
        in_flight=seconds_in_flight(work, flow.priority, cost, call_rows),
        queued=cost.expected_work(queue.rows_before(flow, rows), call_rows),
        own=cost.at_best(rows),
        shared_call=max(cost.expected_work(rows, call_rows), cost.expected(min(call_rows, rows + others))),
    )


def seconds_in_flight(work: WorkInFlight, priority: Priority, cost: CallCost, call_rows: int) -> float:
    """Expected seconds until the runner can compute further rows of a priority.

    An interactive request waits for interactive rows and for the call that runs; a bulk request waits for all.
    """
    rows = work.rows
    if priority is Priority.INTERACTIVE:
        rows = min(rows, work.interactive_rows + call_rows)
    elapsed = min(work.elapsed_seconds, cost.expected(min(work.rows, call_rows)))
    return max(0.0, cost.expected_work(rows, call_rows) - elapsed)


def is_too_late(
    work: WorkInFlight, priority: Priority, rows: int, cost: CallCost, call_rows: int, seconds_left: float
) -> bool:
    """Whether a request can no longer be answered in time, even at the lowest cost measured lately."""
    return cost.best_share * seconds_in_flight(work, priority, cost, call_rows) + cost.at_best(rows) > seconds_left
