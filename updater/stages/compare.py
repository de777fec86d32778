"""How the answers that callers get change with a revision. Pure.

Whether the trial changes more of them than the golden set predicts, and whether the committed revision's mix of labels
has left that of the one before.
"""

from dataclasses import dataclass, replace

from updater.core.changes import ALL_CHANGES, describe_beyond, evaluate_changes, find_beyond
from updater.core.comparison import AnswerComparison, ChangeRow
from updater.core.effects import ShadowCopies
from updater.core.facts import Facts, ServerState
from updater.core.label_mix import LabelCount, LabelMark, LabelMix, MixComparison, add_labels, compare_mixes
from updater.core.record import Measured, ModelRecord, Update, UpdateKind
from updater.core.rules import CompareRules, Rules
from updater.stages import transitions
from updater.stages.transitions import Transition

CHANGED = "changed_answers"
_LEAST_NEW = 1000  # labels before they are added within an hour: each time the record is written


@dataclass(frozen=True, slots=True)
class ChangesJudgement:
    """The verdict on the compared answers."""

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


# The mix of labels.


def note_label_mix(record: ModelRecord, facts: Facts, rules: Rules) -> Transition:
    """Add what the committed revision has answered since the last time; an event when its mix leaves the one before."""
    server, committed = facts.server, record.committed
    if server is None or committed is None or not rules.compare.max_mix_change:
        return Transition(record)
    counts = _count_labels(server, committed.bundle_digest)
    if not counts:
        return Transition(record)
    mix, mark = record.mix, record.mix_mark
    hour, labels = facts.now.hour, tuple(LabelCount(label, count) for label, count in sorted(counts.items()))
    present = LabelMark(server.incarnation, hour, labels)
    if mix is None or mix.bundle_digest != committed.bundle_digest:
        fresh = LabelMix(committed.bundle_digest, committed.revision)
        return Transition(
            replace(record, mix=fresh, mix_before=mix, mix_mark=present, mix_distance=0.0, is_mix_changed=False)
        )
    known = {} if mark is None or mark.server_incarnation != server.incarnation else _as_dict(mark)
    new = {label: count - known.get(label, 0) for label, count in counts.items() if count > known.get(label, 0)}
    is_same_hour = mark is not None and mark.hour == hour
    if is_same_hour and sum(new.values()) < _LEAST_NEW:
        return Transition(record)
    if not new:  # what comes from now on is of this hour
        return Transition(replace(record, mix_mark=present))
    mix = add_labels(mix, hour if mark is None else mark.hour, new)
    return _compare_mix(replace(record, mix=mix, mix_mark=present), mix, facts, rules.compare)


def _compare_mix(record: ModelRecord, mix: LabelMix, facts: Facts, rules: CompareRules) -> Transition:
    before = record.mix_before
    found = None if before is None else compare_mixes(before, mix, rules.min_labels)
    if found is None or before is None:
        return Transition(record)
    is_changed = found.distance > rules.max_mix_change
    was_changed = record.is_mix_changed
    record = replace(record, mix_distance=round(found.distance, 4), is_mix_changed=is_changed)
    if not is_changed or was_changed:
        return Transition(record)
    return transitions.with_event(record, facts, "label_mix_changed", _describe_mix(found, before, mix, rules))


def _describe_mix(found: MixComparison, before: LabelMix, mix: LabelMix, rules: CompareRules) -> str:
    shifts = ", ".join(f"{label} {old:.1%} → {new:.1%}" for label, old, new in found.shifts)
    return (
        f"{mix.revision} answers with other labels than {before.revision} did at the same hours: {shifts}; "
        f"{found.distance:.1%} of {found.labels} labels moved, {rules.max_mix_change:.0%} are allowed"
    )


def _count_labels(server: ServerState, bundle_digest: str) -> dict[str, int]:
    counts: dict[str, int] = {}
    for row in server.stats:
        for one in row.labels if row.bundle_digest == bundle_digest else ():
            counts[one.label] = counts.get(one.label, 0) + one.count
    return counts


def _as_dict(mark: LabelMark) -> dict[str, int]:
    return {row.label: row.count for row in mark.labels}
