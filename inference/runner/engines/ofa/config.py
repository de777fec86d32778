"""`engine.json`: all that the OFA engine must know of a model beside its weights and its words."""

import json
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from pathlib import Path

from common.durable import read_bounded

CONFIG_NAME = "engine.json"
WEIGHTS_NAME = "model.safetensors"
VOCABULARY_NAME = "vocab.json"
MERGES_NAME = "merges.txt"
OFA_CONFIG_SCHEMA = 1
LABELS = ("yes", "no", "maybe")  # in this order everywhere in the engine
MAX_CONFIG_BYTES = 1 << 20
_OF_LONGER_ANSWERS = {"answer_stem", "answer_forks"}


class DecoderPrompt(StrEnum):
    """What the decoder has read when it answers; the values of the source's `prompt_type`."""

    BEGIN = "none"  # only the token that begins every text
    SOURCE = "prev_output"  # the encoder's prompt, without its end
    WHOLE = "src"  # the encoder's prompt, with its end


@dataclass(frozen=True, slots=True)
class Fork:
    """A place where answers part, on the way that they have in common until then."""

    read: int  # tokens of the stem that the decoder has read there, after its prompt
    choices: tuple[int, int, int]  # row of `answers` by which each of LABELS goes on; -1 if it left before


ONE_TOKEN_EACH = (Fork(0, (0, 1, 2)),)


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """A visual-entailment OFA, as it was converted. All counts are at least 1."""

    width: int  # of every token, `d_model`
    encoder_layers: int
    encoder_heads: int
    encoder_ffn: int
    decoder_layers: int
    decoder_heads: int
    decoder_ffn: int
    vocabulary: int  # rows of the embedding that text can use
    resnet_blocks: tuple[int, int, int]  # bottlenecks of each stage
    image_size: int  # pixels a side
    image_mean: tuple[float, float, float]  # of a channel scaled to 0..1
    image_deviation: tuple[float, float, float]
    max_prompt_tokens: int  # longer prompts are cut; begin and end come on top
    decoder_prompt: DecoderPrompt
    begin_token: int
    pad_token: int
    end_token: int
    answer_stem: tuple[int, ...] = ()  # tokens that answers have in common, up to the last fork
    answer_forks: tuple[Fork, ...] = ONE_TOKEN_EACH

    @property
    def patches(self) -> int:
        """Picture tokens: the ResNet halves each side four times, rounding up."""
        return self.patches_a_side**2

    @property
    def patches_a_side(self) -> int:
        """Rows, and columns, of the picture's tokens."""
        return -(-self.image_size // 16)

    @property
    def max_text_tokens(self) -> int:
        """Longest text of the encoder: the cut prompt, its begin and its end."""
        return self.max_prompt_tokens + 2

    @property
    def widest_row(self) -> int:
        """Numbers of one row where a layer is widest."""
        return (self.patches + self.max_text_tokens) * max(self.encoder_ffn, self.decoder_ffn)

    @property
    def max_decoder_tokens(self) -> int:
        """Longest text of the decoder: its prompt, and what answers have in common."""
        return self.max_text_tokens + len(self.answer_stem)

    @property
    def answer_rows(self) -> int:
        """Rows of `answers`: the tokens by which an answer can go on at a fork."""
        return 1 + max(max(fork.choices) for fork in self.answer_forks)


def to_json(config: EngineConfig) -> bytes:
    """Content of `engine.json`; keys of longer answers are written where there are any, and else left out."""
    row = asdict(config)
    if not config.answer_stem and config.answer_forks == ONE_TOKEN_EACH:
        row = {name: value for name, value in row.items() if name not in _OF_LONGER_ANSWERS}
    return json.dumps({"schema_version": OFA_CONFIG_SCHEMA, **row}, indent=1).encode() + b"\n"


def read_config(folder: Path) -> EngineConfig:
    """Read `engine.json` of a sealed bundle.

    Raises:
        ValueError: it is malformed, or of a layout that this build does not read.
        OSError: it cannot be read.
    """
    row = json.loads(read_bounded(folder / CONFIG_NAME, MAX_CONFIG_BYTES))
    if not isinstance(row, dict) or row.pop("schema_version", None) != OFA_CONFIG_SCHEMA:
        raise ValueError(f"{CONFIG_NAME} is not of schema version {OFA_CONFIG_SCHEMA}")
    names = {field.name for field in fields(EngineConfig)}
    if set(row) | _OF_LONGER_ANSWERS != names:
        raise ValueError(f"{CONFIG_NAME} has wrong keys: {', '.join(sorted(names ^ set(row)))}")
    for name in ("resnet_blocks", "image_mean", "image_deviation"):
        row[name] = tuple(row[name])
    if _OF_LONGER_ANSWERS & set(row):
        row["answer_stem"] = tuple(row["answer_stem"])
        row["answer_forks"] = tuple(Fork(fork["read"], tuple(fork["choices"])) for fork in row["answer_forks"])
    return EngineConfig(**{**row, "decoder_prompt": DecoderPrompt(row["decoder_prompt"])})
