"""What the hub says: which names are worth listing, and when to look. Pure."""

from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256

from updater.actions import Listed, LookAtHub
from updater.breaker import BreakerName, Result, begin, report
from updater.pipeline.versions import Version, is_after, is_same, refused_by_name, version_of
from updater.ports import Facts
from updater.record import ModelRecord, Watch
from updater.rules import Rules

MAX_LISTED = 5  # revisions that one look lists, beside those in quarantine and the committed one
MAX_LISTED_BAD = 3  # in quarantine: listed only to notice that they were published again


def worth_listing(names: Sequence[str], look: LookAtHub) -> tuple[str, ...]:
    """Choose the names whose files one look at the hub lists: the highest releases and the committed one.

    A name that an operator asks for is listed whatever it looks like. Of those that policy refuses by their names only
    the highest is, to be told of: many of them must not hide one that may be taken.
    """
    if look.only:
        return (look.only,) if look.only in names else ()
    found: list[tuple[Version, str]] = []
    for name in dict.fromkeys(names):
        version = version_of(name, look.policy)
        if version is None or look.policy.pin not in ("", name):
            continue
        if is_after(name, look.floor, look.policy) or is_same(name, look.floor, look.policy):
            found.append((version, name))
    ordered = sorted(found, reverse=True)
    bad = [name for _, name in ordered if name in look.known_bad]
    refused = [name for version, name in ordered if refused_by_name(version, name, look.floor, look.policy)]
    wanted = [name for _, name in ordered if name not in {*bad, *refused}]
    chosen = [name for name in refused if name not in bad][:1] + wanted[:MAX_LISTED] + bad[:MAX_LISTED_BAD]
    if look.committed_revision in names and look.committed_revision not in chosen:
        chosen.append(look.committed_revision)
    return tuple(chosen)


def look(record: ModelRecord, rules: Rules) -> LookAtHub | None:
    """Whether it is time to ask the hub, and what for; None if it is not."""
    is_due = bool(record.asked) or record.watch.seconds_to_look <= 0
    if not is_due or not record.hub.may_begin:
        return None
    return LookAtHub(
        policy=rules.policy,
        floor=record.floor,
        committed_revision="" if record.committed is None else record.committed.revision,
        known_bad=tuple(row.revision for row in record.quarantine),
        only=record.asked,
    )


def looked(record: ModelRecord, listed: Listed, facts: Facts, rules: Rules) -> ModelRecord:
    """The hub has answered."""
    watch = replace(
        _compared(record.watch, listed, facts, rules),
        seconds_to_look=next_look(facts, rules),
        looks=record.watch.looks + 1,
        last_looked_at=facts.now,
        message="" if listed.names else "the hub lists no revision",
    )
    limits = rules.breakers[BreakerName.HUB]
    hub = (
        report(begin(record.hub, limits), Result.SUCCESS, limits, facts.jitter) if record.hub.may_begin else record.hub
    )
    return replace(record, watch=watch, hub=hub)


def _compared(watch: Watch, listed: Listed, facts: Facts, rules: Rules) -> Watch:
    """Remember since when the listing is what it is: a mirror that has stopped answers, and never changes."""
    rows = sorted(listed.names)  # a look for one named revision lists the files of that one alone
    listing = sha256("\n".join(rows).encode()).hexdigest()
    if listing != watch.listing:
        watch = replace(watch, listing=listing, changed_at=facts.now)
    known = [(version, name) for name in listed.names if (version := version_of(name, rules.policy)) is not None]
    highest = max(known)[1] if known else ""
    if highest != watch.highest:
        watch = replace(watch, highest=highest, highest_at=facts.now if highest else None)
    return watch


def missed(record: ModelRecord, facts: Facts, rules: Rules, *, is_neutral: bool, wait: float, why: str) -> ModelRecord:
    """The hub has not answered; asking it rests, the more often it fails the longer."""
    limits = rules.breakers[BreakerName.HUB]
    hub = record.hub
    if hub.may_begin:
        result = Result.NEUTRAL if is_neutral else Result.FAILURE
        hub = report(begin(hub, limits), result, limits, facts.jitter, reason=why, at_least=wait)
    pause = max(next_look(facts, rules), min(wait, limits.cap_seconds))
    return replace(record, hub=hub, watch=replace(record.watch, seconds_to_look=pause, message=why))


def next_look(facts: Facts, rules: Rules) -> float:
    """Seconds to the next look; spread, so that a fleet does not ask in step."""
    return rules.poll_seconds * (1.0 + rules.poll_jitter * facts.jitter)
