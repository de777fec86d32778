"""How long a device may take, from what it took before. Pure."""

from dataclasses import dataclass

# Kept back for handing over from a trial to the previous slot: ticks, frames, a busy machine.
HANDOVER_SECONDS = 0.2  # at least
HANDOVER_SHARE = 0.25  # of the caller's time: who waits longer can spare more
_SMOOTHING = 0.2  # weight of the newest sample; forgets a cold start within about ten batches
_BEST_SMOOTHING = 0.05  # weight of a sample that is slower than the best: a busy hour must not look like the best


@dataclass(frozen=True, slots=True)
class LimitRules:
    """How measured cost becomes a limit."""

    floor_seconds: float  # never call anything hung before this
    factor: float  # times the expected time
    prepare_seconds: float = 0.5  # allowance for decoding, per batch


class UnitCost:
    """Device seconds of one unit on one device: an exponentially weighted mean of what was measured, and the best.

    The mean says when a call has taken too long. The best says what cannot be done in time: a cost that was measured
    while the machine was busy, as it is at every load, must not turn away what it could have answered.
    """

    def __init__(self, unit_seconds: float = 0.0) -> None:
        self.unit_seconds = unit_seconds
        self._best_seconds = unit_seconds

    def learn(self, seconds: float, units: int) -> None:
        """Take in one finished batch."""
        if units <= 0 or seconds < 0:
            return
        sample = seconds / units
        if self.unit_seconds == 0.0:
            self.unit_seconds = self._best_seconds = sample
            return
        self.unit_seconds += _SMOOTHING * (sample - self.unit_seconds)
        slower = sample - self._best_seconds
        self._best_seconds += slower if slower < 0 else _BEST_SMOOTHING * slower

    def expected(self, units: int) -> float:
        """Expected seconds of so many units; 0 if nothing was measured yet."""
        return self.unit_seconds * units

    def at_best(self, units: int) -> float:
        """Seconds that so many units take on a good day; 0 if nothing was measured yet."""
        return self._best_seconds * units


def limit_seconds(cost: UnitCost, units: int, rules: LimitRules) -> float:
    """How long so many units may take before their runner is called hung."""
    return max(rules.floor_seconds, rules.prepare_seconds + rules.factor * cost.expected(units))


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
