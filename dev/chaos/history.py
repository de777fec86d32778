"""Checks that all answers came from the committed revision or a trial, and never from an older revision.

A revision answers because the committed pointer named it while the call lasted, or because it is newer than what was
committed: then it was on trial. For the duration of a trial lease the previous revision may still
answer, since the pointer is written before the server commits, and the updater may be killed in between. Any other
answer is a violation: an old revision serves again, or an uncommitted one stayed. The pointer never moves to an older
revision.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from dev.harness.load import Answered

SLACK_SECONDS = 0.5  # by which the pointer may be read late on a busy machine


@dataclass(frozen=True, slots=True)
class Moment:
    """A value of the committed pointer, and when it was first seen."""

    since: float  # time.monotonic()
    revision: str


def strange_answers(
    answers: Sequence[Answered],
    pointer: Sequence[Moment],
    is_after: Callable[[str, str], bool],
    term: float,
    slack: float = SLACK_SECONDS,
) -> list[str]:
    """Descriptions of answers that neither a committed revision nor a trial explains.

    Args:
        answers: of all callers, in any order; `at` is the time of the answer.
        pointer: in the order of time; at least one.
        is_after: whether the first revision is newer than the second.
        term: seconds of a trial.
        slack: seconds by which the pointer may have been seen late.
    """
    strange = []
    for answer in answers:
        committed = _committed(pointer, answer.at - answer.seconds - slack, answer.at + slack)
        before = _before(pointer, committed[0], answer.at - term)
        is_told = answer.revision in (before, *(one.revision for one in committed))
        if not is_told and not all(is_after(answer.revision, one.revision) for one in committed):
            named = " and ".join(one.revision for one in committed)
            strange.append(f"{answer.revision} answered while {named} was committed")
    return strange


def steps_back(pointer: Sequence[Moment], is_after: Callable[[str, str], bool]) -> list[str]:
    """Changes of the committed pointer to an older revision."""
    rows = pairwise(pointer)
    return [f"{one.revision} to {two.revision}" for one, two in rows if not is_after(two.revision, one.revision)]


def _committed(pointer: Sequence[Moment], since: float, until: float) -> list[Moment]:
    """The pointer's values during an interval; its first value also holds for the time before."""
    begins = [float("-inf"), *(moment.since for moment in pointer[1:])]
    ends = [*(moment.since for moment in pointer[1:]), float("inf")]
    rows = zip(pointer, begins, ends, strict=True)
    return [moment for moment, begin, end in rows if begin <= until and end >= since]


def _before(pointer: Sequence[Moment], moment: Moment, since: float) -> str:
    """The revision committed before a moment, unless that ended before `since`."""
    place = pointer.index(moment)
    return pointer[place - 1].revision if place and moment.since >= since else ""
