"""Which rows a load could have got, and which it got, by windows of time. Pure."""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from dev.harness.device_calls import DeviceCall
from dev.harness.loadgen import Outcome
from dev.harness.numbers import percentile

REFUSALS = (
    ("RESOURCE_EXHAUSTED", "QUEUE_FULL"),
    ("RESOURCE_EXHAUSTED", "DEADLINE_TOO_SHORT"),
    ("DEADLINE_EXCEEDED", "DEADLINE_TOO_SHORT"),
)  # code and reason of what a server says at once


@dataclass(frozen=True, slots=True)
class Calls:
    """How the calls of a load ended."""

    offered: int
    answered: int
    refused: int
    lost: int  # neither answered nor refused
    without_retry_delay: int  # refused for load, with no RetryInfo or pushback
    answer_p50: float  # seconds
    answer_p99: float
    refusal_p99: float
    ends: dict[str, int]  # by code and reason


def count_calls(outcomes: Sequence[Outcome]) -> Calls:
    """Count how calls ended."""
    answers = [one.took for one in outcomes if one.is_answer]
    refusals = [one for one in outcomes if (one.code, one.reason) in REFUSALS]
    for_load = [one for one in refusals if one.code == "RESOURCE_EXHAUSTED"]
    ends = Counter(f"{one.code} {one.reason}".strip() for one in outcomes)
    return Calls(
        offered=len(outcomes),
        answered=len(answers),
        refused=len(refusals),
        lost=len(outcomes) - len(answers) - len(refusals),
        without_retry_delay=sum(not one.retry or not one.pushback for one in for_load),
        answer_p50=percentile(answers, 0.5),
        answer_p99=percentile(answers, 0.99),
        refusal_p99=percentile([one.took for one in refusals], 0.99),
        ends=dict(ends),
    )


def delivered_rows(
    device_calls: Iterable[DeviceCall], pictures: Collection[str], began: float, window: float, windows: int
) -> list[float]:
    """Rows about some pictures that a device computed in each window.

    Args:
        device_calls: of the engine.
        pictures: those whose requests were answered.
        began: unix time of the first window.
        window: seconds.
        windows: how many.
    """
    found = [0.0] * windows
    for call in device_calls:
        rows, ended = call.rows_of(pictures), call.ended - began
        if rows and ended > 0:
            _spread(found, window, max(0.0, ended - call.seconds), ended, rows)
    return found


def possible_rows(
    outcomes: Iterable[Outcome], deadline: float, row_seconds: float, window: float, windows: int
) -> list[float]:
    """Rows that a perfect server computes in each window: in the order of arrival, whatever can end in time."""
    found = [0.0] * windows
    free = 0.0
    for one in sorted(outcomes, key=lambda one: one.at):
        began = max(free, one.at)
        ended = began + one.rows * row_seconds
        if ended <= one.at + deadline:
            free = ended
            _spread(found, window, began, ended, one.rows)
    return found


def _spread(found: list[float], window: float, began: float, ended: float, rows: float) -> None:
    length = ended - began
    for number in range(int(began // window), len(found)):
        inside = min(ended, (number + 1) * window) - max(began, number * window)
        if inside <= 0:
            return
        found[number] += rows * inside / length
