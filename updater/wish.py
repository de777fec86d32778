"""What operators ask for: a closed set."""

from dataclasses import dataclass
from enum import StrEnum


class WishKind(StrEnum):
    """One a command of hotslot.updates.v1 that changes something."""

    CHECK_NOW = "CHECK_NOW"
    UPDATE = "UPDATE"  # argument: revision
    ROLLBACK = "ROLLBACK"
    HOLD = "HOLD"  # argument: reason
    RESUME = "RESUME"
    APPROVE = "APPROVE"  # argument: source digest
    RELEASE_QUARANTINE = "RELEASE_QUARANTINE"  # argument: source digest
    RESET_BREAKER = "RESET_BREAKER"  # argument: name


@dataclass(frozen=True, slots=True)
class Wish:
    """What an operator asked for. Not durable: who asked is answered when the record is written."""

    kind: WishKind
    argument: str = ""
