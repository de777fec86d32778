"""Watches the hub: when it is polled, which revisions are listed, and which release is chosen. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha256

from updater.core import breaker
from updater.core.breaker import BreakerName
from updater.core.effects import EffectFailure, FailureKind, Listed, PollHub
from updater.core.facts import Facts, Release
from updater.core.record import SUPERSEDABLE, Event, HeldFor, ModelRecord, Stage, Update, UpdateKind, Watch
from updater.core.rules import Mode, ReleasePolicy, Rules
from updater.core.versions import Version, find_policy_refusal, is_after, is_same, parse_version
from updater.stages import transitions
from updater.stages.transitions import MAX_ALARMS, Transition

MAX_LISTED = 5  # revisions that one poll lists, beside those in quarantine and the committed one
MAX_LISTED_BAD = 3  # in quarantine: listed only to notice that they were published again


def select_names(names: Sequence[str], look: PollHub) -> tuple[str, ...]:
    """Choose the names whose files one poll lists: the highest releases and the committed one.

    A name that an operator requests is always listed. Of the names that policy refuses only the highest is listed, for
    the report; more of them would use up the limit and hide a release that is allowed.
    """
    if look.only:
        return (look.only,) if look.only in names else ()
    found: list[tuple[Version, str]] = []
    for name in dict.fromkeys(names):
        version = parse_version(name, look.policy)
        if version is None or look.policy.pin not in ("", name):
            continue
        if is_after(name, look.min_version, look.policy) or is_same(name, look.min_version, look.policy):
            found.append((version, name))
    ordered = sorted(found, reverse=True)
    bad = [name for _, name in ordered if name in look.quarantined_revisions]
    refused = [name for version, name in ordered if find_policy_refusal(version, name, look.min_version, look.policy)]
    wanted = [name for _, name in ordered if name not in {*bad, *refused}]
    chosen = [name for name in refused if name not in bad][:1] + wanted[:MAX_LISTED] + bad[:MAX_LISTED_BAD]
    if look.committed_revision in names and look.committed_revision not in chosen:
        chosen.append(look.committed_revision)
    return tuple(chosen)


def poll_if_due(record: ModelRecord, rules: Rules) -> PollHub | None:
    """Poll the hub if the next poll is due and the hub breaker allows it."""
    is_due = bool(record.requested_revision) or record.watch.seconds_to_poll <= 0
    if not is_due or not record.hub.may_begin:
        return None
    return PollHub(
        policy=rules.policy,
        min_version=record.min_version,
        committed_revision="" if record.committed is None else record.committed.revision,
        quarantined_revisions=tuple(row.revision for row in record.quarantine),
        only=record.requested_revision,
    )


def apply_result(record: ModelRecord, result: Listed | EffectFailure, facts: Facts, rules: Rules) -> Transition:
    """Apply the result of a poll."""
    if isinstance(result, Listed):
        return _apply_listed(record, result, facts, rules)
    if result.reason == "REVISION_UNKNOWN":  # deleted between two requests; not a failure of the hub
        return _apply_listed(record, Listed((), ()), facts, rules)
    return _apply_failed(record, result, facts, rules)


def _apply_listed(record: ModelRecord, listed: Listed, facts: Facts, rules: Rules) -> Transition:
    """Start an update to the requested revision or the highest acceptable release, or record why there is none."""
    requested = record.requested_revision
    listed = replace(listed, releases=tuple(_fill_computed(record, release) for release in listed.releases))
    record = _note_answer(record, listed, facts, rules)
    if requested:
        return _take_requested(replace(record, requested_revision=""), requested, listed, facts)
    record, alarms = _raise_alarms(record, listed, facts, rules)
    choice = choose(record, listed, rules)
    record = replace(record, watch=replace(record.watch, newest=choice.newest, message=choice.why_not))
    why_not = _find_delay(record, choice, rules)
    if choice.release is None or why_not:
        watch = replace(record.watch, message=why_not or choice.why_not)
        return Transition(replace(record, watch=watch), alarms)
    limits = rules.breakers[BreakerName.ACTIVATION]
    record = replace(record, activation=breaker.begin(record.activation, limits))
    record, events = _take(record, choice.release, facts, UpdateKind.RELEASE)
    return Transition(record, (*alarms, *events))


def _fill_computed(record: ModelRecord, release: Release) -> Release:
    """With the source digest that was computed when a revision with this listing was fetched; the listing has none."""
    found = [row for row in record.computed if (row.revision, row.listing) == (release.revision, release.listing)]
    return replace(release, source_digest=found[-1].source_digest) if found else release


def _note_answer(record: ModelRecord, listed: Listed, facts: Facts, rules: Rules) -> ModelRecord:
    watch = replace(
        _note_listing(record.watch, listed, facts, rules),
        seconds_to_poll=_draw_poll_seconds(facts, rules),
        polls=record.watch.polls + 1,
        last_polled_at=facts.now,
        message="" if listed.names else "the hub lists no revision",
    )
    record = replace(record, watch=watch)
    if not record.hub.may_begin:
        return record
    limits = rules.breakers[BreakerName.HUB]
    hub = breaker.report(breaker.begin(record.hub, limits), breaker.WorkResult.SUCCESS, limits, facts.jitter)
    return replace(record, hub=hub)


def _note_listing(watch: Watch, listed: Listed, facts: Facts, rules: Rules) -> Watch:
    """Record when the listing last changed: a mirror that is no longer updated returns the same listing for ever."""
    rows = sorted(listed.names)  # a poll for one requested revision lists the files of that one alone
    listing = sha256("\n".join(rows).encode()).hexdigest()
    if listing != watch.listing:
        watch = replace(watch, listing=listing, changed_at=facts.now)
    known = [(version, name) for name in listed.names if (version := parse_version(name, rules.policy)) is not None]
    highest = max(known)[1] if known else ""
    if highest != watch.highest:
        watch = replace(watch, highest=highest, highest_at=facts.now if highest else None)
    return watch


def _apply_failed(record: ModelRecord, failed: EffectFailure, facts: Facts, rules: Rules) -> Transition:
    """Count a failed poll at the hub breaker, unless a permission is missing; honours the hub's Retry-After."""
    why = f"{failed.reason}: {failed.message}"
    limits, hub, is_open = rules.breakers[BreakerName.HUB], record.hub, not record.hub.may_begin
    if not is_open:
        is_neutral = failed.kind in (FailureKind.DENIED, FailureKind.NOT_READY)
        result = breaker.WorkResult.NEUTRAL if is_neutral else breaker.WorkResult.FAILURE
        wait = failed.retry_after_seconds
        hub = breaker.report(breaker.begin(hub, limits), result, limits, facts.jitter, reason=why, at_least=wait)
    pause = max(_draw_poll_seconds(facts, rules), min(failed.retry_after_seconds, limits.cap_seconds))
    watch = replace(record.watch, seconds_to_poll=pause, message=why)
    record = replace(record, hub=hub, watch=watch, requested_revision="")
    events: tuple[Event, ...] = (transitions.make_event(record, facts, "hub_unanswered", why),)
    if not is_open and not hub.may_begin:
        events = (*events, transitions.make_event(record, facts, "breaker_opened", f"hub: {hub.reason}"))
    return Transition(record, events)


