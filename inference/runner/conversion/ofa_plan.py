"""All that can be known of a published OFA before its numbers are read: checked without torch."""

from dataclasses import dataclass
from pathlib import Path

from common.engine_files import OFA
from common.source import ConversionRefused, Source, find_source
from inference.runner.conversion.ofa_config import (
    MAX_DISTANCE_POSITIONS,
    Architecture,
    Pipeline,
    read_architecture,
    read_pipeline,
)
from inference.runner.conversion.ofa_tensors import Expected, check_tensors, expected_tensors
from inference.runner.conversion.ofa_vocabulary import Words, read_words
from inference.runner.conversion.open_places import open_places
from inference.runner.conversion.places import Places
from inference.runner.engines.ofa.config import EngineConfig


@dataclass(frozen=True, slots=True)
class Plan:
    """A source that can be converted, unless a number in it is none."""

    source: Source
    architecture: Architecture
    config: EngineConfig
    words: Words
    places: Places
    expected: Expected
    notes: tuple[str, ...]  # for people


def plan_ofa(folder: Path) -> Plan:
    """Read everything of a published folder but its numbers.

    Args:
        folder: only declared files are read.

    Raises:
        ConversionRefused: the source is not convertible.
        OSError: something cannot be read.
    """
    source = find_source(folder)
    if source.engine is not OFA:
        message = f"the revision is for engine {source.engine.engine!r}, supported: 'ofa'"
        raise ConversionRefused("ENGINE_UNKNOWN", message)
    architecture = read_architecture(folder)
    pipeline = read_pipeline(folder, architecture)
    words = read_words(folder, architecture, pipeline.answer_map)
    config = _config_of(architecture, pipeline, words)
    longest = min(architecture.positions, MAX_DISTANCE_POSITIONS)
    if config.max_decoder_tokens > longest:
        message = f"the decoder reads up to {config.max_decoder_tokens} tokens, supported: {longest} positions"
        raise ConversionRefused("CONFIG_UNSUPPORTED", message)
    places, expected = open_places(folder), expected_tensors(architecture)
    check_tensors(places, expected)
    return Plan(source, architecture, config, words, places, expected, pipeline.notes)


def _config_of(architecture: Architecture, pipeline: Pipeline, words: Words) -> EngineConfig:
    tokenizer = words.tokenizer()
    return EngineConfig(
        width=architecture.width,
        encoder_layers=architecture.encoder_layers,
        encoder_heads=architecture.encoder_heads,
        encoder_ffn=architecture.encoder_ffn,
        decoder_layers=architecture.decoder_layers,
        decoder_heads=architecture.decoder_heads,
        decoder_ffn=architecture.decoder_ffn,
        vocabulary=words.rows,
        resnet_blocks=architecture.resnet_blocks,
        image_size=pipeline.image_size,
        image_mean=pipeline.image_mean,
        image_deviation=pipeline.image_deviation,
        max_prompt_tokens=pipeline.max_prompt_tokens,
        decoder_prompt=pipeline.decoder_prompt,
        begin_token=tokenizer.begin,
        pad_token=tokenizer.pad,
        end_token=tokenizer.end,
        answer_stem=words.answers.stem,
        answer_forks=words.answers.forks,
    )
