"""Whether what callers were answered is one story: only what was committed, or on trial, has answered, and never older.

A revision answers because the committed pointer named it while the call lasted, or because it is newer than what was
committed: then it was on trial. For a trial lease the revision before may answer on, since the pointer moves before
the server hears of it, and whoever tells the server may be killed between the two. Anything else is a revision that
came back, or one that nobody committed and that stayed. The pointer itself only goes forward.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from dev.harness.load import Answered

SLACK_SECONDS = 0.5  # of whoever watches the pointer, on a busy machine


@dataclass(frozen=True, slots=True)
class Moment:
    """The committed pointer, from then on."""

    since: float  # time.monotonic()
    revision: str


def strange_answers(
    answers: Sequence[Answered],
    pointer: Sequence[Moment],
    is_after: Callable[[str, str], bool],
    term: float,
    slack: float = SLACK_SECONDS,
) -> list[str]:
    """Answers that no committed revision and no trial explains.

    Args:
        answers: of all callers, in any order; `at` is when the answer had come.
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
    """Places where the committed pointer went to an older revision."""
    rows = pairwise(pointer)
    return [f"{one.revision} to {two.revision}" for one, two in rows if not is_after(two.revision, one.revision)]


def _committed(pointer: Sequence[Moment], since: float, until: float) -> list[Moment]:
    """What the pointer named in a stretch of time; before it was first seen, what it named first."""
    begins = [float("-inf"), *(moment.since for moment in pointer[1:])]
    ends = [*(moment.since for moment in pointer[1:]), float("inf")]
    rows = zip(pointer, begins, ends, strict=True)
    return [moment for moment, begin, end in rows if begin <= until and end >= since]


def _before(pointer: Sequence[Moment], moment: Moment, since: float) -> str:
    """What was committed before a moment, if that is not longer ago."""
    place = pointer.index(moment)
    return pointer[place - 1].revision if place and moment.since >= since else ""