def _draw_poll_seconds(facts: Facts, rules: Rules) -> float:
    """Seconds until the next poll, with jitter, so that the machines of a fleet do not poll at the same time."""
    return rules.poll_seconds * (1.0 + rules.poll_jitter * facts.jitter)


@dataclass(frozen=True, slots=True)
class Choice:
    """The release chosen from a listing, if any."""

    release: Release | None = None  # to be taken
    newest: str = ""  # the highest release that policy allows
    why_not: str = ""  # for people: why the highest release is not taken


def choose(record: ModelRecord, listed: Listed, rules: Rules) -> Choice:
    """Choose the highest release that is complete, allowed and not in quarantine."""
    newest, why_not = "", ""
    for version, release in _sort_by_version(listed, rules.policy):
        if not _is_news(record, release, rules):
            continue
        reason = find_refusal(record, version, release, rules)
        if reason:
            why_not = why_not or reason
            continue
        newest = newest or release.revision
        if release.is_ready:
            return Choice(release, newest, why_not)
        why_not = why_not or f"{release.revision} is not complete yet: {release.missing or 'files are missing'}"
    return Choice(None, newest, why_not)


def find_refusal(record: ModelRecord, version: Version, release: Release, rules: Rules) -> str:
    """Why a newer release is not taken, for people; empty if it may be."""
    name = release.revision
    known = record.known_digests.get(version.text)
    by_name = find_policy_refusal(version, name, record.min_version, rules.policy)
    if by_name:
        return by_name
    if record.committed is not None and release.source_digest == record.committed.source_digest != "":
        return f"{name} has the same content as the committed revision"
    if record.is_quarantined(release.source_digest):
        return f"{name} is in quarantine"
    if release.source_digest and known not in (None, release.source_digest):
        return f"{name} was published again with other content"
    return ""


