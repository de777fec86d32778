"""Chooses what a poll of the hub lists, and which of the listed revisions is taken. Pure.

With `follow = "releases"` the highest allowed version is taken. With `follow = "branch:NAME"` the branch's content is
taken whenever it differs from the committed one.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from common.versions import Version, explain_no_version
from updater.core.effects import Listed, PollHub
from updater.core.facts import Release
from updater.core.record import HeldFor, ModelRecord
from updater.core.rules import ReleasePolicy, Rules
from updater.core.versions import (
    CONTENT_MARK,
    find_policy_refusal,
    hub_name,
    is_after,
    is_meant,
    is_prefix,
    is_same,
    name_content,
    parse_version,
)

MAX_LISTED = 5  # revisions that one poll lists, beside those in quarantine and the committed one
MAX_LISTED_BAD = 3  # in quarantine: listed only to notice that they were published again
MAX_RECOGNISED = 40  # releases that a poll lists to recognise the committed content
MAX_MEANT = 20  # revisions that a poll lists to find a digest that an operator requests
MAX_SHOWN_NAMES = 5


@dataclass(frozen=True, slots=True)
class Choice:
    """The revision chosen from a listing, if any."""

    release: Release | None = None  # to be taken
    newest: str = ""  # the newest revision that policy allows
    why_not: str = ""  # for people: why the newest revision is not taken
    held_for: HeldFor | None = None  # a person must decide before it is fetched
    message: str = ""  # for people: why it is held


def select_names(names: Sequence[str], look: PollHub) -> tuple[str, ...]:
    """Choose the names whose files one poll lists: the followed branch, or the highest releases and the committed one.

    A name that an operator requests is always listed. Of the names that policy refuses only the highest is listed, for
    the report; more of them would use up the limit and hide a release that is allowed.
    """
    if look.only:
        return _select_requested(names, look)
    if look.policy.branch:
        return (look.policy.branch,) if look.policy.branch in names else ()
    ordered = _sort_names(names, look)
    if look.recognise:
        return tuple(name for _, name in ordered[:MAX_RECOGNISED])
    bad = [name for _, name in ordered if name in look.quarantined_revisions]
    refused = [name for version, name in ordered if find_policy_refusal(version, name, look.min_version, look.policy)]
    wanted = [name for _, name in ordered if name not in {*bad, *refused}]
    chosen = [name for name in refused if name not in bad][:1] + wanted[:MAX_LISTED] + bad[:MAX_LISTED_BAD]
    if look.committed_revision in names and look.committed_revision not in chosen:
        chosen.append(look.committed_revision)
    return tuple(chosen)


def list_left_out(names: Sequence[str], policy: ReleasePolicy) -> list[str]:
    """Names that are not followed; those that look most like releases come first."""
    if policy.branch:
        return sorted(name for name in names if name != policy.branch)
    left_out = [name for name in names if parse_version(name, policy) is None]
    return sorted(left_out, key=lambda name: (not explain_no_version(name), name))


def is_contact_made(record: ModelRecord, policy: ReleasePolicy) -> bool:
    """Whether the committed revision has a place in what is followed, so that other revisions are newer or older."""
    if record.committed is None:
        return True
    if policy.branch:
        of_branch = record.committed.revision.startswith(policy.branch + CONTENT_MARK)
        return of_branch or record.watch.contact == policy.branch
    return parse_version(record.min_version, policy) is not None


def find_recognised(record: ModelRecord, listed: Listed, policy: ReleasePolicy) -> str:
    """The highest release that has the committed content, if it is higher than the minimal version; else empty."""
    committed = record.committed
    if committed is None or not committed.source_digest or policy.branch:
        return ""
    is_first = not is_contact_made(record, policy)
    for version, release in sort_by_version(listed, policy):
        name = release.revision
        if release.source_digest != committed.source_digest or not is_after(name, record.min_version, policy):
            continue
        if is_first or not find_policy_refusal(version, name, record.min_version, policy):
            return name
    return ""


def find_meant(requested: str, listed: Listed) -> list[Release]:
    """The listed revisions that an operator means, one for each content."""
    named = [release for release in listed.releases if release.revision == requested]
    if named:
        return named[:1]
    found: dict[str, Release] = {}
    for release in listed.releases:
        if is_meant(requested, release.revision, release.source_digest, release.commit_id):
            found.setdefault(release.source_digest, release)
    return list(found.values())


def name_release(release: Release, policy: ReleasePolicy, names: Sequence[str]) -> Release:
    """The release named by its content, unless its name is a version or a commit id."""
    is_fixed = release.revision != policy.branch and parse_version(release.revision, policy) is not None
    content = release.source_digest or release.listing
    if is_fixed or release.revision not in names or not content:
        return release
    return replace(release, revision=name_content(release.revision, content))


def choose(record: ModelRecord, listed: Listed, rules: Rules) -> Choice:
    """Choose the newest revision that is complete, allowed and not in quarantine."""
    choice = _choose_branch(record, listed, rules) if rules.policy.branch else _choose_release(record, listed, rules)
    if choice.release is None or choice.held_for is not None or is_contact_made(record, rules.policy):
        return choice
    if choice.release.source_digest in record.unquarantined:
        return choice
    message = _explain_first_contact(record, choice.release.revision, rules.policy)
    return replace(choice, held_for=HeldFor.FIRST_CONTACT, message=message)


def find_replay(record: ModelRecord, release: Release) -> str:
    """Why the content of a branch must be approved, for people: it was committed and replaced; empty if it was not."""
    if not record.is_replaced(release.source_digest):
        return ""
    row = next(row for row in record.replaced if row.source_digest == release.source_digest)
    return (
        f"{release.revision} was committed as {row.revision} and replaced on {row.since:%Y-%m-%d}: the hub shows an "
        "older content again"
    )


def find_refusal(record: ModelRecord, version: Version, release: Release, rules: Rules) -> str:
    """Why a newer release is not taken, for people; empty if it may be."""
    name = release.revision
    known = record.known_digests.get(version.text)
    by_name = find_policy_refusal(version, name, record.min_version, rules.policy)
    if by_name:
        return by_name
    if record.is_quarantined(release.source_digest):
        return f"{name} is in quarantine"
    if release.source_digest and known not in (None, release.source_digest):
        return f"{name} was published again with other content"
    return ""


def sort_by_version(listed: Listed, policy: ReleasePolicy) -> list[tuple[Version, Release]]:
    """The listed releases, highest first."""
    found = [(parse_version(release.revision, policy), release) for release in listed.releases]
    known = [(version, release) for version, release in found if version is not None]
    return sorted(known, key=lambda row: (row[0], row[1].revision), reverse=True)


def _select_requested(names: Sequence[str], look: PollHub) -> tuple[str, ...]:
    """The requested name; for the digest or the commit id of a content, the names that may have it."""
    requested = look.only
    if requested in names:
        return (requested,)
    branch = hub_name(requested)
    if branch != requested:
        return (branch,) if branch in names else ()
    if not is_prefix(requested):
        return ()
    branches = [name for name in names if parse_version(name, look.policy) is None]
    branches.sort(key=lambda name: (name not in (look.policy.branch, "master", "main"), name))
    releases = [name for _, name in _sort_names(names, replace(look, min_version=""))]
    return tuple((branches[:MAX_LISTED] + releases)[:MAX_MEANT])


def _sort_names(names: Sequence[str], look: PollHub) -> list[tuple[Version, str]]:
    """The releases that are not lower than the minimal version, highest first."""
    found: list[tuple[Version, str]] = []
    for name in dict.fromkeys(names):
        version = parse_version(name, look.policy)
        if version is None or look.policy.pin not in ("", name):
            continue
        if is_after(name, look.min_version, look.policy) or is_same(name, look.min_version, look.policy):
            found.append((version, name))
    return sorted(found, reverse=True)


def _choose_release(record: ModelRecord, listed: Listed, rules: Rules) -> Choice:
    newest, why_not = "", ""
    for version, release in sort_by_version(listed, rules.policy):
        name = release.revision
        if _has_committed_content(record, release):
            is_other = record.committed is not None and is_after(name, record.committed.revision, rules.policy)
            why_not = why_not or (f"{name} has the same content as the committed revision" if is_other else "")
            continue
        if not _is_news(record, release, rules):
            continue
        reason = find_refusal(record, version, release, rules)
        if reason:
            why_not = why_not or reason
            continue
        newest = newest or name
        if release.is_ready:
            return Choice(release, newest, why_not)
        why_not = why_not or f"{name} is not complete yet: {release.missing or 'files are missing'}"
    return Choice(None, newest, why_not or _describe_no_release(listed, rules.policy))


def _describe_no_release(listed: Listed, policy: ReleasePolicy) -> str:
    """That none of the hub's names is a release, with the first of them; empty if one is."""
    left_out, count = list_left_out(listed.names, policy), len(listed.names)
    if not count or len(left_out) < count:
        return ""
    subject = f"{count} names, none of them a release" if count > 1 else "1 name, which is no release"
    return f"{subject}: {_show(left_out)}"


