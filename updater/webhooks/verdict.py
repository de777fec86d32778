"""What an answer of a receiver means, and how long to wait before it is asked again. Pure."""

from dataclasses import dataclass
from enum import StrEnum

FIRST_SECONDS, CAP_SECONDS = 2.0, 600.0
MAX_REFUSALS = 5  # of one event that the receiver says no to; then the next one has its turn
MAX_RETRY_AFTER_SECONDS = 3600.0
_LATER = frozenset({408, 423, 425, 429})  # refusals that time mends


class DeliveryVerdict(StrEnum):
    """What a response means for the event that was sent."""

    DELIVERED = "delivered"
    LATER = "later"  # the receiver cannot take anything now: nothing else is sent to it before
    REFUSED = "refused"  # it does not want this one


@dataclass(frozen=True, slots=True)
class ReceiverResponse:
    """The status of a receiver's response, and its Retry-After; nothing else of it is read."""

    status: int  # of HTTP
    retry_after_seconds: float = 0.0  # as it asked; 0: it did not


def judge(response: ReceiverResponse) -> DeliveryVerdict:
    """A redirect is a refusal: an event goes where the settings say, and nowhere else."""
    if 200 <= response.status < 300:  # noqa: PLR2004  HTTP's own numbers
        return DeliveryVerdict.DELIVERED
    if response.status >= 500 or response.status in _LATER:  # noqa: PLR2004
        return DeliveryVerdict.LATER
    return DeliveryVerdict.REFUSED


def pause_seconds(failures: int, jitter: float, retry_after_seconds: float = 0.0) -> float:
    """How long to wait after so many failures in a row.

    Args:
        failures: at least 1.
        jitter: drawn evenly from 0 to 1.
        retry_after_seconds: as the receiver asked; never shortens.
    """
    plain = min(CAP_SECONDS, FIRST_SECONDS * 2.0 ** min(failures - 1, 16))
    return max(plain * (0.75 + jitter / 2), min(retry_after_seconds, MAX_RETRY_AFTER_SECONDS))
