"""The one ItemEnded event of each item, whatever becomes of it.

An item is a unary request, a stream item, or a stream message that does not parse. One that is not accepted is counted
by `IncomingItem`; an accepted one when its PendingRequest is done. Probes and self-tests are not items.
"""

from types import TracebackType
from typing import Self

from common import errors
from inference.server.events import Emit, ItemEnded, ItemOutcome
from inference.server.request import PendingRequest, list_labels

_OUTCOMES: dict[type[errors.HotslotError], ItemOutcome] = {
    errors.InputRefused: ItemOutcome.INVALID,
    errors.NotFound: ItemOutcome.INVALID,
    errors.Overloaded: ItemOutcome.REFUSED,
    errors.NotReady: ItemOutcome.REFUSED,
    errors.DeadlineMissed: ItemOutcome.EXPIRED,
}


def classify_error(error: BaseException) -> tuple[ItemOutcome, str]:
    """The outcome and reason of an item that ended with this error."""
    if not isinstance(error, errors.HotslotError):
        return ItemOutcome.FAILED, errors.Failed.default_reason
    if error.reason == "DEADLINE_TOO_SHORT":  # the deadline has not passed
        return ItemOutcome.REFUSED, error.reason
    return _OUTCOMES.get(type(error), ItemOutcome.FAILED), error.reason


def describe_item(model: str, request: PendingRequest, now: float) -> ItemEnded:
    """The event of an accepted item that is done."""
    seconds = now - request.accepted_at
    if request.outcome.cancelled():
        has_expired = request.has_expired or now >= request.deadline
        outcome = ItemOutcome.EXPIRED if has_expired else ItemOutcome.CANCELLED
        reason = "DEADLINE_EXPIRED" if has_expired else "CANCELLED"
        return ItemEnded(model, request.revision, request.device, outcome, reason, seconds=seconds)
    error = request.outcome.exception()
    if error is not None:
        outcome, reason = classify_error(error)
        return ItemEnded(model, request.revision, request.device, outcome, reason, seconds=seconds)
    prediction = request.outcome.result()
    served = prediction.served_by
    return ItemEnded(
        model=served.model,
        revision=served.revision,
        device=served.device,
        outcome=ItemOutcome.ANSWERED,
        labels=list_labels(prediction.outcome),
        seconds=seconds,
        queued_seconds=prediction.queued_seconds,
        prepared_seconds=prediction.prepared_seconds,
        computed_seconds=prediction.computed_seconds,
    )


class IncomingItem:
    """A `with` block around the acceptance of an item: an error that leaves it is the item's outcome."""

    __slots__ = ("_emit", "model")

    def __init__(self, emit: Emit) -> None:
        self._emit = emit
        self.model = ""  # the configured name, once it is found

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, Exception):
            outcome, reason = classify_error(error)
            self._emit(ItemEnded(self.model, "", "", outcome, reason))
