"""Reads and checks everything of a published OFA except tensor data, without torch.

Names and shapes of the expected tensors follow from the configuration.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from common.engine_files import OFA
from common.source import ConversionRefused, Source, find_source
from inference.runner.conversion.declared_hash import compare_weights
from inference.runner.conversion.fit import ExpectedTensors, Sizes, check_fit, describe_unused
from inference.runner.conversion.ofa_config import (
    ARCHITECTURE,
    MAX_DISTANCE_POSITIONS,
    Architecture,
    PipelineConfig,
    read_architecture,
    read_pipeline,
)
from inference.runner.conversion.ofa_vocabulary import Vocabulary, read_vocabulary
from inference.runner.conversion.state_dict import TensorNames
from inference.runner.conversion.tensor_location import TensorLocations, have_same_content
from inference.runner.conversion.weight_files import LocatedTensors, locate_tensors
from inference.runner.engines.ofa.config import EngineConfig

EMBEDDING = "encoder.embed_tokens.weight"
DECODER_EMBEDDING = "decoder.embed_tokens.weight"
OUTPUT = "decoder.output_projection.weight"
_FEATURES = 1024
_STAGES = ((64, 64), (256, 128), (512, 256))  # input channels, width
Shapes = dict[str, tuple[int, ...]]


def expected_tensors(architecture: Architecture) -> ExpectedTensors:
    """Return the tensors of an architecture."""
    width = architecture.width
    rows = (architecture.vocabulary, width)
    required: Shapes = {**_resnet(architecture), **_encoder(architecture), **_decoder(architecture)}
    optional: Shapes = dict.fromkeys(_batch_norms(architecture), ())
    square = (MAX_DISTANCE_POSITIONS, MAX_DISTANCE_POSITIONS)
    cells = architecture.image_buckets**2 + 1
    for side in ("encoder", "decoder"):
        optional[f"{side}.token_rp_bucket"] = square
        optional[f"{side}.image_rp_bucket"] = (cells, cells)
    # The additional 768 entries are a constant of the original implementation.
    optional["decoder.image_position_idx"] = (architecture.code_window**2 + 1 + 768,)
    tied: Shapes = {DECODER_EMBEDDING: rows}
    (tied if architecture.is_tied else required)[OUTPUT] = rows
    return ExpectedTensors({**required, EMBEDDING: rows}, optional, tied)


def _list_names(expected: ExpectedTensors) -> TensorNames:
    """All names. The stock loader strips "model.", which ModelScope's trainers write."""
    return TensorNames(expected.required, expected.all(), stock_prefix="model.")


def check_tensors(located: LocatedTensors, architecture: Architecture) -> tuple[str, ...]:
    """Compare a source's tensors with the expected ones; returns notes about layers that are not used.

    Raises:
        ConversionRefused: a tensor is missing, of another shape or dtype, or tied tensors differ.
        OSError: tied tensors cannot be read.
    """
    fitted = Sizes(architecture.sizes, lambda changes: expected_tensors(replace(architecture, **changes)))
    check_fit(located, fitted)
    locations = located.locations
    for name in expected_tensors(architecture).tied:
        if name in locations and not have_same_content(locations[name], locations[EMBEDDING]):
            key = "share_decoder_input_output_embed" if name == OUTPUT else ""
            advice = f"; if it has weights of its own, {ARCHITECTURE} must say {key}: false" if key else ""
            message = (
                f"{located.file}: tensor {name} differs from {EMBEDDING}, although the model has one tensor for both"
            )
            raise ConversionRefused("WEIGHTS_BROKEN", message + advice, file=located.file)
    return describe_unused(located, fitted)


def list_blocks(architecture: Architecture) -> list[tuple[str, bool]]:
    """Return prefix of each bottleneck in order, and whether its shortcut has a convolution."""
    return [
        (f"encoder.embed_images.layer{stage + 1}.{block}.", block == 0)
        for stage, count in enumerate(architecture.resnet_blocks)
        for block in range(count)
    ]


