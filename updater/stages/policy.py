"""Which of the listed releases is taken, if any. Pure."""

from dataclasses import dataclass, replace

from updater.core.breaker import BreakerName, begin
from updater.core.effects import Listed
from updater.core.ports import Facts, Release
from updater.core.record import SUPERSEDABLE, Event, ModelRecord, Stage, Update, UpdateKind
from updater.core.rules import Mode, ReleasePolicy, Rules
from updater.stages import transitions, watch
from updater.stages.transitions import MAX_ALARMS, Applied
from updater.stages.watch import Version, is_after, is_same, refused_by_name, version_of


@dataclass(frozen=True, slots=True)
class Choice:
    """What a listing leads to."""

    release: Release | None = None  # to be taken
    newest: str = ""  # the highest that policy allows
    why_not: str = ""  # for people: why the highest release is not taken


def on_listed(record: ModelRecord, listed: Listed, facts: Facts, rules: Rules) -> Applied:
    """Take the highest acceptable release, or say why none is taken."""
    asked = record.requested_revision
    record = watch.looked(record, listed, facts, rules)
    if asked:
        return _take_asked(replace(record, requested_revision=""), asked, listed, facts)
    record, alarms = _alarms(record, listed, facts, rules)
    choice = choose(record, listed, rules)
    record = replace(record, watch=replace(record.watch, newest=choice.newest, message=choice.why_not))
    why_not = _why_not_now(record, choice, rules)
    if choice.release is None or why_not:
        return replace(record, watch=replace(record.watch, message=why_not or choice.why_not)), alarms
    limits = rules.breakers[BreakerName.ACTIVATION]
    record = replace(record, activation=begin(record.activation, limits))
    record, events = _take(record, choice.release, facts, UpdateKind.RELEASE)
    return record, (*alarms, *events)


def choose(record: ModelRecord, listed: Listed, rules: Rules) -> Choice:
    """The highest release that is whole, allowed and not in quarantine."""
    newest, why_not = "", ""
    for version, release in _by_version(listed, rules.policy):
        if not _is_news(record, release, rules):
            continue
        reason = refusal(record, version, release, rules)
        if reason:
            why_not = why_not or reason
            continue
        newest = newest or release.revision
        if release.is_ready:
            return Choice(release, newest, why_not)
        why_not = why_not or f"{release.revision} is not complete yet: {release.missing or 'files are missing'}"
    return Choice(None, newest, why_not)


def refusal(record: ModelRecord, version: Version, release: Release, rules: Rules) -> str:
    """Why a newer release is not taken, for people; empty if it may be."""
    name = release.revision
    known = record.known_digests.get(version.text)
    by_name = refused_by_name(version, name, record.min_version, rules.policy)
    if by_name:
        return by_name
    if record.committed is not None and release.source_digest == record.committed.source_digest != "":
        return f"{name} has the same content as what is committed"
    if record.is_quarantined(release.source_digest):
        return f"{name} is in quarantine"
    if release.source_digest and known not in (None, release.source_digest):
        return f"{name} was published again with other content"
    return ""


def _is_news(record: ModelRecord, release: Release, rules: Rules) -> bool:
    """Whether a release is strictly after the floor, or stands there and was let out of quarantine."""
    if is_after(release.revision, record.min_version, rules.policy):
        return True
    is_released = release.source_digest in record.unquarantined
    return is_released and is_same(release.revision, record.min_version, rules.policy)


def _by_version(listed: Listed, policy: ReleasePolicy) -> list[tuple[Version, Release]]:
    """Releases, highest first, without the old ones that only stand there to be compared."""
    found = [(version_of(release.revision, policy), release) for release in listed.releases]
    known = [(version, release) for version, release in found if version is not None]
    return sorted(known, key=lambda row: (row[0], row[1].revision), reverse=True)


def _why_not_now(record: ModelRecord, choice: Choice, rules: Rules) -> str:
    """Why an acceptable release has to wait; empty if it does not."""
    if choice.release is None:
        return ""
    name = choice.release.revision
    if record.stage is Stage.HELD:
        held = record.under_way
        held_for = None if held.ending is None else held.ending.held_for
        if held_for not in SUPERSEDABLE or not is_after(name, held.revision, rules.policy):
            return f"{name} waits: {held.revision} is held"
    if record.paused:
        return f"{name} waits: updates are on hold"
    if rules.mode is Mode.MANUAL:
        return f"{name} waits: policy takes nothing by itself"
    if not record.activation.may_begin:
        return f"{name} waits: {record.activation.reason or 'too many updates failed'}"
    return ""


def _take_asked(record: ModelRecord, asked: str, listed: Listed, facts: Facts) -> Applied:
    """An operator named it: past policy, never past quarantine or the gate."""
    release = next((release for release in listed.releases if release.revision == asked), None)
    if release is None:
        return record, (transitions.event(record, facts, "revision_unknown", f"the hub has no {asked}"),)
    if record.is_quarantined(release.source_digest):
        return record, (transitions.event(record, facts, "revision_quarantined", f"{asked} is in quarantine"),)
    if record.committed is not None and release.source_digest == record.committed.source_digest != "":
        return record, (transitions.event(record, facts, "revision_committed", f"{asked} is what is committed"),)
    if not release.is_ready:
        return record, (
            transitions.event(record, facts, "revision_not_ready", f"{asked} is not complete: {release.missing}"),
        )
    return _take(record, release, facts, UpdateKind.REQUESTED)


def _take(record: ModelRecord, release: Release, facts: Facts, kind: UpdateKind) -> Applied:
    update = Update(
        update_id=facts.fresh_id,
        kind=kind,
        revision=release.revision,
        started_at=facts.now,
        source_digest=release.source_digest,
        forced=kind is UpdateKind.REQUESTED,
        approved=release.source_digest in record.approved,
    )
    return transitions.start(record, update, Stage.STAGING, facts)


def _alarms(record: ModelRecord, listed: Listed, facts: Facts, rules: Rules) -> tuple[ModelRecord, tuple[Event, ...]]:
    """A known version under another digest: told once, never taken."""
    events: list[Event] = []
    for version, release in _by_version(listed, rules.policy):
        known = record.known_digests.get(version.text)
        mark = f"{version.text} {release.source_digest}"
        if known in (None, release.source_digest) or not release.source_digest or mark in record.watch.alarms:
            continue
        alarms = (*record.watch.alarms, mark)[-MAX_ALARMS:]
        record = replace(record, watch=replace(record.watch, alarms=alarms))
        message = f"{release.revision} was published again with other content; it is not taken"
        events.append(transitions.event(record, facts, "revision_republished", message))
    return record, tuple(events)
