"""What a sealed bundle says of itself beside its files: where it came from, what was checked, and what callers meet.

All of it is for people and for comparing; no digest covers it, and bundles of an older hotslot lack it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

CONVERSION_CHECK = "14 weights and configuration"  # what no bundle is sealed without, as the list calls it


class HubKind(StrEnum):
    """What a revision was taken from."""

    FOLDER = "folder"  # a folder hub
    MODELSCOPE = "modelscope"  # a hub that speaks ModelScope's protocol
    IMPORT = "import"  # a folder, brought in by hand


@dataclass(frozen=True, slots=True)
class HubPlace:
    """Where on which hub a model's revisions lie."""

    kind: HubKind
    model: str  # as the hub calls it, for example "iic/ofa_visual-entailment_snli-ve_large_en"
    endpoint: str = ""  # host, and port if it is not the scheme's own; empty where nothing is asked over a network


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where the files of a bundle came from, and what they passed."""

    place: HubPlace
    revision: str  # as the hub called it when it was fetched
    fetched_at: str  # RFC 3339, UTC, of our wall clock
    verified_at: str  # the same; empty if the list was never run over it (an import by hand)
    checked: tuple[str, ...]  # numbers and names of the list, as they were then; see docs/verification.md


@dataclass(frozen=True, slots=True)
class Interface:
    """What callers would notice if it changed from one revision to the next."""

    model_type: str  # `model.type` of the source's configuration
    picture_size: int  # pixels a side that pictures are scaled to; 0 where none are taken
    labels: tuple[str, ...]  # in the order of the source's own numbers


def provenance_of(row: Mapping[str, Any]) -> Provenance:
    """What `dataclasses.asdict` made of it, back again.

    Raises:
        KeyError, TypeError, ValueError: it is none.
    """
    place = place_of(row["place"])
    plain = {key: str(row[key]) for key in ("revision", "fetched_at", "verified_at")}
    return Provenance(place=place, checked=tuple(map(str, row["checked"])), **plain)


def place_of(row: Mapping[str, Any]) -> HubPlace:
    """What `dataclasses.asdict` made of it, back again.

    Raises:
        KeyError, TypeError, ValueError: it is none.
    """
    return HubPlace(HubKind(row["kind"]), str(row["model"]), str(row["endpoint"]))


def rfc3339(at: datetime) -> str:
    """A time as a bundle says it: UTC, to the second."""
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def interface_of(row: Mapping[str, Any]) -> Interface:
    """What `dataclasses.asdict` made of it, back again.

    Raises:
        KeyError, TypeError, ValueError: it is none.
    """
    return Interface(str(row["model_type"]), int(row["picture_size"]), tuple(map(str, row["labels"])))
