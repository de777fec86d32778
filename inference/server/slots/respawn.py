"""When a dead runner is started again. Pure."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RespawnRules:
    """How pauses grow."""

    first_seconds: float  # pause after the second death in a row; after the first there is none
    cap_seconds: float
    give_up: int  # deaths in a row after which liveness fails; starts go on at the cap's pace
    steady_seconds: float = 60.0  # a model that answered for so long has no deaths in a row


def pause_seconds(deaths_in_row: int, rules: RespawnRules) -> float:
    """How long to wait before the next start: none after the first death, then doubling to the cap."""
    if deaths_in_row <= 1:
        return 0.0
    return min(rules.cap_seconds, rules.first_seconds * 2.0 ** min(deaths_in_row - 2, 32))
