"""A published visual-entailment OFA to the files of a bundle."""

from pathlib import Path

import torch

from common.bundle import Bundle, hash_file, write_bundle
from common.durable import write_atomic
from common.engine_files import OFA
from common.source import ConversionRefused, read_source
from inference.runner.conversion.ofa_config import Architecture, Pipeline, read_architecture, read_pipeline
from inference.runner.conversion.ofa_positions import position_targets
from inference.runner.conversion.ofa_targets import Recipes, module_targets
from inference.runner.conversion.ofa_tensors import Expected, check_tensors, expected_tensors
from inference.runner.conversion.ofa_words import Words, read_words
from inference.runner.conversion.weights import Weights, open_weights
from inference.runner.conversion.writer import write_safetensors
from inference.runner.device import torch_dtype
from inference.runner.engines.ofa.config import (
    CONFIG_NAME,
    MERGES_NAME,
    VOCABULARY_NAME,
    WEIGHTS_NAME,
    EngineConfig,
    to_json,
)


def convert_ofa(source: Path, into: Path, revision: str, precision: str) -> Bundle:
    """Read a published folder and write a bundle that is ready to be sealed.

    Args:
        source: the folder; only declared files are read.
        into: an empty folder.
        revision: for people.
        precision: of the stored weights.

    Raises:
        ConversionRefused: the source is not convertible.
        OSError: something cannot be read or written.
    """
    seen = read_source(source)
    if seen.engine is not OFA:
        raise ConversionRefused(
            "ENGINE_UNKNOWN", f"the revision is for engine {seen.engine.engine!r}, supported: 'ofa'"
        )
    architecture = read_architecture(source)
    pipeline = read_pipeline(source, architecture)
    words = read_words(source, architecture, pipeline.answer_map)
    config = _config_of(architecture, pipeline, words)
    with torch.inference_mode():
        _write_weights(source, into, architecture, config, words, precision)
    write_atomic(into / CONFIG_NAME, to_json(config), 0o444)
    write_atomic(into / VOCABULARY_NAME, words.vocabulary_json(), 0o444)
    write_atomic(into / MERGES_NAME, words.merges_text(), 0o444)
    names = sorted((CONFIG_NAME, VOCABULARY_NAME, MERGES_NAME, WEIGHTS_NAME))
    bundle = Bundle(
        bundle_digest=seen.bundle_digest(precision),
        source_digest=seen.digest,
        revision=revision,
        engine=OFA.engine,
        task=OFA.task,
        precision=precision,
        converter=OFA.converter,
        files=tuple(hash_file(into / name) for name in names),
    )
    write_bundle(into, bundle)
    return bundle


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
    )


def _write_weights(
    source: Path, into: Path, architecture: Architecture, config: EngineConfig, words: Words, precision: str
) -> None:
    weights = open_weights(source)
    expected = expected_tensors(architecture)
    check_tensors(weights, expected)
    _check_finite(weights, expected)
    recipes = Recipes(weights, architecture, config, list(words.answers)).all()
    targets = module_targets(recipes, config, torch_dtype(precision))
    targets += position_targets(weights, architecture, config)
    write_safetensors(into / WEIGHTS_NAME, targets)
    (into / WEIGHTS_NAME).chmod(0o444)


def _check_finite(weights: Weights, expected: Expected) -> None:
    """Look at every parameter, even at those that no answer needs: one bad number means a bad file."""
    for name in expected.required:
        weights.get(name)
