"""Reads and checks everything of a published MGeo except tensor data, without torch.

Names and shapes of the expected tensors follow from the configuration.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from common.engine_files import MGEO
from common.source import ConversionRefused, Source, find_source
from inference.runner.conversion.config_file import SizeKey
from inference.runner.conversion.declared_hash import compare_weights
from inference.runner.conversion.fit import ExpectedTensors, Sizes, check_fit, describe_unused
from inference.runner.conversion.mgeo_config import (
    Architecture,
    PipelineConfig,
    read_architecture,
    read_pipeline,
    read_vocabulary,
)
from inference.runner.conversion.mgeo_labels import ARCHITECTURE
from inference.runner.conversion.refusals import DisagreementRefused, refusing
from inference.runner.conversion.state_dict import TensorNames
from inference.runner.conversion.tensor_location import TensorLocations
from inference.runner.conversion.weight_files import LocatedTensors, locate_tensors
from inference.runner.engines.mgeo.config import VOCABULARY_NAME, EngineConfig

_LAYER = re.compile(r"encoder\.layer\.([0-9]+)\.")
MODEL_PREFIX = "bert."  # a checkpoint of the encoder alone leaves it out
ENCODER = "text_encoder."
CLASSIFIER = "classifier."
_NORMS = ("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.beta", "LayerNorm.bias")  # old names of norms
_IN_NAMES = re.compile(rf"(^|\.){re.escape(MODEL_PREFIX)}(?={re.escape(ENCODER)})")
# Ordinary, and not used to tag addresses.
_UNUSED = (f"{ENCODER}pooler.dense.weight", f"{ENCODER}pooler.dense.bias", f"{ENCODER}embeddings.position_ids")


@dataclass(frozen=True, slots=True)
class MgeoPlan:
    """A checked source; only its tensor data is unread."""

    source: Source
    config: EngineConfig
    vocabulary: tuple[str, ...]  # by id
    locations: TensorLocations  # by the names of `expected_tensors`
    notes: tuple[str, ...]  # for display


def plan_mgeo(folder: Path) -> MgeoPlan:
    """Read and check a published folder, except tensor data.

    Args:
        folder: only declared files are read.

    Raises:
        ConversionRefused: the source cannot be converted.
        OSError: a file cannot be read.
    """
    source = find_source(folder)
    if source.engine is not MGEO:
        message = f"the revision is for engine {source.engine.engine!r}, supported: 'mgeo'"
        raise ConversionRefused("ENGINE_UNKNOWN", message)
    architecture = read_architecture(folder)
    pipeline = read_pipeline(folder, architecture)
    needed = (pipeline.begin, pipeline.end, pipeline.words.unknown)
    with refusing(VOCABULARY_NAME):
        vocabulary, vocabulary_notes = read_vocabulary(folder, architecture, needed)
    expected = expected_tensors(architecture, len(pipeline.labels))
    located = locate_tensors(folder, MGEO.weights, _list_names(expected, architecture))
    unused = check_tensors(located, architecture, pipeline.labels, pipeline.labels_from)
    config = _build_config(architecture, pipeline, vocabulary)
    locations = {name: located.locations[name] for name in expected}
    notes = (
        *pipeline.notes,
        *vocabulary_notes,
        *located.notes,
        *unused,
        *compare_weights(folder, located.file, pipeline.weights_hash),
    )
    return MgeoPlan(source, config, tuple(vocabulary), locations, notes)


def _list_names(expected: Mapping[str, tuple[int, ...]], architecture: Architecture) -> TensorNames:
    """The expected tensors, and those that are ordinary but unused, such as layers after the last one in use."""
    layers = range(architecture.layers, architecture.stored_layers)
    unused = (name for layer in layers for name in _layer_tensors(layer, architecture))
    return TensorNames(expected, {*expected, *_UNUSED, *unused}, rename=rename_tensor, show=_show_name)


def expected_tensors(architecture: Architecture, labels: int) -> dict[str, tuple[int, ...]]:
    """Return the tensors that a source must contain, with their shapes."""
    width = architecture.width
    embeddings = f"{ENCODER}embeddings."
    shapes: dict[str, tuple[int, ...]] = {
        f"{embeddings}word_embeddings.weight": (architecture.vocabulary, width),
        f"{embeddings}position_embeddings.weight": (architecture.positions, width),
        f"{embeddings}token_type_embeddings.weight": (architecture.segments, width),
        **_norm(f"{embeddings}LayerNorm", width),
        **_linear(f"{CLASSIFIER}", labels, width),
    }
    for layer in range(architecture.layers):
        shapes |= _layer_tensors(layer, architecture)
    return shapes


def _layer_tensors(layer: int, architecture: Architecture) -> dict[str, tuple[int, ...]]:
    width, ffn, prefix = architecture.width, architecture.ffn, layer_prefix(layer)
    shapes: dict[str, tuple[int, ...]] = {}
    for part in ("query", "key", "value"):
        shapes |= _linear(f"{prefix}attention.self.{part}.", width, width)
    shapes |= _linear(f"{prefix}attention.output.dense.", width, width)
    shapes |= _norm(f"{prefix}attention.output.LayerNorm", width)
    shapes |= _linear(f"{prefix}intermediate.dense.", ffn, width)
    shapes |= _linear(f"{prefix}output.dense.", width, ffn)
    shapes |= _norm(f"{prefix}output.LayerNorm", width)
    return shapes


def layer_prefix(layer: int) -> str:
    """The beginning of the names of a layer's tensors."""
    return f"{ENCODER}encoder.layer.{layer}."


