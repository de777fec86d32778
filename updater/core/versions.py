"""Parses a hub's revision names as versions, orders them, and checks them by the release policy. Pure."""

import re
from dataclasses import dataclass
from functools import lru_cache

from updater.core.rules import ReleasePolicy

MAX_NAME_CHARS = 200
_MAX_DIGITS = 18
_SEMVER = re.compile(
    r"v?(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)(?:-([0-9A-Za-z-]+(?:\.[0-9A-Za-z-]+)*))?(?:\+[0-9A-Za-z.-]+)?",
    re.ASCII,
)

Part = tuple[int, int, str]  # numbers before words, a missing pre-release after all


@dataclass(frozen=True, slots=True, order=True)
class Version:
    """A parsed version; versions are ordered by precedence."""

    parts: tuple[Part, ...]
    prerelease: tuple[Part, ...]  # a release proper sorts behind its pre-releases

    @property
    def is_prerelease(self) -> bool:
        """Whether the version has a pre-release suffix, so that it is lower than the release itself."""
        return self.prerelease != _RELEASED

    @property
    def first(self) -> int:
        """The major version; `max_major_jump` limits its increase."""
        return self.parts[0][1] if self.parts else 0

    @property
    def text(self) -> str:
        """The canonical form: "v1.2.0" and "1.2.0" are the same version."""
        plain = ".".join(part[2] or str(part[1]) for part in self.parts)
        return plain + "".join(f"-{part[2] or part[1]}" for part in self.prerelease if part != _RELEASED[0])


_RELEASED: tuple[Part, ...] = ((2, 0, ""),)


def parse_version(name: str, policy: ReleasePolicy) -> Version | None:
    """Parse a revision name; None if it is not a release: a branch, or a name that does not match the pattern."""
    if not name or len(name) > MAX_NAME_CHARS:
        return None
    return _by_pattern(name, policy.pattern) if policy.pattern else _by_semver(name)


def is_after(name: str, min_version: str, policy: ReleasePolicy) -> bool:
    """Whether a release is greater than the minimal version; always true without a minimal version."""
    version, least = parse_version(name, policy), parse_version(min_version, policy)
    if version is None:
        return False
    return not min_version or (least is not None and version > least)


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
    """Whether two names are the same version."""
    version = parse_version(one, policy)
    return version is not None and version == parse_version(other, policy)


def choose_higher(first: str, second: str, policy: ReleasePolicy) -> str:
    """The higher of two revisions; a name that is not a release is the lower one."""
    one, other = parse_version(first, policy), parse_version(second, policy)
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
