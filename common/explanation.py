"""What would be read of a published folder: every file, configuration key and group of tensors, for people."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from common.durable import read_bounded, write_atomic
from common.json_load import load_json

EXPLANATION_NAME = "explanation.json"
MAX_EXPLANATION_BYTES = 4 << 20


class Use(StrEnum):
    """Whether the engine uses a part of a model."""

    USED = "used"
    IGNORED = "ignored"
    REFUSED = "refused"
    MISSING = "missing"
    UNREAD = "not looked at"  # since the import stopped before


@dataclass(frozen=True, slots=True)
class ExplainedPart:
    """One file, key, or group of tensors."""

    kind: str  # "file", "key" or "tensors"
    name: str  # for example "config.json: d_model"
    use: Use
    detail: str  # a value, a size, or why it is refused
    stock: str  # what the publishing library's pipeline does with it


@dataclass(frozen=True, slots=True)
class Explanation:
    """A whole folder."""

    engine: str  # empty if none serves it
    parts: tuple[ExplainedPart, ...]
    notes: tuple[str, ...]  # in whole sentences, as the bundle would keep them
    refusals: tuple[str, ...]  # what must be changed before it can be imported; empty: it can be
    is_complete: bool = True  # whether everything was looked at, the weights' numbers included


def write_explanation(folder: Path, explanation: Explanation) -> None:
    """Write the explanation into a folder."""
    write_atomic(folder / EXPLANATION_NAME, json.dumps(asdict(explanation), ensure_ascii=False).encode())


def read_explanation(folder: Path) -> Explanation:
    """Read an explanation.

    Raises:
        OSError: there is none.
        ValueError, KeyError, TypeError: it is malformed.
    """
    row: Mapping[str, Any] = load_json(read_bounded(folder / EXPLANATION_NAME, MAX_EXPLANATION_BYTES))
    parts = tuple(ExplainedPart(**{**part, "use": Use(part["use"])}) for part in row["parts"])
    return Explanation(str(row["engine"]), parts, tuple(row["notes"]), tuple(row["refusals"]), bool(row["is_complete"]))
