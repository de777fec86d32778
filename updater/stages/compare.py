"""Whether a revision changes more answers of callers than the golden set predicts. Pure."""

from dataclasses import dataclass

from updater.core.changes import ALL_CHANGES, describe_beyond, evaluate_changes, find_beyond
from updater.core.comparison import AnswerComparison, ChangeRow
from updater.core.effects import ShadowCopies
from updater.core.facts import ServerState
from updater.core.record import Measured, ModelRecord, Update, UpdateKind
from updater.core.rules import CompareRules

CHANGED = "changed_answers"


@dataclass(frozen=True, slots=True)
class ChangesJudgement:
    """What the compared answers say."""

    compared: int = 0  # answers
    beyond: str = ""  # why the changes are too many, for people; empty if they are not
    is_doubtful: bool = False  # they may be too many: more answers can show it
    measured: tuple[Measured, ...] = ()
    rows: tuple[ChangeRow, ...] = ()


def judge_changes(update: Update, server: ServerState, load_id: str, rules: CompareRules) -> ChangesJudgement:
    """Judge the answers of a load so far; nothing is found where nothing was compared or expected.

    May be called at every look: the probability of a false alarm is that of a whole trial.
    """
    live, expected = find_comparison(server, load_id), update.expected_changes
    if live is None or not live.compared or expected is None or not expected.questions:
        return ChangesJudgement()
    tests = evaluate_changes(expected, live, rules)
    beyond = find_beyond(tests)
    whole = next(test for test in tests if test.name == ALL_CHANGES)
    row = Measured(CHANGED, whole.share, whole.expected_share, whole.bound, beyond is None)
    is_allowed = beyond is None or update.may_change_answers
    return ChangesJudgement(
        live.compared,
        "" if is_allowed or beyond is None else describe_beyond(beyond, expected, live),
        not update.may_change_answers and any(test.is_doubtful for test in tests),
        (row,),
        tuple(test.row for test in tests if test.count or test.expected_count),
    )


def find_comparison(server: ServerState, load_id: str) -> AnswerComparison | None:
    """The comparison of a load's answers; None if they are not compared."""
    shadow = server.shadow
    return None if shadow is None or shadow.load_id != load_id else shadow.comparison


def is_compared(update: Update, rules: CompareRules) -> bool:
    """Whether the answers of an update's trial are compared: not those of a failback, whose bundle is the same."""
    return rules.share > 0 and update.kind is not UpdateKind.FAILBACK


def choose_copies(record: ModelRecord, rules: CompareRules) -> ShadowCopies | None:
    """Which requests the previous slot answers too during the trial; None if there is none, or nothing is compared."""
    if record.committed is None or not is_compared(record.under_way, rules):
        return None
    return ShadowCopies(rules.share, rules.busy_share)
