"""Checks the numbers in a runner's messages. Pure."""

from collections.abc import Iterable

from hotslot.runner.v1 import runner_pb2

MAX_SECONDS = 1e9  # 30 years
MAX_PROBABILITY = 1.0 + 1e-6  # of a softmax in float32


def find_impossible_number(reply: runner_pb2.RunnerReply) -> str:
    """A sentence if a time or a probability cannot be what a runner has measured or computed; else empty.

    One NaN that is learned as a cost would refuse every later request; one in a heartbeat would hide every hang.
    """
    match reply.WhichOneof("body"):
        case "items":
            return _check_items(reply.items)
        case "heartbeat":
            return _check_seconds(value for _, value in reply.heartbeat.ListFields() if isinstance(value, float))
        case "load_outcome":
            outcome = reply.load_outcome
            return _check_seconds([outcome.row_seconds]) or _check_bytes(outcome.needed_bytes, outcome.taken_bytes)
        case "load_progress":
            progress = reply.load_progress
            return _check_seconds([progress.fraction]) or _check_bytes(progress.needed_bytes, progress.taken_bytes)
        case _:
            return ""


def _check_items(items: runner_pb2.ItemsReply) -> str:
    for outcome in items.outcomes:
        if not (0 <= outcome.prepared_seconds <= MAX_SECONDS and 0 <= outcome.computed_seconds <= MAX_SECONDS):
            return "an outcome with an impossible time"
        fault = _check_results(outcome)
        if fault:
            return fault
        if outcome.computed_rows < 0:
            return "an outcome with a negative number of rows"
    for call in items.calls:
        if call.rows < 0 or call.items < 0:
            return "a device call with a negative number of rows"
        computed, cpu, idle = call.computed_seconds, call.cpu_seconds, call.idle_seconds
        if not (0 <= computed <= MAX_SECONDS and 0 <= cpu <= MAX_SECONDS and 0 <= idle <= MAX_SECONDS):
            return "an impossible time"
    return ""


def _check_results(outcome: runner_pb2.ItemOutcome) -> str:
    for scores in outcome.entailment.scores:
        yes, no, maybe = scores.yes, scores.no, scores.maybe
        if not (0 <= yes <= MAX_PROBABILITY and 0 <= no <= MAX_PROBABILITY and 0 <= maybe <= MAX_PROBABILITY):
            return "an impossible probability"
    for address in outcome.address.addresses:
        for span in address.spans:
            if not 0 <= span.probability <= MAX_PROBABILITY:
                return "an impossible probability"
            if not 0 <= span.start < span.end:
                return "an impossible span"
    return ""


def _check_seconds(seconds: Iterable[float]) -> str:
    return "" if all(0 <= value <= MAX_SECONDS for value in seconds) else "an impossible time"


def _check_bytes(*sizes: int) -> str:
    return "" if min(sizes) >= 0 else "a negative size"
