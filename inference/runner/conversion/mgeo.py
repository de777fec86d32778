"""Converts a published MGeo for address tagging to the files of a bundle: projections fused, positions summed."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from common.bundle import Bundle, Interface, hash_file, write_bundle
from common.durable import write_atomic
from common.engine_files import MGEO
from common.source import ConversionRefused
from inference.runner.conversion.mgeo_plan import CLASSIFIER, ENCODER, MgeoPlan, layer_prefix, plan_mgeo
from inference.runner.conversion.pickle_file import check_records
from inference.runner.conversion.tensor_io import OutputTensor, TensorReader, is_finite, write_safetensors
from inference.runner.device import torch_dtype
from inference.runner.engines.mgeo.config import CONFIG_NAME, VOCABULARY_NAME, WEIGHTS_NAME, EngineConfig, to_json
from inference.runner.engines.mgeo.model import MgeoModel

Progress = Callable[[float], None]  # share of the work that is done, 0 to 1
Recipe = Callable[[], Tensor]  # computes a tensor as float32
_EMBEDDINGS = f"{ENCODER}embeddings."


def convert_mgeo(source: Path, into: Path, revision: str, precision: str) -> Bundle:
    """Convert a published folder to a bundle that is ready to be sealed.

    Args:
        source: the published folder; only declared files are read.
        into: an empty folder.
        revision: name for display.
        precision: of the stored weights.

    Raises:
        ConversionRefused: the source is not convertible.
        OSError: a file cannot be read or written.
    """
    plan = plan_mgeo(source)
    return convert_plan(plan, plan.source.digest(), into, revision, precision)


def convert_plan(
    plan: MgeoPlan,
    digest: str,
    into: Path,
    revision: str,
    precision: str,
    progress: Progress = lambda _share: None,
) -> Bundle:
    """Convert a planned source.

    Args:
        plan: of the source.
        digest: of the source's files.
        into: an empty folder.
        revision: name for display.
        precision: of the stored weights.
        progress: receives the share done, 0..1.

    Raises:
        ConversionRefused: a parameter is NaN or infinite.
        OSError: a file cannot be read or written.
    """
    check_records(location.path for location in plan.locations.values())
    with torch.inference_mode(), TensorReader(plan.locations) as reader:
        targets = _make_targets(_Recipes(reader, plan.config), plan.config, torch_dtype(precision))
        weights = write_safetensors(into / WEIGHTS_NAME, targets, progress)
    (into / WEIGHTS_NAME).chmod(0o444)
    write_atomic(into / CONFIG_NAME, to_json(plan.config), 0o444)
    write_atomic(into / VOCABULARY_NAME, ("\n".join(plan.vocabulary) + "\n").encode(), 0o444)
    texts = [hash_file(into / name) for name in (CONFIG_NAME, VOCABULARY_NAME)]
    bundle = Bundle(
        bundle_digest=plan.source.bundle_digest(digest, precision),
        source_digest=digest,
        revision=revision,
        engine=MGEO.engine,
        task=MGEO.task,
        precision=precision,
        converter=MGEO.converter,
        files=tuple(sorted([*texts, weights], key=lambda file: file.name)),
        notes=plan.notes,
        interface=Interface(MGEO.model_types[0], 0, plan.config.labels),
    )
    write_bundle(into, bundle)
    return bundle


class _Recipes:
    """Recipes for all parameters of `MgeoModel` from the source's tensors."""

    def __init__(self, reader: TensorReader, config: EngineConfig) -> None:
        self._reader = reader
        self._config = config

    def build(self) -> dict[str, Recipe]:
        """Return recipes by parameter name."""
        recipes: dict[str, Recipe] = {
            "token_embedding": lambda: self._get(f"{_EMBEDDINGS}word_embeddings.weight")[: self._config.vocabulary],
            "position_embedding": self._positions,
            **self._copy("embedding_norm", f"{_EMBEDDINGS}LayerNorm"),
            **self._copy("classifier", CLASSIFIER.rstrip(".")),
        }
        for layer in range(self._config.layers):
            name, source = f"layers.{layer}", layer_prefix(layer)
            for part in ("weight", "bias"):
                recipes[f"{name}.attention.qkv.{part}"] = partial(self._fuse, f"{source}attention.self.", part)
            recipes |= self._copy(f"{name}.attention.out", f"{source}attention.output.dense")
            recipes |= self._copy(f"{name}.attention_norm", f"{source}attention.output.LayerNorm")
            recipes |= self._copy(f"{name}.widen", f"{source}intermediate.dense")
            recipes |= self._copy(f"{name}.narrow", f"{source}output.dense")
            recipes |= self._copy(f"{name}.feed_norm", f"{source}output.LayerNorm")
        return recipes

    def _get(self, name: str) -> Tensor:
        return self._reader.get(name)

    def _copy(self, name: str, source: str) -> dict[str, Recipe]:
        return {f"{name}.{part}": partial(self._get, f"{source}.{part}") for part in ("weight", "bias")}

    def _positions(self) -> Tensor:
        """Positions of a window; every token is of the first segment."""
        positions = self._get(f"{_EMBEDDINGS}position_embeddings.weight")[: self._config.window]
        return positions + self._get(f"{_EMBEDDINGS}token_type_embeddings.weight")[0]

    def _fuse(self, source: str, part: str) -> Tensor:
        """Concatenate the projections; the query's includes the scale of the scores."""
        scale = (self._config.width // self._config.heads) ** -0.5
        query = self._get(f"{source}query.{part}") * scale
        return torch.cat([query, self._get(f"{source}key.{part}"), self._get(f"{source}value.{part}")])


def _make_targets(recipes: _Recipes, config: EngineConfig, dtype: torch.dtype) -> list[OutputTensor]:
    """Return the parameters of `MgeoModel` as output tensors, in the module's order.

    Raises:
        RuntimeError: recipes and parameters differ.
    """
    with torch.device("meta"):
        expected = MgeoModel(config).state_dict()
    made = recipes.build()
    if set(expected) != set(made):
        raise RuntimeError(f"recipes and module differ: {sorted(set(expected) ^ set(made))[:5]}")
    return [
        OutputTensor(name, tuple(tensor.shape), dtype, partial(_compute, name, made[name], dtype))
        for name, tensor in expected.items()
    ]


def _compute(name: str, recipe: Recipe, dtype: torch.dtype) -> Tensor:
    tensor = recipe().to(dtype)
    if not is_finite(tensor):
        raise ConversionRefused("WEIGHTS_BROKEN", f"tensor {name} is not finite after it is converted to {dtype}")
    return tensor
