"""Layout of a sealed OFA bundle: `engine.json`, the names of its files and of the tensors in `model.safetensors`."""

import json
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from pathlib import Path

from common.durable import read_bounded
from common.json_load import load_json

CONFIG_NAME = "engine.json"
WEIGHTS_NAME = "model.safetensors"
VOCABULARY_NAME = "vocab.json"
MERGES_NAME = "merges.txt"
ADDED_WORDS_NAME = "added_words.json"  # id by word; only in bundles whose vocabulary has added words
OFA_CONFIG_SCHEMA = 1
LABELS = ("yes", "no", "maybe")  # in this order everywhere in the engine
MAX_CONFIG_BYTES = 1 << 20
# Parameters of `OfaModel` whose names in model.safetensors differ. The file keeps the names of layout "ofa-1", so that
# bundles can be read by builds on both sides of an upgrade.
_STORED_NAMES = {
    "image_encoder": "eyes",
    "token_embedding": "words",
    "text_type_embedding": "text_kind",
    "answer_embeddings": "answers",
}
_MULTI_TOKEN_KEYS = {"answer_stem", "answer_forks"}


def stored_name(parameter: str) -> str:
    """Return the name in `model.safetensors` of a parameter of `OfaModel`."""
    module, dot, rest = parameter.partition(".")
    return _STORED_NAMES.get(module, module) + dot + rest


class DecoderPrompt(StrEnum):
    """Tokens that the decoder reads before the answer; values of the source's `prompt_type`."""

    BEGIN = "none"  # the begin token alone
    SOURCE = "prev_output"  # the encoder's prompt without its end token
    WHOLE = "src"  # the encoder's prompt with its end token


@dataclass(frozen=True, slots=True)
class Fork:
    """A position at which the answers' tokens differ, after the tokens that they share."""

    read: int  # tokens of the stem before this position
    choices: tuple[int, int, int]  # row of `answer_embeddings` that each of LABELS continues with; -1 if it left before


ONE_TOKEN_EACH = (Fork(0, (0, 1, 2)),)


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Content of `engine.json`. All counts are at least 1."""

    width: int  # of every token, `d_model`
    encoder_layers: int
    encoder_heads: int
    encoder_ffn: int
    decoder_layers: int
    decoder_heads: int
    decoder_ffn: int
    vocabulary: int  # rows of the token embedding
    resnet_blocks: tuple[int, int, int]  # bottlenecks of each stage
    image_size: int  # pixels a side
    image_mean: tuple[float, float, float]  # of each channel, scaled to 0..1
    image_deviation: tuple[float, float, float]
    max_prompt_tokens: int  # longer prompts are truncated; begin and end token not counted
    decoder_prompt: DecoderPrompt
    begin_token: int
    pad_token: int
    end_token: int
    answer_stem: tuple[int, ...] = ()  # tokens that answers share, up to the last fork
    answer_forks: tuple[Fork, ...] = ONE_TOKEN_EACH

    @property
    def patches(self) -> int:
        """Picture tokens: the ResNet halves each side four times and rounds up."""
        return self.patches_a_side**2

    @property
    def patches_a_side(self) -> int:
        """Rows (and columns) of picture tokens."""
        return -(-self.image_size // 16)

    @property
    def max_text_tokens(self) -> int:
        """Longest text of the encoder: the truncated prompt, begin and end token."""
        return self.max_prompt_tokens + 2

    @property
    def widest_row(self) -> int:
        """Elements of one row in the widest activation of a layer."""
        return (self.patches + self.max_text_tokens) * max(self.encoder_ffn, self.decoder_ffn)

    @property
    def max_decoder_tokens(self) -> int:
        """Longest text of the decoder: its prompt and the answers' stem."""
        return self.max_text_tokens + len(self.answer_stem)

    @property
    def answer_rows(self) -> int:
        """Rows of `answer_embeddings`: the tokens that an answer can continue with at a fork."""
        return 1 + max(max(fork.choices) for fork in self.answer_forks)


def to_json(config: EngineConfig) -> bytes:
    """Return the content of `engine.json`; keys of multi-token answers are left out where every answer is one token."""
    content = asdict(config)
    if not config.answer_stem and config.answer_forks == ONE_TOKEN_EACH:
        content = {name: value for name, value in content.items() if name not in _MULTI_TOKEN_KEYS}
    return json.dumps({"schema_version": OFA_CONFIG_SCHEMA, **content}, indent=1).encode() + b"\n"


def read_config(folder: Path) -> EngineConfig:
    """Read `engine.json` of a sealed bundle.

    Raises:
        ValueError: the file is malformed or has another schema version.
        OSError: the file cannot be read.
    """
    row = load_json(read_bounded(folder / CONFIG_NAME, MAX_CONFIG_BYTES))
    if not isinstance(row, dict) or row.pop("schema_version", None) != OFA_CONFIG_SCHEMA:
        raise ValueError(f"{CONFIG_NAME} is not of schema version {OFA_CONFIG_SCHEMA}")
    names = {field.name for field in fields(EngineConfig)}
    if set(row) | _MULTI_TOKEN_KEYS != names:
        raise ValueError(f"{CONFIG_NAME} has wrong keys: {', '.join(sorted(names ^ set(row)))}")
    for name in ("resnet_blocks", "image_mean", "image_deviation"):
        row[name] = tuple(row[name])
    if _MULTI_TOKEN_KEYS & set(row):
        row["answer_stem"] = tuple(row["answer_stem"])
        row["answer_forks"] = tuple(Fork(fork["read"], tuple(fork["choices"])) for fork in row["answer_forks"])
    return EngineConfig(**{**row, "decoder_prompt": DecoderPrompt(row["decoder_prompt"])})
