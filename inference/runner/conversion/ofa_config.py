"""Reads and checks the configuration of a published OFA: listed keys, supported values, no contradictions."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from common.engine_files import CONFIGURATION, describe_unknown_sections
from common.source import ConversionRefused
from inference.runner.conversion.config_file import ConfigSection, SizeKey, read_section
from inference.runner.conversion.declared_hash import read_weights_hash
from inference.runner.engines.ofa.config import DecoderPrompt

ARCHITECTURE = "config.json"
PREPROCESSOR = "preprocessor_config.json"
MAX_DISTANCE_POSITIONS = 1024  # size of the text distance table, fixed in the original implementation
_RESNETS: Mapping[str, tuple[int, int, int]] = {
    # Bottlenecks of each stage; OFA uses bottlenecks in all variants and leaves out the last stage.
    "resnet18": (2, 2, 2),
    "resnet34": (3, 4, 6),
    "resnet50": (3, 4, 6),
    "resnet101": (3, 4, 23),
    "resnet152": (3, 8, 36),
}
_RESNET = "resnet101"
# The stock configuration knows two keys under a second name, which wins over the first.
_ALIASES = {"d_model": "hidden_size", "encoder_attention_heads": "num_attention_heads"}
# Keys of sizes, by the field of Architecture.
_SIZES = {
    "d_model": "width",
    "encoder_layers": "encoder_layers",
    "encoder_attention_heads": "encoder_heads",
    "encoder_ffn_dim": "encoder_ffn",
    "decoder_layers": "decoder_layers",
    "decoder_attention_heads": "decoder_heads",
    "decoder_ffn_dim": "decoder_ffn",
    "vocab_size": "vocabulary",
    "token_bucket_size": "text_buckets",
    "image_bucket_size": "image_buckets",
}
_SWITCHES: tuple[tuple[str, bool, bool], ...] = (
    # key, default, supported value
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
SEARCH_NOTE = (
    "model.gen_type is 'generation': ModelScope's pipeline searches for one answer and scores it 1.0; here all three"
    " answers are scored, and the best one is the same"
)
_Triple = tuple[float, float, float]
_HALF: _Triple = (0.5, 0.5, 0.5)
_IMAGENET: tuple[_Triple, _Triple] = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclass(frozen=True, slots=True)
class Architecture:
    """The network, from `config.json`."""

    width: int
    encoder_layers: int
    encoder_heads: int
    encoder_ffn: int
    decoder_layers: int
    decoder_heads: int
    decoder_ffn: int
    vocabulary: int  # rows of the token embedding
    positions: int  # rows of the text position embedding
    text_buckets: int
    image_buckets: int
    code_window: int  # patches a side of a generated picture, which this engine does not support
    resnet_blocks: tuple[int, int, int]
    scale_factor: float  # of attention scores
    scales_embedding: bool
    has_type_embedding: bool  # text and picture tokens have a type embedding
    shares_bias: bool  # all layers share one relative-position table
    is_tied: bool  # the output projection is the token embedding
    has_code_norm: bool
    pad_token: int
    notes: tuple[str, ...] = field(default=(), compare=False)  # for display
    sizes: tuple[SizeKey, ...] = field(default=(), compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class PipelineConfig:
    """Pre- and postprocessing, from `configuration.json` and `preprocessor_config.json`."""

    image_size: int
    image_mean: _Triple
    image_deviation: _Triple
    max_prompt_tokens: int
    decoder_prompt: DecoderPrompt
    answer_map: str  # name of a file of the revision
    notes: tuple[str, ...]  # for display
    weights_hash: object = None  # that the publisher states


def read_architecture(folder: Path) -> Architecture:
    """Read `config.json`; ignores unlisted keys such as `resnet_model_path`.

    Raises:
        ConversionRefused: a value is not supported.
    """
    keys = read_section(folder, ARCHITECTURE, _ALIASES)
    keys.get_choice("model_type", "ofa", ("ofa",))
    keys.get_choice("activation_function", "gelu", ("gelu",))
    for key, default, supported in _SWITCHES:
        keys.get_choice(key, default, (supported,))
    for key in ("quantization_config", "pruned_heads"):
        if keys.get(key):
            keys.refuse(key, keys.get(key), "no such key")
    width = keys.get_count("d_model", 512, 8, 8192)
    encoder_heads, decoder_heads = (
        _read_heads(keys, f"{side}_attention_heads", width) for side in ("encoder", "decoder")
    )
    architecture = Architecture(
        width=width,
        encoder_layers=keys.get_count("encoder_layers", 4, 1, 96),
        encoder_heads=encoder_heads,
        encoder_ffn=keys.get_count("encoder_ffn_dim", 2048, 1, 65536),
        decoder_layers=keys.get_count("decoder_layers", 4, 1, 96),
        decoder_heads=decoder_heads,
        decoder_ffn=keys.get_count("decoder_ffn_dim", 2048, 1, 65536),
        vocabulary=keys.get_count("vocab_size", 59457, 5, 1 << 20),
        positions=keys.get_count("max_position_embeddings", 1024, 1, 8192) + 2,
        text_buckets=keys.get_count("token_bucket_size", 256, 2, 1024),
        image_buckets=keys.get_count("image_bucket_size", 42, 1, 128),
        code_window=keys.get_count("code_image_size", 128, 8, 4096) // 8,
        resnet_blocks=_RESNETS[str(keys.get_choice("resnet_type", _RESNET, tuple(_RESNETS)))],
        scale_factor=keys.get_number("attn_scale_factor", 2.0, 0.01, 100.0),
        scales_embedding=keys.get_flag("scale_embedding", default=False),
        has_type_embedding=keys.get_flag("add_type_embedding", default=True),
        shares_bias=keys.get_flag("share_attn_bias", default=False),
        is_tied=keys.get_flag("share_decoder_input_output_embed", default=True),
        has_code_norm=keys.get_flag("code_layernorm_embedding", default=True),
        pad_token=keys.get_count("pad_token_id", 1, 0, 1 << 20),
    )
    notes = (*_describe_architecture(keys), *keys.describe_misspelt())
    return replace(architecture, notes=notes, sizes=_list_sizes(keys, architecture))


def _list_sizes(keys: ConfigSection, architecture: Architecture) -> tuple[SizeKey, ...]:
    """The sizes with their keys."""
    sizes = [keys.get_size(key, field, getattr(architecture, field)) for key, field in _SIZES.items()]
    return (
        *sizes,
        keys.get_size("max_position_embeddings", "positions", architecture.positions, extra=2),
        keys.get_size("resnet_type", "resnet_blocks", architecture.resnet_blocks, named=_RESNETS),
    )


def _describe_architecture(keys: ConfigSection) -> list[str]:
    """Notes about keys that say something twice, or name other files."""
    notes = []
    for key, alias in _ALIASES.items():
        if alias in keys.values and keys.values.get(key, keys.values[alias]) != keys.values[alias]:
            values = f"{alias} {keys.values[alias]!r}, not {key} {keys.values[key]!r}"
            notes.append(f"{keys.location}{values}, counts, as in ModelScope's pipeline")
    if keys.values.get("resnet_model_path") is not None:
        notes.append(f"{keys.location}resnet_model_path is not followed; the weight file has all tensors")
    return notes


def read_pipeline(folder: Path, architecture: Architecture) -> PipelineConfig:
    """Read how inputs are prepared and answers chosen.

    Both values of `gen_type` give the same label as scoring all three answers, so settings of the beam search are
    ignored.

    Raises:
        ConversionRefused: a value is not supported, or two values contradict each other.
    """
    top = read_section(folder, CONFIGURATION)
    top.get_choice("framework", "pytorch", ("pytorch",))
    top.get_choice("task", None, ("visual-entailment",))
    keys = top.get_section("model")
    keys.get_choice("type", None, ("ofa",))
    keys.get_choice("language", "en", ("en",))
    keys.get_choice("multimodal_type", "default", ("default",))
    generation = keys.get_choice("gen_type", "generation", ("traverse", "generation"))
    if "prompt" in keys.values:
        keys.refuse("prompt", keys.values["prompt"], "no such key; the prompts are fixed")
    image_size, mean, deviation = _read_picture(keys)
    if -(-image_size // 16) > architecture.image_buckets:
        most = f"at most 16 × image_bucket_size = {16 * architecture.image_buckets}"
        keys.refuse("patch_image_size", image_size, most, [(f"{ARCHITECTURE}: ", "image_bucket_size")])
    longest = min(architecture.positions, MAX_DISTANCE_POSITIONS) - 2
    return PipelineConfig(
        image_size=image_size,
        image_mean=mean,
        image_deviation=deviation,
        max_prompt_tokens=keys.get_count("max_src_length", 256, 1, longest),
        decoder_prompt=DecoderPrompt(str(keys.get_choice("prompt_type", "none", [one.value for one in DecoderPrompt]))),
        answer_map=_find_answer_map(keys, top),
        notes=(
            *architecture.notes,
            *([SEARCH_NOTE] if generation == "generation" else []),
            *_describe_pipeline(keys, top),
            *keys.describe_misspelt(),
            *top.describe_misspelt(),
            *describe_unknown_sections(top.values),
            *_describe_preprocessor(folder, image_size, mean, deviation),
        ),
        weights_hash=read_weights_hash(top),
    )


def _describe_pipeline(keys: ConfigSection, top: ConfigSection) -> list[str]:
    """Notes about keys in unusual places."""
    notes = []
    if not keys.values.get("answer2label"):
        notes.append(f"{top.location}answer2label is read at the top level; ModelScope's pipeline reads it under model")
    dataset = top.values.get("dataset")
    columns = dataset.get("column_map") if isinstance(dataset, Mapping) else None
    renamed = [key for key, value in columns.items() if key != value] if isinstance(columns, Mapping) else []
    if {"image", "text", "text2"} & set(renamed):
        names = ", ".join(f"{key} is {str(columns[key])[:40]!r}" for key in renamed) if columns else ""
        notes.append(
            f"{top.location}dataset.column_map ({names}) renames inputs of ModelScope's pipeline, not of calls here"
        )
    return notes


def _read_picture(keys: ConfigSection) -> tuple[int, _Triple, _Triple]:
    """Size, mean and deviation of pictures."""
    mean, deviation = _IMAGENET if keys.get_flag("imagenet_default_mean_and_std", default=False) else (_HALF, _HALF)
    return keys.get_count("patch_image_size", 480, 16, 2048), mean, deviation


def _describe_preprocessor(folder: Path, size: int, mean: _Triple, deviation: _Triple) -> list[str]:
    """A note about preprocessor_config.json, which ModelScope's pipeline does not read."""
    if not (folder / PREPROCESSOR).is_file():
        return []
    ignored = f"{PREPROCESSOR}: ignored, as by ModelScope's pipeline"
    used = {
        **dict.fromkeys(("image_size", "size"), size),
        **dict.fromkeys(("image_mean", "mean"), mean),
        **dict.fromkeys(("image_std", "std"), deviation),
    }
    try:
        values = read_section(folder, PREPROCESSOR).values
    except ConversionRefused:
        return [f"{ignored}; it is not a JSON object"]
    other = [
        f"{key} {json.dumps(values[key])[:60]}"
        for key in used
        if key in values and values[key] not in _alike(used[key])
    ]
    if not other:
        return [ignored]
    scaled = f"pictures are scaled to {size} × {size} and normalised by mean {list(mean)}, std {list(deviation)}"
    return [f"{ignored}: {', '.join(other)} do not apply; by {CONFIGURATION} {scaled}"]


def _alike(value: object) -> list[object]:
    """Ways to write a side or a triple."""
    if isinstance(value, tuple):
        return [list(value)]
    return [value, {"height": value, "width": value}]


def _read_heads(keys: ConfigSection, key: str, width: int) -> int:
    heads = keys.get_count(key, 8, 1, 256)
    if width % heads:
        keys.refuse(key, heads, f"a divisor of d_model = {width}", [(keys.location, "d_model")])
    return heads


def _find_answer_map(keys: ConfigSection, top: ConfigSection) -> str:
    """Name of the file that maps answers to labels, from `model` or the top level."""
    name = keys.get("answer2label") or top.get("answer2label")
    if not isinstance(name, str) or not name or "/" in name or "\0" in name or name in {".", ".."}:
        keys.refuse("answer2label", name, "the name of a file of the revision")
    return name