def _batch_norms(architecture: Architecture) -> list[str]:
    names = ["encoder.embed_images.bn1."]
    for prefix, reshapes in list_blocks(architecture):
        names += [f"{prefix}bn{number}." for number in (1, 2, 3)]
        names += [f"{prefix}downsample.1."] if reshapes else []
    return [f"{name}num_batches_tracked" for name in names]


def _resnet(architecture: Architecture) -> Shapes:
    shapes = _convolution("encoder.embed_images.conv1", "encoder.embed_images.bn1", (64, 3, 7, 7))
    for stage, count in enumerate(architecture.resnet_blocks):
        channels, width = _STAGES[stage]
        for block in range(count):
            prefix = f"encoder.embed_images.layer{stage + 1}.{block}."
            inputs = width * 4 if block else channels
            shapes |= _convolution(f"{prefix}conv1", f"{prefix}bn1", (width, inputs, 1, 1))
            shapes |= _convolution(f"{prefix}conv2", f"{prefix}bn2", (width, width, 3, 3))
            shapes |= _convolution(f"{prefix}conv3", f"{prefix}bn3", (width * 4, width, 1, 1))
            if not block:
                shapes |= _convolution(f"{prefix}downsample.0", f"{prefix}downsample.1", (width * 4, inputs, 1, 1))
    return shapes


def _convolution(convolution: str, norm: str, shape: tuple[int, int, int, int]) -> Shapes:
    parts = ("weight", "bias", "running_mean", "running_var")
    return {f"{convolution}.weight": shape, **{f"{norm}.{part}": (shape[0],) for part in parts}}


def _linear(name: str, outputs: int, inputs: int) -> Shapes:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _attention(prefix: str, width: int, heads: int) -> Shapes:
    shapes: Shapes = {f"{prefix}.c_attn": (heads,)}
    for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
        shapes |= _linear(f"{prefix}.{part}", width, width)
    return shapes


def _layer(prefix: str, width: int, heads: int, hidden: int, attentions: tuple[str, ...]) -> Shapes:
    shapes = {**_linear(f"{prefix}fc1", hidden, width), **_linear(f"{prefix}fc2", width, hidden)}
    shapes |= {**_norm(f"{prefix}ffn_layer_norm", hidden), **_norm(f"{prefix}final_layer_norm", width)}
    for name in attentions:
        shapes |= _attention(f"{prefix}{name}", width, heads)
        shapes |= _norm(f"{prefix}{name}_layer_norm", width)
        shapes |= _norm(f"{prefix}{name}_mid_layer_norm", width)
    return shapes


def _positions(side: str, architecture: Architecture, linears: tuple[str, ...], layers: int, heads: int) -> Shapes:
    """Tensors that encoder and decoder both have: positions, their norms and projections, relative-position tables."""
    width, buckets = architecture.width, architecture.image_buckets
    shapes: Shapes = {
        f"{side}.embed_positions.weight": (architecture.positions, width),
        f"{side}.embed_image_positions.weight": (buckets**2 + 1, width),
    }
    for norm in ("layernorm_embedding", "pos_ln", "image_pos_ln", "layer_norm"):
        shapes |= _norm(f"{side}.{norm}", width)
    for linear in linears:
        shapes |= _linear(f"{side}.{linear}", width, width)
    for table in range(1 if architecture.shares_bias else layers):
        shapes[f"{side}.token_rel_pos_table_list.{table}.weight"] = (2 * architecture.text_buckets - 1, heads)
        shapes[f"{side}.image_rel_pos_table_list.{table}.weight"] = ((2 * buckets - 1) ** 2 + 3, heads)
    return shapes


