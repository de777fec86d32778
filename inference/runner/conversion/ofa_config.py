"""What the configuration of a published OFA says, checked: allow-listed keys, supported values, no contradictions."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from common.durable import read_bounded
from common.engine_files import CONFIGURATION, MAX_CONFIG_BYTES
from common.source import ConversionRefused
from inference.runner.engines.ofa.config import DecoderPrompt

_SHOWN = 80  # characters of a foreign value that a sentence repeats


@dataclass(frozen=True, slots=True)
class Keys:
    """One object of one configuration file."""

    place: str  # for sentences, for example "configuration.json: model."
    values: Mapping[str, object]

    def count(self, key: str, default: int | None, lowest: int, highest: int) -> int:
        """An integer in a range; required if there is no default."""
        value = self.values.get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or not lowest <= value <= highest:
            self.refuse(key, value, f"an integer from {lowest} to {highest}")
        return value

    def number(self, key: str, default: float, lowest: float, highest: float) -> float:
        """A number in a range."""
        value = self.values.get(key, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not lowest <= value <= highest:
            self.refuse(key, value, f"a number from {lowest:g} to {highest:g}")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:  # noqa: FBT001 - the flag is the value itself
        """True or false."""
        value = self.values.get(key, default)
        if not isinstance(value, bool):
            self.refuse(key, value, "true or false")
        return value

    def choice(self, key: str, default: object, supported: Sequence[object]) -> object:
        """One of some values; 1 is no true."""
        value = self.values.get(key, default)
        if not any(type(value) is type(one) and value == one for one in supported):
            self.refuse(key, value, ", ".join(json.dumps(one) for one in supported))
        return value

    def triple(self, key: str) -> tuple[float, float, float] | None:
        """Three numbers, or None if the key is not there."""
        value = self.values.get(key)
        if value is None:
            return None
        numbers = [float(one) for one in value if isinstance(one, int | float)] if isinstance(value, list) else []
        if len(numbers) != 3:  # noqa: PLR2004 - a triple
            self.refuse(key, value, "three numbers")
        return numbers[0], numbers[1], numbers[2]

    def within(self, key: str) -> "Keys":
        """The object under a key; empty if it is not there."""
        value = self.values.get(key, {})
        if not isinstance(value, Mapping):
            self.refuse(key, value, "an object")
        return Keys(f"{self.place}{key}.", value)

    def refuse(self, key: str, value: object, supported: str) -> NoReturn:
        """Say what was found and what would do."""
        message = f"{self.place}{key} is {repr(value)[:_SHOWN]}, supported: {supported}"
        raise ConversionRefused("CONFIG_UNSUPPORTED", message)


def read_keys(folder: Path, name: str) -> Keys:
    """Read a configuration file.

    Raises:
        ConversionRefused: it is no JSON object of a sensible size.
        OSError: it cannot be read.
    """
    return Keys(f"{name}: ", read_object(folder, name, MAX_CONFIG_BYTES))


def read_object(folder: Path, name: str, max_bytes: int) -> dict[str, object]:
    """Read a JSON object.

    Raises:
        ConversionRefused: it is none, or larger than `max_bytes`.
        OSError: it cannot be read.
    """
    try:
        row = json.loads(read_bounded(folder / name, max_bytes))
    except (ValueError, RecursionError) as error:
        raise ConversionRefused("CONFIG_BROKEN", f"{name} is no JSON: {str(error)[:_SHOWN]}") from error
    if not isinstance(row, dict):
        raise ConversionRefused("CONFIG_BROKEN", f"{name} holds no object")
    return row


ARCHITECTURE = "config.json"
PREPROCESSOR = "preprocessor_config.json"
MAX_DISTANCE_POSITIONS = 1024  # of the table of text distances, whatever the configuration says
_RESNETS: Mapping[str, tuple[int, int, int]] = {
    # Bottlenecks in all of them, whatever their names promise elsewhere; the last stage is left out.
    "resnet18": (2, 2, 2),
    "resnet34": (3, 4, 6),
    "resnet50": (3, 4, 6),
    "resnet101": (3, 4, 23),
    "resnet152": (3, 8, 36),
}
_SWITCHES: tuple[tuple[str, bool, bool], ...] = (
    # key, default, the only value that is supported
    ("normformer", True, True),
    ("encoder_normalize_before", True, True),
    ("decoder_normalize_before", True, True),
    ("layernorm_embedding", True, True),
    ("patch_layernorm_embedding", True, True),
    ("use_image_feature", True, True),
    ("entangle_position_embedding", False, False),
    ("interpolate_position", False, False),
    ("use_ofasys", False, False),
    ("use_gamma_feature", False, False),
)
SEARCHED = (
    "model.gen_type is 'generation': where the stock pipeline searches for one answer and scores it 1.0, here all"
    " three are scored, and the best is the same"
)
_Triple = tuple[float, float, float]
_HALF: _Triple = (0.5, 0.5, 0.5)
_IMAGENET: tuple[_Triple, _Triple] = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclass(frozen=True, slots=True)
class Architecture:
    """What `config.json` says of the network."""

    width: int
    encoder_layers: int
    encoder_heads: int
    encoder_ffn: int
    decoder_layers: int
    decoder_heads: int
    decoder_ffn: int
    vocabulary: int  # rows of the embedding
    positions: int  # rows of a text position embedding
    text_buckets: int
    image_buckets: int
    code_window: int  # patches a side of a picture that is drawn, which we never do
    resnet_blocks: tuple[int, int, int]
    scale_factor: float  # of attention
    scales_embedding: bool
    has_kinds: bool  # text and picture tokens are told apart
    shares_bias: bool  # one table of distances for all layers
    is_tied: bool  # the output's rows are the embedding's
    has_code_norm: bool
    pad_token: int


@dataclass(frozen=True, slots=True)
class Pipeline:
    """What `configuration.json` and `preprocessor_config.json` say of the work around the network."""

    image_size: int
    image_mean: _Triple
    image_deviation: _Triple
    max_prompt_tokens: int
    decoder_prompt: DecoderPrompt
    answer_map: str  # name of a file
    is_searched: bool  # by the stock pipeline, with a beam; we score all answers

    @property
    def notes(self) -> tuple[str, ...]:
        """What people should know of how answers come about."""
        return (SEARCHED,) if self.is_searched else ()


def read_architecture(folder: Path) -> Architecture:
    """Read `config.json`; `resnet_model_path` and all other unlisted keys are never looked at.

    Raises:
        ConversionRefused: a value that this engine does not compute.
    """
    keys = read_keys(folder, ARCHITECTURE)
    keys.choice("model_type", "ofa", ("ofa",))
    keys.choice("activation_function", "gelu", ("gelu",))
    for key, default, supported in _SWITCHES:
        keys.choice(key, default, (supported,))
    width = keys.count("d_model", 512, 8, 8192)
    encoder_heads, decoder_heads = (_heads(keys, f"{side}_attention_heads", width) for side in ("encoder", "decoder"))
    return Architecture(
        width=width,
        encoder_layers=keys.count("encoder_layers", 4, 1, 96),
        encoder_heads=encoder_heads,
        encoder_ffn=keys.count("encoder_ffn_dim", 2048, 1, 65536),
        decoder_layers=keys.count("decoder_layers", 4, 1, 96),
        decoder_heads=decoder_heads,
        decoder_ffn=keys.count("decoder_ffn_dim", 2048, 1, 65536),
        vocabulary=keys.count("vocab_size", 59457, 5, 1 << 20),
        positions=keys.count("max_position_embeddings", 1024, 1, 8192) + 2,
        text_buckets=keys.count("token_bucket_size", 256, 2, 1024),
        image_buckets=keys.count("image_bucket_size", 42, 1, 128),
        code_window=keys.count("code_image_size", 128, 8, 4096) // 8,
        resnet_blocks=_RESNETS[str(keys.choice("resnet_type", "resnet101", tuple(_RESNETS)))],
        scale_factor=keys.number("attn_scale_factor", 2.0, 0.01, 100.0),
        scales_embedding=keys.flag("scale_embedding", default=False),
        has_kinds=keys.flag("add_type_embedding", default=True),
        shares_bias=keys.flag("share_attn_bias", default=False),
        is_tied=keys.flag("share_decoder_input_output_embed", default=True),
        has_code_norm=keys.flag("code_layernorm_embedding", default=True),
        pad_token=keys.count("pad_token_id", 1, 0, 1 << 20),
    )


def read_pipeline(folder: Path, architecture: Architecture) -> Pipeline:
    """Read how pictures and words are prepared.

    Both ways of choosing an answer are served by scoring all three, which gives the same label;
    settings of the beam search are therefore not looked at.

    Raises:
        ConversionRefused: a value that is not supported, or two that contradict each other.
    """
    top = read_keys(folder, CONFIGURATION)
    top.choice("framework", "pytorch", ("pytorch",))
    top.choice("task", None, ("visual-entailment",))
    keys = top.within("model")
    keys.choice("type", None, ("ofa",))
    keys.choice("language", "en", ("en",))
    keys.choice("multimodal_type", "default", ("default",))
    way = keys.choice("gen_type", "generation", ("traverse", "generation"))
    if "prompt" in keys.values:
        keys.refuse("prompt", keys.values["prompt"], "no such key: the model's own two prompts")
    image_size, mean, deviation = _read_picture(folder, keys)
    if -(-image_size // 16) > architecture.image_buckets:
        keys.refuse(
            "patch_image_size", image_size, f"at most 16 × image_bucket_size = {16 * architecture.image_buckets}"
        )
    longest = min(architecture.positions, MAX_DISTANCE_POSITIONS) - 2
    return Pipeline(
        image_size=image_size,
        image_mean=mean,
        image_deviation=deviation,
        max_prompt_tokens=keys.count("max_src_length", 256, 1, longest),
        decoder_prompt=DecoderPrompt(str(keys.choice("prompt_type", "none", [one.value for one in DecoderPrompt]))),
        answer_map=_answer_map(keys, top),
        is_searched=way == "generation",
    )


def _read_picture(folder: Path, keys: Keys) -> tuple[int, _Triple, _Triple]:
    """Size, mean and deviation, from whichever file says them; if both do, they must agree."""
    key = "imagenet_default_mean_and_std"
    mean, deviation = _IMAGENET if keys.flag(key, default=False) else (_HALF, _HALF)
    size = keys.count("patch_image_size", 480, 16, 2048)
    if not (folder / PREPROCESSOR).is_file():
        return size, mean, deviation
    other = read_keys(folder, PREPROCESSOR)
    for name in ("image_size", "size"):
        if name in other.values:
            found = _square(other, name)
            if "patch_image_size" in keys.values and found != size:
                other.refuse(name, found, f"{size}, as {CONFIGURATION}: model.patch_image_size says")
            size = found
    found_mean = other.triple("image_mean") or other.triple("mean")
    found_deviation = other.triple("image_std") or other.triple("std")
    for name, found_triple, said in (("mean", found_mean, mean), ("std", found_deviation, deviation)):
        if found_triple and key in keys.values and found_triple != said:
            other.refuse(name, found_triple, f"{said}, as {CONFIGURATION}: model.{key} says")
    if found_deviation and min(found_deviation) <= 0:
        other.refuse("std", found_deviation, "three positive numbers")
    return size, found_mean or mean, found_deviation or deviation


def _square(keys: Keys, name: str) -> int:
    """A side in pixels, given as a number or as equal height and width."""
    if not isinstance(keys.values[name], Mapping):
        return keys.count(name, None, 16, 2048)
    sides = keys.within(name)
    height, width = sides.count("height", None, 16, 2048), sides.count("width", None, 16, 2048)
    if height != width:
        keys.refuse(name, keys.values[name], "equal height and width")
    return height


def _heads(keys: Keys, key: str, width: int) -> int:
    heads = keys.count(key, 8, 1, 256)
    if width % heads:
        keys.refuse(key, heads, f"a divisor of d_model = {width}")
    return heads


def _answer_map(keys: Keys, top: Keys) -> str:
    """Name of the file that maps answers to labels, said under `model` or at the top."""
    name = keys.values.get("answer2label") or top.values.get("answer2label")
    if not isinstance(name, str) or not name or "/" in name or "\0" in name or name in {".", ".."}:
        keys.refuse("answer2label", name, "the name of a file of the revision")
    return name
