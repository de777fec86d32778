"""The judge of histories sees what must not be, and nothing else."""

from dev.chaos.history import Moment, steps_back, strange_answers
from dev.harness.load import Answered

TERM = 20.0
POINTER = [Moment(100.0, "v1"), Moment(200.0, "v2"), Moment(300.0, "v4")]


def answered(at: float, revision: str, seconds: float = 0.1) -> Answered:
    """One answer."""
    return Answered(at, revision, seconds, is_right=True)


def is_after(one: str, other: str) -> bool:
    """By name."""
    return one > other


def strange(*answers: Answered) -> list[str]:
    """What nothing explains."""
    return strange_answers(answers, POINTER, is_after, TERM)


def test_committed_revisions_and_trials_explain_their_answers() -> None:
    """The committed revision, what is newer and on trial, and calls that were under way at a commit."""
    assert (
        strange(
            answered(50.0, "v1"),
            answered(150.0, "v1"),
            answered(199.0, "v2"),
            answered(250.0, "v3"),
            answered(250.0, "v2"),
            answered(204.0, "v1", seconds=5.0),
            answered(400.0, "v4"),
        )
        == []
    )


def test_a_revision_that_came_back_is_strange() -> None:
    """An older one after a newer one was committed, and a trial that outlived the commit of a newer one."""
    assert strange(answered(250.0, "v1")) == ["v1 answered while v2 was committed"]
    assert strange(answered(350.0, "v3")) == ["v3 answered while v4 was committed"]


def test_the_revision_before_may_answer_for_a_term() -> None:
    """The updater may be killed between pointer and CommitSlot; after one trial lease an old answer is a violation."""
    assert strange(answered(219.0, "v1"), answered(319.0, "v2")) == []
    assert len(strange(answered(222.0, "v1"), answered(319.0, "v1"), answered(319.0, "v3"))) == 3


def test_the_pointer_goes_forward() -> None:
    """Each change to an older revision is reported."""
    assert steps_back(POINTER, is_after) == []
    assert steps_back([*POINTER, Moment(400.0, "v2")], is_after) == ["v4 to v2"]