def _show(names: Sequence[str]) -> str:
    return ", ".join(names[:MAX_SHOWN_NAMES]) + (", …" if len(names) > MAX_SHOWN_NAMES else "") or "nothing"


def _choose_branch(record: ModelRecord, listed: Listed, rules: Rules) -> Choice:
    policy = rules.policy
    tip = next((release for release in listed.releases if release.revision == policy.branch), None)
    if tip is None:
        return Choice(why_not=f"the hub has no {policy.branch}; it has {_show(list_left_out(listed.names, policy))}")
    release = name_release(tip, policy, listed.names)
    refusal = _refuse_content(record, release, policy)
    if refusal:
        return Choice(why_not=refusal)
    replay = find_replay(record, release)
    return Choice(release, release.revision, "", HeldFor.SEEN_BEFORE if replay else None, replay)


def _refuse_content(record: ModelRecord, release: Release, policy: ReleasePolicy) -> str:
    """Why the content of the followed branch is not taken, for people; empty if it may be."""
    name = release.revision
    refusals = (
        (not release.is_ready, f"{policy.branch} is not complete yet: {release.missing or 'files are missing'}"),
        (
            not release.source_digest and not release.listing,
            f"{policy.branch} is listed without files, so that its content cannot be told apart",
        ),
        (_has_committed_content(record, release), f"{name} is committed; {policy.branch} has no other content"),
        (
            bool(policy.pin) and not _is_named(policy.pin, release),
            f"policy pins {policy.pin}; {policy.branch} is at {name}",
        ),
        (any(_is_named(row, release) for row in policy.deny), f"policy denies {name}"),
        (record.is_quarantined(release.source_digest), f"{name} is in quarantine"),
    )
    return next((why for is_so, why in refusals if is_so), "")


def _is_named(given: str, release: Release) -> bool:
    return is_meant(given, release.revision, release.source_digest, release.commit_id)


def _has_committed_content(record: ModelRecord, release: Release) -> bool:
    return record.committed is not None and release.source_digest == record.committed.source_digest != ""


def _is_news(record: ModelRecord, release: Release, rules: Rules) -> bool:
    """Whether a release is greater than the minimal version, or equals it and was taken out of quarantine."""
    if is_after(release.revision, record.min_version, rules.policy):
        return True
    is_unquarantined = release.source_digest in record.unquarantined
    return is_unquarantined and is_same(release.revision, record.min_version, rules.policy)


def _explain_first_contact(record: ModelRecord, name: str, policy: ReleasePolicy) -> str:
    committed = "the committed revision" if record.committed is None else record.committed.revision
    where = f"{policy.branch} has never had" if policy.branch else "no release on the hub has"
    return f"{where} the content of {committed}, so that it is not known whether {name} is newer or older"
