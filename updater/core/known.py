"""Contents of a hub's revisions that a record remembers, beside those in quarantine. Pure."""

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class Replaced:
    """A content that was committed, until another one was: a branch that shows it again is not followed by itself."""

    source_digest: str
    revision: str  # for people
    since: datetime  # for people


@dataclass(frozen=True, slots=True)
class KnownVersion:
    """The source digest of a version when it was first fetched; another digest later raises an alarm."""

    version: str  # canonical, without prefix
    source_digest: str


@dataclass(frozen=True, slots=True)
class ComputedDigest:
    """The source digest of a revision that the hub lists without all hashes, computed when it was fetched."""

    revision: str
    listing: str  # digest of the listing: names, sizes, and the hashes that it has
    source_digest: str
