"""Watches the hub: when it is polled, what its answer changes in the record, and which update starts. Pure."""

from dataclasses import replace
from hashlib import sha256

from updater.core import breaker
from updater.core.breaker import BreakerName
from updater.core.effects import EffectFailure, FailureKind, Listed, PollHub
from updater.core.facts import Facts, Release
from updater.core.record import (
    SUPERSEDABLE,
    Ending,
    EndsIn,
    Event,
    HeldFor,
    ModelRecord,
    Outcome,
    Republished,
    Stage,
    Update,
    UpdateKind,
    Watch,
)
from updater.core.rules import Mode, Rules
from updater.core.versions import hub_name, is_after, is_same, parse_version
from updater.stages import choice as choosing
from updater.stages import transitions, upgrade
from updater.stages.choice import MAX_SHOWN_NAMES, Choice, choose, find_meant, find_replay, name_release
from updater.stages.transitions import MAX_ALARMS, Transition

# A hub that answers so may do it for this revision alone: asked for again and again, it would keep all others waiting.
_OF_THE_REVISION = frozenset({"HUB_REFUSED", "HUB_NOT_UNDERSTOOD", "HUB_UNREADABLE", "REDIRECT_CIRCLE"})


def poll_if_due(record: ModelRecord, rules: Rules) -> PollHub | None:
    """Poll the hub if the next poll is due and the hub breaker allows it."""
    if record.watch.seconds_to_poll > 0 or not record.hub.may_begin:
        return None
    committed = record.committed
    is_known = committed is None or rules.policy.branch or choosing.is_contact_made(record, rules.policy)
    return PollHub(
        policy=rules.policy,
        min_version=record.min_version,
        committed_revision="" if committed is None else committed.revision,
        quarantined_revisions=tuple(row.revision for row in record.quarantine),
        only=record.requested_revision,
        recognise="" if is_known or committed is None else committed.source_digest,
    )


def apply_result(record: ModelRecord, result: Listed | EffectFailure, facts: Facts, rules: Rules) -> Transition:
    """Apply the result of a poll."""
    if isinstance(result, Listed):
        return _apply_listed(record, result, facts, rules)
    if result.reason == "REVISION_UNKNOWN":  # deleted between two requests; not a failure of the hub
        return _apply_listed(record, Listed((), ()), facts, rules)
    return _apply_failed(record, result, facts, rules)


def _apply_listed(record: ModelRecord, listed: Listed, facts: Facts, rules: Rules) -> Transition:
    """Start an update to the requested revision or the newest acceptable one, or record why there is none."""
    requested = record.requested_revision
    listed = replace(listed, releases=tuple(_fill_computed(record, release) for release in listed.releases))
    if record.former:
        record = upgrade.adopt_present_digests(record, listed.releases, rules.policy)
    record = _note_answer(record, listed, facts, rules)
    if requested:
        return _take_requested(replace(record, requested_revision=""), requested, listed, facts, rules)
    record, events = _make_contact(record, listed, facts, rules)
    record, alarms = _raise_alarms(record, listed, facts, rules)
    record, withdrawn = _withdraw_hold(record, listed, facts, rules)
    events = (*events, *alarms, *withdrawn)
    choice = choose(record, listed, rules)
    why_not = _find_delay(record, choice, rules) or choice.why_not or record.watch.message
    record = replace(record, watch=replace(record.watch, newest=choice.newest, message=why_not))
    if choice.release is None or _find_delay(record, choice, rules):
        return Transition(record, events)
    if choice.held_for is not None:
        record, held = _hold(record, choice.release, facts, choice.held_for, choice.message)
        return Transition(record, (*events, *held))
    limits = rules.breakers[BreakerName.ACTIVATION]
    record = replace(record, activation=breaker.begin(record.activation, limits))
    record, started = _take(record, choice.release, facts, UpdateKind.RELEASE)
    return Transition(record, (*events, *started))


def _fill_computed(record: ModelRecord, release: Release) -> Release:
    """With the source digest that was computed when a revision with this listing was fetched; the listing has none."""
    found = [row for row in record.computed if (row.revision, row.listing) == (release.revision, release.listing)]
    return replace(release, source_digest=found[-1].source_digest) if found else release


