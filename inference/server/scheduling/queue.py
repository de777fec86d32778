"""What waits for one slot's runner, in order. Pure: time is an argument."""

from collections import deque
from dataclasses import dataclass

from inference.server.request import Ticket


@dataclass(frozen=True, slots=True)
class BatchBudget:
    """How much one frame to a runner may carry."""

    max_items: int  # requests
    max_rows: int  # device rows
    max_bytes: int  # of payload; one request may be larger


class WaitingQueue:
    """First come, first served, except that a suspect is served by itself."""

    def __init__(self) -> None:
        self._tickets: deque[Ticket] = deque()

    def __len__(self) -> int:
        return len(self._tickets)

    def put(self, ticket: Ticket) -> None:
        """Add a ticket at the end."""
        self._tickets.append(ticket)

    def take_all(self) -> list[Ticket]:
        """Empty the queue; settled tickets are left out."""
        tickets = [ticket for ticket in self._tickets if not ticket.is_settled]
        self._tickets.clear()
        return tickets

    def next_is_alone(self) -> bool:
        """Whether the next ticket must not share the runner."""
        self._drop_settled()
        return bool(self._tickets) and self._tickets[0].alone

    def take(self, budget: BatchBudget) -> list[Ticket]:
        """Take the next batch: everything that waits, up to the budget; at least one ticket if any waits.

        Tickets that nobody waits for any more are dropped on the way.
        """
        batch: list[Ticket] = []
        rows = size = 0
        while self._tickets:
            ticket = self._tickets[0]
            if ticket.is_settled:
                self._tickets.popleft()
                continue
            payload = ticket.payload
            rows += payload.rows
            size += payload.size_bytes
            is_over = rows > budget.max_rows or size > budget.max_bytes or len(batch) >= budget.max_items
            if batch and (is_over or ticket.alone):
                break
            batch.append(self._tickets.popleft())
            if ticket.alone:
                break
        return batch

    def _drop_settled(self) -> None:
        while self._tickets and self._tickets[0].is_settled:
            self._tickets.popleft()
