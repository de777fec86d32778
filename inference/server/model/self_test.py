"""An item of our own that goes the real way: after a load, and when no good traffic has come for a while."""

from collections.abc import Callable

from inference.server.model.dependencies import ManagerKit
from inference.server.model.roles import Roles
from inference.server.model.slot import Slot
from inference.server.request import Payload, Ticket

PAUSE_SECONDS = 1.0
LIMIT_SECONDS = 10.0  # at least

AskSlot = Callable[[Slot, Payload, float], Ticket]


class SelfTest:
    """Sends it and knows it again. Loop thread only."""

    def __init__(self, roles: Roles, kit: ManagerKit, ask_slot: AskSlot) -> None:
        self._roles = roles
        self._kit = kit
        self._ask_slot = ask_slot
        self._ticket: Ticket | None = None
        self._asked_at = 0.0

    def is_mine(self, ticket: Ticket) -> bool:
        """Whether a ticket is the last self-test."""
        return ticket is self._ticket

    def ask(self, slot: Slot) -> None:
        """Test a slot now."""
        now = self._asked_at = self._kit.clock.monotonic()
        limit = max(LIMIT_SECONDS, slot.dispatcher.limit_of(1))
        self._ticket = self._ask_slot(slot, self._kit.self_test, now + limit)

    def ask_if_due(self, now: float, last_good_at: float | None) -> None:
        """Test the slot that answers, if nothing else has shown for a while that it does."""
        slot = self._roles.answering()
        if slot is None or slot.load is None or (self._ticket is not None and not self._ticket.is_settled):
            return
        since = max(last_good_at or 0.0, slot.load.loaded_at)
        is_due = now - since >= self._kit.self_test_seconds or not slot.load.is_proven
        if is_due and now - self._asked_at >= PAUSE_SECONDS:
            self.ask(slot)