def _note_answer(record: ModelRecord, listed: Listed, facts: Facts, rules: Rules) -> ModelRecord:
    watch = _note_names(record.watch, listed, rules)
    if not (record.requested_revision and rules.policy.branch):  # which lists other revisions than the branch
        watch = _note_listing(watch, listed, facts, rules)
    watch = replace(
        watch,
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


def _note_names(watch: Watch, listed: Listed, rules: Rules) -> Watch:
    left_out = choosing.list_left_out(listed.names, rules.policy)
    shown = tuple(left_out[:MAX_SHOWN_NAMES])
    return replace(watch, names=len(listed.names), left_out=len(left_out), left_out_names=shown)


def _note_listing(watch: Watch, listed: Listed, facts: Facts, rules: Rules) -> Watch:
    """Record when the listing last changed: a mirror that is no longer updated returns the same listing for ever."""
    policy = rules.policy
    rows = sorted(listed.names)  # a poll for one requested revision lists the files of that one alone
    tip = next((row for row in listed.releases if row.revision == policy.branch), None) if policy.branch else None
    if tip is not None:
        rows.append(tip.source_digest)
    listing = sha256("\n".join(rows).encode()).hexdigest()
    if listing != watch.listing:
        watch = replace(watch, listing=listing, changed_at=facts.now)
    known = [(version, name) for name in listed.names if (version := parse_version(name, policy)) is not None]
    highest = max(known)[1] if known else ""
    if policy.branch:
        highest = "" if tip is None else name_release(tip, policy, listed.names).revision
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
    # A revision that an operator requested is asked for again, unless a person must change something first.
    is_kept = failed.kind is FailureKind.TRANSIENT and failed.reason not in _OF_THE_REVISION
    kept = record.requested_revision if is_kept else ""
    if kept:
        watch = replace(watch, message=f"{kept} was requested, and is asked for until the hub answers: {why}")
    record = replace(record, hub=hub, watch=watch, requested_revision=kept)
    events: tuple[Event, ...] = (transitions.make_event(record, facts, "hub_unanswered", why),)
    if not is_open and not hub.may_begin:
        events = (*events, transitions.make_event(record, facts, "breaker_opened", f"hub: {hub.reason}"))
    return Transition(record, events)


def _draw_poll_seconds(facts: Facts, rules: Rules) -> float:
    """Seconds until the next poll, with jitter, so that the machines of a fleet do not poll at the same time."""
    return rules.poll_seconds * (1.0 + rules.poll_jitter * facts.jitter)


def _make_contact(record: ModelRecord, listed: Listed, facts: Facts, rules: Rules) -> Transition:
    """Recognise the committed content on the hub: it is the content of a release, or of the branch."""
    policy, committed = rules.policy, record.committed
    if committed is None:
        return Transition(record)
    if policy.branch:
        digests = {row.source_digest for row in listed.releases if row.revision == policy.branch}
        if committed.source_digest in digests - {""}:
            record = replace(record, watch=replace(record.watch, contact=policy.branch))
        return Transition(record)
    name = choosing.find_recognised(record, listed, policy)
    version = parse_version(name, policy)
    if version is None:
        return Transition(record)
    record = transitions.remember_version(replace(record, min_version=name), version.text, committed.source_digest)
    message = f"{committed.revision} is {name} by its content"
    return transitions.with_event(record, facts, "revision_recognised", message)


def _withdraw_hold(record: ModelRecord, listed: Listed, facts: Facts, rules: Rules) -> Transition:
    """End a hold about the content of a branch that has the committed content again: nothing is left to decide."""
    update, branch = record.update, rules.policy.branch
    if record.stage is not Stage.HELD or update is None or update.ending is None or not branch:
        return Transition(record)
    if update.ending.held_for not in (HeldFor.SEEN_BEFORE, HeldFor.FIRST_CONTACT) or update.forced:
        return Transition(record)
    digests = {row.source_digest for row in listed.releases if row.revision == branch}
    if record.committed is None or record.committed.source_digest not in digests:
        return Transition(record)
    message = f"{branch} has the committed content again"
    return transitions.end(record, facts, Outcome.ABANDONED, "WITHDRAWN", message)


def _find_delay(record: ModelRecord, choice: Choice, rules: Rules) -> str:
    """Why an acceptable revision has to wait; empty if it does not."""
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
    """Whether a revision takes the place of an update that is held, or whose bytes were not the listed ones."""
    held_for = HeldFor.MISMATCH if update.ending is None else update.ending.held_for
    is_other = release.source_digest != update.source_digest
    if held_for not in SUPERSEDABLE or rules.policy.branch:
        return held_for in SUPERSEDABLE and is_other
    if held_for is HeldFor.MISMATCH and release.revision == update.revision and is_other and not release.listing:
        return True
    is_release = parse_version(update.revision, rules.policy) is not None
    return is_release and is_after(release.revision, update.revision, rules.policy)


def _take_requested(record: ModelRecord, requested: str, listed: Listed, facts: Facts, rules: Rules) -> Transition:
    """Start the update that an operator requested; it bypasses the policy, but not quarantine or the gate."""
    found = find_meant(requested, listed)
    if len(found) > 1:
        shown = ", ".join(f"{row.revision} {row.source_digest}" for row in found)
        return transitions.with_event(record, facts, "revision_ambiguous", f"{requested} may be: {shown}")
    if not found:
        return transitions.with_event(record, facts, "revision_unknown", f"the hub has no {requested}")
    release = name_release(found[0], rules.policy, listed.names)
    refusal = _refuse_requested(record, release, facts, rules)
    if refusal is not None:
        return refusal
    replay = find_replay(record, release) if release.revision != found[0].revision else ""
    if replay and hub_name(requested) == requested and requested in listed.names:
        # Whoever names a branch may not know what it has now; a digest says it.
        return _hold(record, release, facts, HeldFor.SEEN_BEFORE, replay, UpdateKind.REQUESTED)
    return _take(record, release, facts, UpdateKind.REQUESTED)


def _refuse_requested(record: ModelRecord, release: Release, facts: Facts, rules: Rules) -> Transition | None:
    """The event that says why a requested revision is not taken; None if it is."""
    name, least, policy = release.revision, record.min_version, rules.policy
    is_release, has_floor = (parse_version(one, policy) is not None for one in (name, least))
    if record.is_quarantined(release.source_digest):
        return transitions.with_event(record, facts, "revision_quarantined", f"{name} is in quarantine")
    if record.committed is not None and release.source_digest == record.committed.source_digest != "":
        return transitions.with_event(record, facts, "revision_committed", f"{name} is the committed revision")
    if is_release and has_floor and not is_after(name, least, policy) and not is_same(name, least, policy):
        message = f"{name} is older than {least}, which was committed"
        return transitions.with_event(record, facts, "revision_too_old", message)
    if not release.is_ready:
        message = f"{name} is not complete: {release.missing}"
        return transitions.with_event(record, facts, "revision_not_ready", message)
    return None


def _take(record: ModelRecord, release: Release, facts: Facts, kind: UpdateKind) -> Transition:
    return transitions.start(record, _make_update(record, release, facts, kind), Stage.STAGING, facts)


def _hold(
    record: ModelRecord,
    release: Release,
    facts: Facts,
    held_for: HeldFor,
    message: str,
    kind: UpdateKind = UpdateKind.RELEASE,
) -> Transition:
    """Hold an update before anything is fetched: a person must decide."""
    update = _make_update(record, release, facts, kind)
    ending = Ending(EndsIn.HELD, held_for=held_for)
    update = replace(update, ending=ending, reason=held_for.value, message=message)
    return transitions.start(record, update, Stage.ROLLING_BACK, facts)


def _make_update(record: ModelRecord, release: Release, facts: Facts, kind: UpdateKind) -> Update:
    return Update(
        update_id=facts.fresh_id,
        kind=kind,
        revision=release.revision,
        started_at=facts.now,
        source_digest="" if release.listing else release.source_digest,
        listing=release.listing,
        commit_id=release.commit_id,
        forced=kind is UpdateKind.REQUESTED,
        approved=release.source_digest in record.approved,
    )


def _raise_alarms(record: ModelRecord, listed: Listed, facts: Facts, rules: Rules) -> Transition:
    """Raise an alarm, once, for each known version that is listed with another digest; such a release is not taken."""
    events: list[Event] = []
    if rules.policy.branch:
        return Transition(record)
    for version, release in choosing.sort_by_version(listed, rules.policy):
        known = record.known_digests.get(version.text)
        if known is None or not release.source_digest:
            continue
        record = _note_republished(record, release, known, facts)
        mark = f"{version.text} {release.source_digest}"
        if known == release.source_digest or mark in record.watch.alarms:
            continue
        alarms = (*record.watch.alarms, mark)[-MAX_ALARMS:]
        record = replace(record, watch=replace(record.watch, alarms=alarms))
        message = f"{release.revision} was published again with other content; it is not taken"
        events.append(transitions.make_event(record, facts, "revision_republished", message))
    return Transition(record, tuple(events))


def _note_republished(record: ModelRecord, release: Release, known: str, facts: Facts) -> ModelRecord:
    """Keep the list of versions that have another content on the hub up to date."""
    before = record.watch.republished
    others = tuple(row for row in before if row.revision != release.revision)
    row = Republished(release.revision, known, release.source_digest, facts.now)
    old = next((one for one in before if replace(one, since=facts.now) == row), row)
    rows = others if known == release.source_digest else (*others, old)[-MAX_ALARMS:]
    return record if rows == before else replace(record, watch=replace(record.watch, republished=rows))
