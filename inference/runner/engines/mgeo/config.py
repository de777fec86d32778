"""Layout of a sealed MGeo bundle: `engine.json` and the names of its files."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from common.durable import read_bounded
from common.json_load import load_json

CONFIG_NAME = "engine.json"
WEIGHTS_NAME = "model.safetensors"
VOCABULARY_NAME = "vocab.txt"
MGEO_CONFIG_SCHEMA = 1
MAX_CONFIG_BYTES = 1 << 20
MAX_VOCABULARY_BYTES = 32 << 20


@dataclass(frozen=True, slots=True)
class WordRules:
    """How a text is cut into words and pieces."""

    lowercase: bool
    strip_accents: bool
    split_ideographs: bool  # each is a word of its own
    by_character: bool  # every character is a word of its own; else blanks, punctuation and ideographs end a word
    unknown: str  # the token of a word that the vocabulary does not have


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Content of `engine.json`. All counts are at least 1."""

    width: int  # of every token
    layers: int
    heads: int
    ffn: int
    vocabulary: int  # rows of the token embedding
    activation: str  # "gelu" or "relu"
    norm_epsilon: float
    window: int  # tokens that the model reads at once, begin and end token included; rows of the position embedding
    labels: tuple[str, ...]  # by label number
    begin_token: int
    end_token: int
    words: WordRules


def to_json(config: EngineConfig) -> bytes:
    """Return the content of `engine.json`."""
    row = {"schema_version": MGEO_CONFIG_SCHEMA, **asdict(config)}
    return json.dumps(row, indent=1, ensure_ascii=False).encode() + b"\n"


def read_config(folder: Path) -> EngineConfig:
    """Read `engine.json` of a sealed bundle.

    Raises:
        ValueError: the file is malformed or has another schema version.
        OSError: the file cannot be read.
    """
    row = load_json(read_bounded(folder / CONFIG_NAME, MAX_CONFIG_BYTES))
    if not isinstance(row, dict) or row.pop("schema_version", None) != MGEO_CONFIG_SCHEMA:
        raise ValueError(f"{CONFIG_NAME} is not of schema version {MGEO_CONFIG_SCHEMA}")
    _check_keys(row, {field.name for field in fields(EngineConfig)})
    words = row["words"]
    if not isinstance(words, dict):
        raise ValueError(f"{CONFIG_NAME}: words is not an object")
    _check_keys(words, {field.name for field in fields(WordRules)})
    return EngineConfig(**{**row, "labels": tuple(row["labels"]), "words": WordRules(**words)})


def _check_keys(row: Mapping[str, object], names: set[str]) -> None:
    if set(row) != names:
        raise ValueError(f"{CONFIG_NAME} has wrong keys: {', '.join(sorted(names ^ set(row)))}")