def _linear(name: str, outputs: int, inputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}weight": (outputs, inputs), f"{name}bias": (outputs,)}


def _norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def check_tensors(
    located: LocatedTensors, architecture: Architecture, labels: Sequence[str], labels_from: str
) -> tuple[str, ...]:
    """Compare a source's tensors with the expected ones; returns notes about layers that are not used.

    Raises:
        ConversionRefused: a tensor is missing, or of another shape or dtype, or the keys about layers disagree.
    """
    said = f"{labels_from} has {len(labels)} label{'s' if len(labels) > 1 else ''}"
    label_key = SizeKey("labels", len(labels), said, ((f"{labels_from}: ", ""),), reason="CONFIG_UNSUPPORTED")

    def expect(changes: Mapping[str, Any]) -> ExpectedTensors:
        changed = {key: value for key, value in changes.items() if key != label_key.attribute}
        count = changes.get(label_key.attribute, len(labels))
        return ExpectedTensors(expected_tensors(replace(architecture, **changed), count))

    sizes = Sizes((*architecture.sizes, label_key), expect)
    if not located.renamings:
        _check_layers(located, architecture)
    check_fit(located, sizes)
    return describe_unused(located, sizes)


def _check_layers(located: LocatedTensors, architecture: Architecture) -> None:
    if architecture.layers <= architecture.stored_layers:
        return
    names = [*located.locations, *located.surplus]
    stored = len({found[1] for name in names if (found := _LAYER.search(name))})
    key = "fusion_layer" if stored == architecture.stored_layers else "num_hidden_layers"
    counts = f"num_hidden_layers is {architecture.stored_layers} and fusion_layer is {architecture.layers}"
    message = f"{ARCHITECTURE}: {counts}, but {located.file} has {stored} layers: correct {key}"
    raise DisagreementRefused("CONFIG_UNSUPPORTED", message, ARCHITECTURE, [(f"{ARCHITECTURE}: ", key)])


def rename_tensor(name: str) -> str:
    """The name that this module uses: without the model's prefix, norms by their new names."""
    for old, new in _NORMS:
        if name.endswith(old):
            name = name.removesuffix(old) + new
    return _IN_NAMES.sub(r"\1", name)


def _show_name(name: str) -> str:
    return f"{MODEL_PREFIX}{name}" if name.startswith(ENCODER) else name


def _build_config(architecture: Architecture, pipeline: PipelineConfig, vocabulary: Mapping[str, int]) -> EngineConfig:
    return EngineConfig(
        width=architecture.width,
        layers=architecture.layers,
        heads=architecture.heads,
        ffn=architecture.ffn,
        vocabulary=len(vocabulary),
        activation=architecture.activation,
        norm_epsilon=architecture.norm_epsilon,
        window=pipeline.window,
        labels=pipeline.labels,
        begin_token=vocabulary[pipeline.begin],
        end_token=vocabulary[pipeline.end],
        words=pipeline.words,
    )