def _is_news(record: ModelRecord, release: Release, rules: Rules) -> bool:
    """Whether a release is greater than the minimal version, or equals it and was taken out of quarantine."""
    if is_after(release.revision, record.min_version, rules.policy):
        return True
    is_unquarantined = release.source_digest in record.unquarantined
    return is_unquarantined and is_same(release.revision, record.min_version, rules.policy)


def _sort_by_version(listed: Listed, policy: ReleasePolicy) -> list[tuple[Version, Release]]:
    """Releases, highest first, without those that were listed only to compare their digests."""
    found = [(parse_version(release.revision, policy), release) for release in listed.releases]
    known = [(version, release) for version, release in found if version is not None]
    return sorted(known, key=lambda row: (row[0], row[1].revision), reverse=True)


def _find_delay(record: ModelRecord, choice: Choice, rules: Rules) -> str:
    """Why an acceptable release has to wait; empty if it does not."""
    if choice.release is None:
        return ""
    name = choice.release.revision
    if record.update is not None and not _may_supersede(record.update, choice.release, rules):
        return f"{name} waits: {record.update.revision} is held"
    if record.paused:
        return f"{name} waits: updates are paused"
    if rules.mode is Mode.MANUAL:
        return f"{name} waits: in this mode an operator starts updates"
    if not record.activation.may_begin:
        return f"{name} waits: {record.activation.reason or 'too many updates failed'}"
    return ""


def _may_supersede(update: Update, release: Release, rules: Rules) -> bool:
    """Whether a release takes the place of an update that is held, or whose bytes were not the listed ones."""
    held_for = HeldFor.MISMATCH if update.ending is None else update.ending.held_for
    is_listed_anew = release.revision == update.revision and not release.listing
    is_listed_anew = is_listed_anew and release.source_digest != update.source_digest
    if held_for is HeldFor.MISMATCH and is_listed_anew:
        return True
    return held_for in SUPERSEDABLE and is_after(release.revision, update.revision, rules.policy)


def _take_requested(record: ModelRecord, name: str, listed: Listed, facts: Facts) -> Transition:
    """Start the update that an operator requested; it bypasses the policy, but not quarantine or the gate."""
    release = next((release for release in listed.releases if release.revision == name), None)
    if release is None:
        return transitions.with_event(record, facts, "revision_unknown", f"the hub has no {name}")
    if record.is_quarantined(release.source_digest):
        return transitions.with_event(record, facts, "revision_quarantined", f"{name} is in quarantine")
    if record.committed is not None and release.source_digest == record.committed.source_digest != "":
        return transitions.with_event(record, facts, "revision_committed", f"{name} is the committed revision")
    if not release.is_ready:
        message = f"{name} is not complete: {release.missing}"
        return transitions.with_event(record, facts, "revision_not_ready", message)
    return _take(record, release, facts, UpdateKind.REQUESTED)


def _take(record: ModelRecord, release: Release, facts: Facts, kind: UpdateKind) -> Transition:
    update = Update(
        update_id=facts.fresh_id,
        kind=kind,
        revision=release.revision,
        started_at=facts.now,
        source_digest="" if release.listing else release.source_digest,
        listing=release.listing,
        forced=kind is UpdateKind.REQUESTED,
        approved=release.source_digest in record.approved,
    )
    return transitions.start(record, update, Stage.STAGING, facts)


def _raise_alarms(record: ModelRecord, listed: Listed, facts: Facts, rules: Rules) -> Transition:
    """Raise an alarm, once, for each known version that is listed with another digest; such a release is not taken."""
    events: list[Event] = []
    for version, release in _sort_by_version(listed, rules.policy):
        known = record.known_digests.get(version.text)
        mark = f"{version.text} {release.source_digest}"
        if known in (None, release.source_digest) or not release.source_digest or mark in record.watch.alarms:
            continue
        alarms = (*record.watch.alarms, mark)[-MAX_ALARMS:]
        record = replace(record, watch=replace(record.watch, alarms=alarms))
        message = f"{release.revision} was published again with other content; it is not taken"
        events.append(transitions.make_event(record, facts, "revision_republished", message))
    return Transition(record, tuple(events))
