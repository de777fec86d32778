"""The choice of the slot for a request. Reads, changes nothing."""

from collections.abc import Mapping
from dataclasses import dataclass

from inference.server.model.pair import Pair
from inference.server.model.slot import Slot

# Time reserved for handing a request over from a trial to the previous slot: ticks, frames, a busy machine.
HANDOVER_SECONDS = 0.2  # at least
HANDOVER_SHARE = 0.25  # of the time left until the deadline


@dataclass(frozen=True, slots=True)
class RouteDecision:
    """The slot that a request goes to."""

    slot: str
    previous: str | None = None  # answers if the trial fails the request
    try_until: float = 0.0  # clock.monotonic() at which `previous` takes over; 0 for never


def choose_route(pair: Pair, slots: Mapping[str, Slot], rows: int, now: float, deadline: float) -> RouteDecision | None:
    """Choose the slot for a request; None if no slot is active.

    Without a trial this is the active slot, even while it is being reloaded. During a trial it is the slot on
    trial if the deadline leaves enough time for both slots, else the previous slot. While the previous slot is
    being reloaded, the trial may use the whole time; a request that it fails then waits for the previous slot.
    """
    active = pair.active_slot
    if active is None:
        return None
    previous = pair.previous_of_trial
    if previous is None or previous.load is None:
        return RouteDecision(active.name)
    if not active.is_loaded:
        return RouteDecision(previous.name)
    if not previous.is_loaded:
        return RouteDecision(active.name, previous.name, deadline)
    dispatcher = slots[previous.name].dispatcher
    need = dispatcher.limit_of(rows) if dispatcher.cost.row_seconds == 0 else 0.0
    need = need or 2 * dispatcher.expected_seconds(rows)
    try_until = trial_limit(now, deadline, slots[active.name].dispatcher.limit_of(rows), need)
    if try_until is None:
        return RouteDecision(previous.name)
    return RouteDecision(active.name, previous.name, try_until)


def trial_limit(now: float, deadline: float, own_limit: float, previous_need: float) -> float | None:
    """The time at which the previous slot must take over from a trial; None if the deadline is too short for both.

    Args:
        now: the clock, seconds.
        deadline: of the request, on the same clock.
        own_limit: the trial's time limit, from its own measured cost, seconds.
        previous_need: seconds that the previous slot needs.
    """
    left = deadline - now
    room = left - previous_need - max(HANDOVER_SECONDS, HANDOVER_SHARE * left)
    if room <= 0:
        return None
    return now + min(own_limit, room)
