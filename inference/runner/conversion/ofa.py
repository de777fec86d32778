"""A published visual-entailment OFA to the files of a bundle."""

from collections.abc import Callable
from pathlib import Path

import torch

from common.bundle import Bundle, BundleFile, Interface, hash_file, write_bundle
from common.durable import write_atomic
from common.engine_files import OFA
from inference.runner.conversion.ofa_plan import Plan, plan_ofa
from inference.runner.conversion.ofa_targets import Recipes, module_targets, position_targets
from inference.runner.conversion.weights import Weights
from inference.runner.conversion.writer import write_safetensors
from inference.runner.device import torch_dtype
from inference.runner.engines.ofa.config import (
    CONFIG_NAME,
    MERGES_NAME,
    VOCABULARY_NAME,
    WEIGHTS_NAME,
    to_json,
)

Progress = Callable[[float], None]  # share of the work that is done, 0 to 1


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
    plan = plan_ofa(source)
    return convert_plan(plan, plan.source.digest(), into, revision, precision)


def convert_plan(
    plan: Plan, digest: str, into: Path, revision: str, precision: str, progress: Progress = lambda _share: None
) -> Bundle:
    """Do the same for a source that was looked at already, and has this digest; tells how far it is.

    Raises:
        ConversionRefused: a number of it is none.
        OSError: something cannot be read or written.
    """
    with torch.inference_mode():
        weights = _write_weights(plan, into, precision, progress)
    write_atomic(into / CONFIG_NAME, to_json(plan.config), 0o444)
    write_atomic(into / VOCABULARY_NAME, plan.words.vocabulary_json(), 0o444)
    write_atomic(into / MERGES_NAME, plan.words.merges_text(), 0o444)
    texts = [hash_file(into / name) for name in (CONFIG_NAME, VOCABULARY_NAME, MERGES_NAME)]
    bundle = Bundle(
        bundle_digest=plan.source.bundle_digest(digest, precision),
        source_digest=digest,
        revision=revision,
        engine=OFA.engine,
        task=OFA.task,
        precision=precision,
        converter=OFA.converter,
        files=tuple(sorted([*texts, weights], key=lambda file: file.name)),
        notes=plan.notes,
        interface=Interface(OFA.model_types[0], plan.config.image_size, plan.words.labels),
    )
    write_bundle(into, bundle)
    return bundle


def _write_weights(plan: Plan, into: Path, precision: str, progress: Progress) -> BundleFile:
    unread = set(plan.expected.required)
    with Weights(plan.places, unread.discard) as weights:
        recipes = Recipes(weights, plan.architecture, plan.config, list(plan.words.answers.tokens)).all()
        targets = module_targets(recipes, plan.config, torch_dtype(precision))
        targets += position_targets(weights, plan.architecture, plan.config)
        written = write_safetensors(into / WEIGHTS_NAME, targets, progress)
        # One bad number means a bad file, even where no answer needs it.
        for name in sorted(unread):
            weights.get(name)
    (into / WEIGHTS_NAME).chmod(0o444)
    return written