def _encoder(architecture: Architecture) -> Shapes:
    width, heads, layers = architecture.width, architecture.encoder_heads, architecture.encoder_layers
    shapes = _positions("encoder", architecture, ("pos_q_linear", "pos_k_linear"), layers, heads)
    shapes |= _linear("encoder.image_proj", width, _FEATURES)
    shapes |= _norm("encoder.patch_layernorm_embedding", width)
    if architecture.has_type_embedding:
        shapes["encoder.type_embedding.weight"] = (2, width)
    for layer in range(layers):
        shapes |= _layer(f"encoder.layers.{layer}.", width, heads, architecture.encoder_ffn, ("self_attn",))
    return shapes


def _decoder(architecture: Architecture) -> Shapes:
    width, heads, layers = architecture.width, architecture.decoder_heads, architecture.decoder_layers
    linears = ("self_pos_q_linear", "self_pos_k_linear", "cross_pos_q_linear", "cross_pos_k_linear")
    shapes = _positions("decoder", architecture, linears, layers, heads)
    if architecture.has_code_norm:
        shapes |= _norm("decoder.code_layernorm_embedding", width)
    for layer in range(layers):
        prefix = f"decoder.layers.{layer}."
        shapes |= _layer(prefix, width, heads, architecture.decoder_ffn, ("self_attn", "cross_attn"))
    return shapes


@dataclass(frozen=True, slots=True)
class ConversionPlan:
    """A checked source; only its tensor data is unread."""

    source: Source
    architecture: Architecture
    config: EngineConfig
    vocabulary: Vocabulary
    locations: TensorLocations
    expected: ExpectedTensors
    notes: tuple[str, ...]  # for display


def plan_ofa(folder: Path) -> ConversionPlan:
    """Read and check a published folder, except tensor data.

    Args:
        folder: only declared files are read.

    Raises:
        ConversionRefused: the source cannot be converted.
        OSError: a file cannot be read.
    """
    source = find_source(folder)
    if source.engine is not OFA:
        message = f"the revision is for engine {source.engine.engine!r}, supported: 'ofa'"
        raise ConversionRefused("ENGINE_UNKNOWN", message)
    architecture = read_architecture(folder)
    pipeline = read_pipeline(folder, architecture)
    vocabulary = read_vocabulary(folder, architecture, pipeline.answer_map)
    config = _build_config(architecture, pipeline, vocabulary)
    longest = min(architecture.positions, MAX_DISTANCE_POSITIONS)
    if config.max_decoder_tokens > longest:
        message = f"the decoder reads up to {config.max_decoder_tokens} tokens, supported: {longest} positions"
        raise ConversionRefused("CONFIG_UNSUPPORTED", message)
    expected = expected_tensors(architecture)
    located = locate_tensors(folder, OFA.weights, _list_names(expected))
    unused = check_tensors(located, architecture)
    notes = (*pipeline.notes, *vocabulary.notes, *located.notes, *unused)
    notes += compare_weights(folder, located.file, pipeline.weights_hash)
    return ConversionPlan(source, architecture, config, vocabulary, located.locations, expected, notes)


def _build_config(architecture: Architecture, pipeline: PipelineConfig, vocabulary: Vocabulary) -> EngineConfig:
    tokenizer = vocabulary.make_tokenizer()
    return EngineConfig(
        width=architecture.width,
        encoder_layers=architecture.encoder_layers,
        encoder_heads=architecture.encoder_heads,
        encoder_ffn=architecture.encoder_ffn,
        decoder_layers=architecture.decoder_layers,
        decoder_heads=architecture.decoder_heads,
        decoder_ffn=architecture.decoder_ffn,
        vocabulary=vocabulary.rows,
        resnet_blocks=architecture.resnet_blocks,
        image_size=pipeline.image_size,
        image_mean=pipeline.image_mean,
        image_deviation=pipeline.image_deviation,
        max_prompt_tokens=pipeline.max_prompt_tokens,
        decoder_prompt=pipeline.decoder_prompt,
        begin_token=tokenizer.begin,
        pad_token=tokenizer.pad,
        end_token=tokenizer.end,
        answer_stem=vocabulary.answers.stem,
        answer_forks=vocabulary.answers.forks,
    )
