"""What the hub says: which names are worth listing, and when to look. Pure."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from hashlib import sha256

from updater.core.breaker import BreakerName, Result, begin, report
from updater.core.effects import Listed, LookAtHub
from updater.core.ports import Facts
from updater.core.record import ModelRecord, Watch
from updater.core.rules import ReleasePolicy, Rules

MAX_NAME_CHARS = 200
_MAX_DIGITS = 18
_SEMVER = re.compile(
    r"v?(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)(?:-([0-9A-Za-z-]+(?:\.[0-9A-Za-z-]+)*))?(?:\+[0-9A-Za-z.-]+)?",
    re.ASCII,
)

Part = tuple[int, int, str]  # numbers before words, a missing pre-release after all


@dataclass(frozen=True, slots=True, order=True)
class Version:
    """Where a release stands in the order of all of its model."""

    parts: tuple[Part, ...]
    prerelease: tuple[Part, ...]  # a release proper sorts behind its pre-releases

    @property
    def is_prerelease(self) -> bool:
        """Whether it comes before a release proper."""
        return self.prerelease != _RELEASED

    @property
    def first(self) -> int:
        """The first number: what a jump is measured in."""
        return self.parts[0][1] if self.parts else 0

    @property
    def text(self) -> str:
        """Its one form: "v1.2.0" and "1.2.0" are the same version."""
        plain = ".".join(part[2] or str(part[1]) for part in self.parts)
        return plain + "".join(f"-{part[2] or part[1]}" for part in self.prerelease if part != _RELEASED[0])


_RELEASED: tuple[Part, ...] = ((2, 0, ""),)


def version_of(name: str, policy: ReleasePolicy) -> Version | None:
    """Read a hub's name; None if it is no release: a branch, or not of the pattern."""
    if not name or len(name) > MAX_NAME_CHARS:
        return None
    return _by_pattern(name, policy.pattern) if policy.pattern else _by_semver(name)


def is_after(name: str, floor: str, policy: ReleasePolicy) -> bool:
    """Whether a release is strictly greater than the floor; anything is, while there is none."""
    version, least = version_of(name, policy), version_of(floor, policy)
    if version is None:
        return False
    return not floor or (least is not None and version > least)


def refused_by_name(version: Version, name: str, floor: str, policy: ReleasePolicy) -> str:
    """Why policy takes no release of this name, whatever is in it, for people; empty if it may."""
    least = version_of(floor, policy)
    if policy.pin not in ("", name):
        return f"policy pins {policy.pin}"
    if name in policy.deny:
        return f"policy denies {name}"
    if version.is_prerelease and not policy.prereleases:
        return f"{name} is a pre-release"
    if least is not None and policy.max_major_jump and version.first > least.first + policy.max_major_jump:
        return f"{name} jumps further than policy allows from {floor}"
    return ""


def is_same(one: str, other: str, policy: ReleasePolicy) -> bool:
    """Whether two names are the same version."""
    version = version_of(one, policy)
    return version is not None and version == version_of(other, policy)


def higher(first: str, second: str, policy: ReleasePolicy) -> str:
    """The higher of two revisions; one that is no release loses."""
    one, other = version_of(first, policy), version_of(second, policy)
    if one is None or (other is not None and other > one):
        return second if other is not None else first or second
    return first


def _by_semver(name: str) -> Version | None:
    match = _SEMVER.fullmatch(name)
    if match is None:
        return None
    groups = match.groups()
    if any(len(number) > _MAX_DIGITS for number in groups[:3]):
        return None
    return Version(
        tuple((0, int(number), "") for number in groups[:3]),
        tuple(_part(word) for word in groups[3].split(".")) if groups[3] else _RELEASED,
    )


def _by_pattern(name: str, pattern: str) -> Version | None:
    match = _compiled(pattern).fullmatch(name)
    if match is None:
        return None
    return Version(tuple(_part(word or "0") for word in match.groups()), _RELEASED)


def _part(word: str) -> Part:
    return (0, int(word), "") if word.isascii() and word.isdigit() and len(word) <= _MAX_DIGITS else (1, 0, word)


@lru_cache(maxsize=64)
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern)


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
        if is_after(name, look.min_version, look.policy) or is_same(name, look.min_version, look.policy):
            found.append((version, name))
    ordered = sorted(found, reverse=True)
    bad = [name for _, name in ordered if name in look.known_bad]
    refused = [name for version, name in ordered if refused_by_name(version, name, look.min_version, look.policy)]
    wanted = [name for _, name in ordered if name not in {*bad, *refused}]
    chosen = [name for name in refused if name not in bad][:1] + wanted[:MAX_LISTED] + bad[:MAX_LISTED_BAD]
    if look.committed_revision in names and look.committed_revision not in chosen:
        chosen.append(look.committed_revision)
    return tuple(chosen)


def look(record: ModelRecord, rules: Rules) -> LookAtHub | None:
    """Whether it is time to ask the hub, and what for; None if it is not."""
    is_due = bool(record.requested_revision) or record.watch.seconds_to_poll <= 0
    if not is_due or not record.hub.may_begin:
        return None
    return LookAtHub(
        policy=rules.policy,
        min_version=record.min_version,
        committed_revision="" if record.committed is None else record.committed.revision,
        known_bad=tuple(row.revision for row in record.quarantine),
        only=record.requested_revision,
    )


def looked(record: ModelRecord, listed: Listed, facts: Facts, rules: Rules) -> ModelRecord:
    """The hub has answered."""
    watch = replace(
        _compared(record.watch, listed, facts, rules),
        seconds_to_poll=next_look(facts, rules),
        polls=record.watch.polls + 1,
        last_polled_at=facts.now,
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
    return replace(record, hub=hub, watch=replace(record.watch, seconds_to_poll=pause, message=why))


def next_look(facts: Facts, rules: Rules) -> float:
    """Seconds to the next look; spread, so that a fleet does not ask in step."""
    return rules.poll_seconds * (1.0 + rules.poll_jitter * facts.jitter)
