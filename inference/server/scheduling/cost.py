"""How long a device may take, from what it took before. Pure."""

from dataclasses import dataclass

from inference.row_cost import RowCost

# Kept back for handing over from a trial to the previous slot: ticks, frames, a busy machine.
HANDOVER_SECONDS = 0.2  # at least
HANDOVER_SHARE = 0.25  # of the caller's time: who waits longer can spare more


@dataclass(frozen=True, slots=True)
class LimitRules:
    """How measured cost becomes a limit."""

    min_timeout_seconds: float  # never call anything hung before this
    factor: float  # times the expected time
    prepare_seconds: float = 0.5  # allowance for decoding, per batch


def limit_seconds(cost: RowCost, rows: int, rules: LimitRules) -> float:
    """How long so many rows may take before their runner is called hung."""
    return max(rules.min_timeout_seconds, rules.prepare_seconds + rules.factor * cost.expected(rows))


def trial_limit(now: float, deadline: float, own_limit: float, previous_need: float) -> float | None:
    """When the previous slot must take over from a trial, or None if there is no room for both.

    Args:
        now: the clock, seconds.
        deadline: the caller's, on the same clock.
        own_limit: seconds that the trial may take by its own cost.
        previous_need: seconds that the previous slot would need.
    """
    left = deadline - now
    room = left - previous_need - max(HANDOVER_SECONDS, HANDOVER_SHARE * left)
    if room <= 0:
        return None
    return now + min(own_limit, room)
