"""Parses and orders version names such as "v1.2.0". Pure.

SemVer, with what publishers add to it: a prefix "v" or "V", and two parts ("v1.0" is 1.0.0). Not a version: one part or
four, leading zeros, digits of another script. Build metadata ("+cu121") is ignored by the order.
"""

import re
from dataclasses import dataclass, field

MAX_NAME_CHARS = 200
MAX_DIGITS = 18
_NUMBER = r"(0|[1-9]\d*)"
_SEMVER = re.compile(
    rf"[vV]?{_NUMBER}\.{_NUMBER}(?:\.{_NUMBER})?(?:-([0-9A-Za-z-]+(?:\.[0-9A-Za-z-]+)*))?(?:\+([0-9A-Za-z.-]+))?",
    re.ASCII,
)
_LIKE_A_VERSION = re.compile(r"[vV]?\d+(?:\.\d+)*(?:[-+].*)?", re.DOTALL)

Part = tuple[int, int, str]  # numbers before words, a missing pre-release after all
RELEASED: tuple[Part, ...] = ((2, 0, ""),)


@dataclass(frozen=True, slots=True, order=True)
class Version:
    """A parsed version; versions are ordered by precedence."""

    parts: tuple[Part, ...]
    prerelease: tuple[Part, ...] = RELEASED  # a release proper sorts behind its pre-releases
    metadata: str = field(default="", compare=False)  # of the build

    @property
    def is_prerelease(self) -> bool:
        """Whether the version has a pre-release suffix, so that it is lower than the release itself."""
        return self.prerelease != RELEASED

    @property
    def first(self) -> int:
        """The major version; `max_major_jump` limits its increase."""
        return self.parts[0][1] if self.parts else 0

    @property
    def text(self) -> str:
        """The canonical form: "v1.2", "v1.2.0" and "1.2.0" are the same version, each build of it has its own text."""
        plain = ".".join(part[2] or str(part[1]) for part in self.parts)
        plain += "".join(f"-{part[2] or part[1]}" for part in self.prerelease if part != RELEASED[0])
        return plain + (f"+{self.metadata}" if self.metadata else "")


def parse_semver(name: str) -> Version | None:
    """Parse a version name; None if it is not a version."""
    match = _SEMVER.fullmatch(name) if len(name) <= MAX_NAME_CHARS else None
    if match is None:
        return None
    *numbers, prerelease, metadata = match.groups()
    if any(len(number or "") > MAX_DIGITS for number in numbers):
        return None
    return Version(
        tuple((0, int(number or 0), "") for number in numbers),
        tuple(make_part(word) for word in prerelease.split(".")) if prerelease else RELEASED,
        metadata or "",
    )


def make_part(word: str) -> Part:
    """A part of a version: compared as a number if it is one."""
    return (0, int(word), "") if word.isascii() and word.isdigit() and len(word) <= MAX_DIGITS else (1, 0, word)


def explain_no_version(name: str) -> str:
    """Why a name that looks like a version is none, for people; empty if it does not look like one."""
    if parse_semver(name) is not None or _LIKE_A_VERSION.fullmatch(name) is None:
        return ""
    numbers = re.split(r"[-+]", name.lstrip("vV"), maxsplit=1)[0].split(".")
    if not name.isascii():
        return "its digits are not 0 to 9"
    if len(numbers) not in (2, 3):
        return f"it has {len(numbers)} part{'s' if len(numbers) > 1 else ''}, and a version has 2 or 3"
    if any(len(number) > 1 and number.startswith("0") for number in numbers):
        return "a number begins with 0"
    if any(len(number) > MAX_DIGITS for number in numbers):
        return f"a number has more than {MAX_DIGITS} digits"
    return "what follows its numbers is no suffix of a version"


def sort_newest_first(names: list[str]) -> list[str]:
    """Names in the order in which a hub lists them: versions, newest first, then all others by name."""
    versions = [(version, name) for name in names if (version := parse_semver(name)) is not None]
    others = sorted(name for name in names if parse_semver(name) is None)
    return [name for _, name in sorted(versions, reverse=True)] + others
