"""Between frames and records: the engine never sees a protobuf message, the wire never a record."""

import math
from collections.abc import Sequence

from hotslot.runner.v1 import runner_pb2
from inference.runner.engines.base import AddressItem, AddressSpan, EntailmentItem, Item, UnitResult
from inference.wire import EntailmentScores


class TaskMissing(ValueError):
    """An item without a task; the server's mistake."""


def read_item(row: runner_pb2.BatchItem) -> Item:
    """What is to be computed of a row.

    Raises:
        TaskMissing: nothing that this build knows.
    """
    match row.WhichOneof("task"):
        case "entailment":
            asked = row.entailment
            return EntailmentItem(asked.image, tuple(asked.statements), asked.premise)
        case "address":
            return AddressItem(tuple(row.address.addresses))
        case _:
            raise TaskMissing(f"item {row.item_id} has no task")


def is_finite(result: UnitResult) -> bool:
    """Whether a result holds numbers and nothing else."""
    if isinstance(result, EntailmentScores):
        return math.isfinite(result.yes) and math.isfinite(result.no) and math.isfinite(result.maybe)
    return all(math.isfinite(span.probability) for span in result)


def answer(item_id: int, results: Sequence[UnitResult]) -> runner_pb2.ItemOutcome:
    """The outcome of an item that is computed whole; at least one result."""
    outcome = runner_pb2.ItemOutcome(item_id=item_id)
    for result in results:
        if isinstance(result, EntailmentScores):
            outcome.entailment.scores.add(yes=result.yes, no=result.no, maybe=result.maybe)
        else:
            outcome.address.addresses.add(spans=[_span(span) for span in result])
    return outcome


def failure(item_id: int, reason: str, message: str, field: str = "") -> runner_pb2.ItemOutcome:
    """The outcome of an item that has no answer."""
    return runner_pb2.ItemOutcome(
        item_id=item_id, failure=runner_pb2.Failure(reason=reason, message=message, field=field)
    )


def _span(span: AddressSpan) -> runner_pb2.AddressSpan:
    return runner_pb2.AddressSpan(kind=span.kind, start=span.start, end=span.end, probability=span.probability)
