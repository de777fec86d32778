"""Converts a published visual-entailment OFA to the files of a bundle."""

from collections.abc import Callable
from pathlib import Path

import torch

from common.bundle import Bundle, BundleFile, Interface, hash_file, write_bundle
from common.durable import write_atomic
from common.engine_files import OFA
from inference.runner.conversion.ofa_plan import ConversionPlan, plan_ofa
from inference.runner.conversion.ofa_targets import TensorRecipes, module_targets, position_targets
from inference.runner.conversion.ofa_vocabulary import encode_ids
from inference.runner.conversion.pickle_file import check_records
from inference.runner.conversion.tensor_io import TensorReader, write_safetensors
from inference.runner.device import torch_dtype
from inference.runner.engines.ofa.config import (
    ADDED_WORDS_NAME,
    CONFIG_NAME,
    MERGES_NAME,
    VOCABULARY_NAME,
    WEIGHTS_NAME,
    to_json,
)

Progress = Callable[[float], None]  # share of the work that is done, 0 to 1


def convert_ofa(source: Path, into: Path, revision: str, precision: str) -> Bundle:
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
    plan = plan_ofa(source)
    return convert_plan(plan, plan.source.digest(), into, revision, precision)


def convert_plan(
    plan: ConversionPlan,
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
    with torch.inference_mode():
        weights = _write_weights(plan, into, precision, progress)
    write_atomic(into / CONFIG_NAME, to_json(plan.config), 0o444)
    write_atomic(into / VOCABULARY_NAME, encode_ids(plan.vocabulary.ids), 0o444)
    write_atomic(into / MERGES_NAME, plan.vocabulary.to_merges_text(), 0o444)
    names = [CONFIG_NAME, VOCABULARY_NAME, MERGES_NAME]
    if plan.vocabulary.added:
        names.append(ADDED_WORDS_NAME)
        write_atomic(into / ADDED_WORDS_NAME, encode_ids(plan.vocabulary.added), 0o444)
    texts = [hash_file(into / name) for name in names]
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
        interface=Interface(OFA.model_types[0], plan.config.image_size, plan.vocabulary.labels),
    )
    write_bundle(into, bundle)
    return bundle


def _write_weights(plan: ConversionPlan, into: Path, precision: str, progress: Progress) -> BundleFile:
    check_records(location.path for location in plan.locations.values())
    unread = set(plan.expected.required)
    with TensorReader(plan.locations, unread.discard) as reader:
        recipes = TensorRecipes(reader, plan.architecture, plan.config, list(plan.vocabulary.answers.tokens)).build()
        targets = module_targets(recipes, plan.config, torch_dtype(precision))
        targets += position_targets(reader, plan.architecture, plan.config)
        written = write_safetensors(into / WEIGHTS_NAME, targets, progress)
        # Parameters that no answer needs are checked too: one that is not finite means a damaged file.
        for name in sorted(unread):
            reader.get(name)
    (into / WEIGHTS_NAME).chmod(0o444)
    return written
