"""Notes with which labels the committed revision answers, and whether the mix has left that of the one before. Pure."""

from dataclasses import replace

from updater.core.facts import Facts, ServerState
from updater.core.label_mix import LabelCount, LabelMark, LabelMix, MixComparison, add_labels, compare_mixes
from updater.core.record import ModelRecord
from updater.core.rules import CompareRules, Rules
from updater.stages import transitions
from updater.stages.transitions import Transition

_LEAST_NEW = 1000  # labels before they are added within an hour: each time the record is written


def note(record: ModelRecord, facts: Facts, rules: Rules) -> Transition:
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
    if not new or (is_same_hour and sum(new.values()) < _LEAST_NEW):
        return Transition(record)
    mix = add_labels(mix, hour if mark is None else mark.hour, new)
    return _compare(replace(record, mix=mix, mix_mark=present), mix, facts, rules.compare)


def _compare(record: ModelRecord, mix: LabelMix, facts: Facts, rules: CompareRules) -> Transition:
    before = record.mix_before
    found = None if before is None else compare_mixes(before, mix, rules.min_labels)
    if found is None or before is None:
        return Transition(record)
    is_changed = found.distance > rules.max_mix_change
    was_changed = record.is_mix_changed
    record = replace(record, mix_distance=round(found.distance, 4), is_mix_changed=is_changed)
    if not is_changed or was_changed:
        return Transition(record)
    return transitions.with_event(record, facts, "label_mix_changed", _describe(found, before, mix, rules))


def _describe(found: MixComparison, before: LabelMix, mix: LabelMix, rules: CompareRules) -> str:
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
