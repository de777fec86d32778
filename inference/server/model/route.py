"""Which slot answers a request. Pure, but for asking the slots how they are."""

from dataclasses import dataclass

from inference.server.model.roles import Roles
from inference.server.model.slot import Slot
from inference.server.scheduling.cost import trial_limit


@dataclass(frozen=True, slots=True)
class Route:
    """Where a request goes."""

    slot: Slot
    previous: Slot | None = None  # takes over what the trial fails
    try_until: float = 0.0  # clock.monotonic() at which it takes over; 0 if there is nobody to


def route(roles: Roles, rows: int, now: float, deadline: float) -> Route | None:
    """Choose the slot for a request; None if there is none, now or soon.

    Outside a trial it is the active slot alone, also while it is loaded again. In a trial it is the
    slot on trial if there is time for both, else the previous one at once. While the previous one is
    loaded again the trial answers without a time of its own, and what it fails still waits for it.
    """
    if roles.active is None:
        return None
    trial = roles.trial
    previous = trial.previous if trial is not None else None
    if previous is None or previous.load is None:
        return Route(roles.active)
    if not roles.active.is_loaded:
        return Route(previous)
    if not previous.is_loaded:
        return Route(roles.active, previous, deadline)
    need = previous.dispatcher.limit_of(rows) if previous.dispatcher.cost.row_seconds == 0 else 0.0
    need = need or 2 * previous.dispatcher.waits_seconds(rows)
    try_until = trial_limit(now, deadline, roles.active.dispatcher.limit_of(rows), need)
    if try_until is None:
        return Route(previous)
    return Route(roles.active, previous, try_until)
