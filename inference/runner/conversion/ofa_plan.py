"""Reads and checks everything of a published OFA except tensor data, without torch."""

from dataclasses import dataclass
from pathlib import Path

from common.engine_files import OFA
from common.source import ConversionRefused, Source, find_source
from inference.runner.conversion.ofa_config import (
    MAX_DISTANCE_POSITIONS,
    Architecture,
    PipelineConfig,
    read_architecture,
    read_pipeline,
)
from inference.runner.conversion.ofa_tensors import ExpectedTensors, check_tensors, expected_tensors
from inference.runner.conversion.ofa_vocabulary import Vocabulary, read_vocabulary
from inference.runner.conversion.tensor_location import TensorLocations
from inference.runner.conversion.weight_files import locate_tensors
from inference.runner.engines.ofa.config import EngineConfig


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
    locations, expected = locate_tensors(folder), expected_tensors(architecture)
    check_tensors(locations, expected)
    return ConversionPlan(source, architecture, config, vocabulary, locations, expected, pipeline.notes)


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
