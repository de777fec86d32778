"""Names of revisions: versions by the release policy, and contents. Pure.

A tag is a name for one content. A branch is not: its revision is its content, written `master@1a2b3c4d`, with the first
digits of the source digest. Operators may name a revision by its name, its source digest, its commit id, or an
unambiguous prefix of either.
"""

import re
from functools import lru_cache

from common.versions import MAX_NAME_CHARS, Version, explain_no_version, make_part, parse_semver
from updater.core.rules import ReleasePolicy

CONTENT_MARK = "@"  # between a branch and its content; no name on a hub contains it
SHOWN_DIGITS = 8
MIN_PREFIX_DIGITS = 4
_PREFIX = re.compile(rf"[0-9a-f]{{{MIN_PREFIX_DIGITS},64}}")
_COMMIT = re.compile(r"[0-9a-f]{7,64}")
_ALGORITHM = "sha256:"


def parse_version(name: str, policy: ReleasePolicy) -> Version | None:
    """Parse a revision name; None if it is not a release: a branch, or a name that does not match the pattern."""
    if not name or len(name) > MAX_NAME_CHARS:
        return None
    return _by_pattern(name, policy.pattern) if policy.pattern else parse_semver(name)


def is_after(name: str, min_version: str, policy: ReleasePolicy) -> bool:
    """Whether a release is greater than the minimal version; always true if that is no version of this policy."""
    version, least = parse_version(name, policy), parse_version(min_version, policy)
    return version is not None and (least is None or version > least)


def find_policy_refusal(version: Version, name: str, min_version: str, policy: ReleasePolicy) -> str:
    """Why the policy does not allow a release of this name, for people; empty if it does."""
    least = parse_version(min_version, policy)
    if policy.pin not in ("", name):
        return f"policy pins {policy.pin}"
    if name in policy.deny:
        return f"policy denies {name}"
    if version.is_prerelease and not policy.prereleases:
        return f"{name} is a pre-release"
    if least is not None and policy.max_major_jump and version.first > least.first + policy.max_major_jump:
        return f"{name} jumps further than policy allows from {min_version}"
    return ""


def is_same(one: str, other: str, policy: ReleasePolicy) -> bool:
    """Whether two names are the same version; build metadata makes no difference."""
    version = parse_version(one, policy)
    return version is not None and version == parse_version(other, policy)


def choose_higher(first: str, second: str, policy: ReleasePolicy) -> str:
    """The higher of two revisions; empty if neither name is a release."""
    one, other = parse_version(first, policy), parse_version(second, policy)
    if one is None or (other is not None and other > one):
        return second if other is not None else ""
    return first


def explain_left_out(name: str, policy: ReleasePolicy) -> str:
    """Why a name of the hub is not a release, for people."""
    if policy.pattern:
        return "it does not match the pattern"
    return explain_no_version(name) or "it is not a version"


def name_content(name: str, source_digest: str) -> str:
    """The name of a branch's present content, for example "master@1a2b3c4d"."""
    return f"{name}{CONTENT_MARK}{source_digest.removeprefix(_ALGORITHM)[:SHOWN_DIGITS]}"


def hub_name(revision: str) -> str:
    """The name by which the hub knows a revision: "master" for "master@1a2b3c4d"."""
    return revision.partition(CONTENT_MARK)[0]


def is_commit_id(text: str) -> bool:
    """Whether a text is a commit id, or a prefix that a hub would take for one."""
    return _COMMIT.fullmatch(text) is not None


def is_prefix(text: str) -> bool:
    """Whether a text may be the beginning of a digest or of a commit id."""
    return _PREFIX.fullmatch(text.lower().removeprefix(_ALGORITHM)) is not None


def is_meant(given: str, revision: str, source_digest: str, commit_id: str = "") -> bool:
    """Whether an operator means this content.

    Args:
        given: a revision, "BRANCH@PREFIX", a source digest, a commit id, or a prefix of the last two.
        revision: name of the content, for people.
        source_digest: of the content; empty if it is not known.
        commit_id: of the content, or its first digits; empty if it is not known.
    """
    if not given or given in (revision, source_digest):
        return bool(given)
    branch, mark, digits = given.partition(CONTENT_MARK)
    if mark and branch != hub_name(revision):
        return False
    digits = (digits if mark else given).lower().removeprefix(_ALGORITHM)
    if not is_prefix(digits):
        return False
    is_commit = bool(commit_id) and (commit_id.startswith(digits) or digits.startswith(commit_id))
    return is_commit or source_digest.removeprefix(_ALGORITHM).startswith(digits)


def _by_pattern(name: str, pattern: str) -> Version | None:
    match = _compiled(pattern).fullmatch(name)
    return None if match is None else Version(tuple(make_part(word or "0") for word in match.groups()))


@lru_cache(maxsize=64)
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern)
