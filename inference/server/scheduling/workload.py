"""The rows in flight, and how long a new request waits for them, at measured cost. Pure."""

from dataclasses import dataclass

from inference.call_cost import CallCost
from inference.server.scheduling.callers import Priority


@dataclass(slots=True)
class RowsInFlight:
    """Rows that were sent to the runner and are not computed."""

    interactive: int = 0
    bulk: int = 0
    computing_since: float = 0.0  # when the present device call began, about: the end of the one before

    @property
    def total(self) -> int:
        """Rows of both priorities."""
        return self.interactive + self.bulk

    def add(self, priority: Priority, rows: int, now: float) -> None:
        """Count rows that were sent."""
        if self.total == 0:
            self.computing_since = now
        if priority is Priority.INTERACTIVE:
            self.interactive += rows
        else:
            self.bulk += rows

    def remove(self, priority: Priority, rows: int) -> None:
        """Subtract rows that were computed, or will not be."""
        if priority is Priority.INTERACTIVE:
            self.interactive -= rows
        else:
            self.bulk -= rows


def seconds_in_flight(flight: RowsInFlight, priority: Priority, cost: CallCost, call_rows: int, now: float) -> float:
    """Expected seconds until the runner can compute further rows of a priority.

    An interactive request waits for interactive rows and for the call that runs; a bulk request waits for all.
    """
    rows = flight.total
    if rows == 0:
        return 0.0
    if priority is Priority.INTERACTIVE:
        rows = flight.interactive + min(flight.bulk, call_rows)
    elapsed = cost.expected(min(flight.total, call_rows)) - running_seconds(flight, cost, call_rows, now)
    return max(0.0, cost.expected_work(rows, call_rows) - elapsed)


def running_seconds(flight: RowsInFlight, cost: CallCost, call_rows: int, now: float) -> float:
    """Expected seconds until the present device call ends."""
    return max(0.0, cost.expected(min(flight.total, call_rows)) - (now - flight.computing_since))


def shared_call_seconds(rows: int, other_rows: int, cost: CallCost, call_rows: int) -> float:
    """Expected seconds from the begin of the call in which a request begins to its answer, if others share the call.

    Args:
        rows: of the request.
        other_rows: that wait or are in flight.
        cost: of a call.
        call_rows: most rows of a call.
    """
    return max(cost.expected_work(rows, call_rows), cost.expected(min(call_rows, rows + other_rows)))
