"""Which files of a published revision each engine needs; nothing else of a revision is ever taken."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

MIB = 1 << 20
CONFIGURATION = "configuration.json"
MAX_CONFIG_BYTES = 8 * MIB


class Task(StrEnum):
    """What a model does; the hub's own words."""

    VISUAL_ENTAILMENT = "visual-entailment"
    ADDRESS_TAGGING = "token-classification"


@dataclass(frozen=True, slots=True)
class EngineFiles:
    """What one engine takes of a revision.

    Of `weights` and of `vocabulary` the first alternative that is there whole is taken; a name
    that ends in `.index.json` stands for the shards that it lists.
    """

    engine: str
    converter: str  # version of the sealed layout; a new one for every change of what `convert` writes
    task: Task
    model_types: tuple[str, ...]  # `model.type` in configuration.json
    required: tuple[str, ...]
    optional: tuple[str, ...]
    weights: tuple[str, ...]
    vocabulary: tuple[tuple[str, ...], ...]


OFA = EngineFiles(
    engine="ofa",
    converter="ofa-1",
    task=Task.VISUAL_ENTAILMENT,
    model_types=("ofa",),
    required=(CONFIGURATION, "config.json"),
    optional=("preprocessor_config.json",),
    weights=(
        "model.safetensors",
        "model.safetensors.index.json",
        "pytorch_model.bin",
        "pytorch_model.bin.index.json",
    ),
    vocabulary=(("vocab.json", "merges.txt"), ("vocab.txt", "merges.txt")),
)

ENGINES: tuple[EngineFiles, ...] = (OFA,)


class FilesMissing(ValueError):
    """A revision lacks files that its engine needs; says which."""


def find_engine(task: str, model_type: str) -> EngineFiles | None:
    """Find the engine that serves a configuration's task and `model.type`, if this build has one."""
    for files in ENGINES:
        if files.task == task and model_type in files.model_types:
            return files
    return None


def list_declared_files(
    files: EngineFiles, listing: Mapping[str, int], configuration: Mapping[str, object]
) -> list[str]:
    """Choose the files that an engine takes of a revision.

    Args:
        files: the engine's declaration.
        listing: size in bytes of every file that the revision has, by relative name.
        configuration: the revision's parsed configuration.json.

    Returns:
        Relative names, sorted. Shards of a weights index are not among them: see `list_shards`.

    Raises:
        FilesMissing: what is needed is not all there.
    """
    chosen = list(files.required) + [name for name in files.optional if name in listing]
    chosen += _answer_map(configuration)
    weights = next((name for name in files.weights if name in listing), None)
    vocabulary = next((names for names in files.vocabulary if all(name in listing for name in names)), None)
    missing = [name for name in chosen if name not in listing]
    if weights is None:
        missing.append(" or ".join(files.weights))
    if vocabulary is None:
        missing.append(" or ".join(" + ".join(names) for names in files.vocabulary))
    if missing or weights is None or vocabulary is None:
        raise FilesMissing(f"the revision lacks {', '.join(missing)}")
    return sorted({*chosen, weights, *vocabulary})


def list_shards(index: Mapping[str, object]) -> list[str]:
    """Names of the shards that a weights index lists, sorted.

    Raises:
        FilesMissing: the index lists none.
    """
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, Mapping) or not weight_map:
        raise FilesMissing("the weights index has no weight_map")
    names = set(weight_map.values())
    if not all(isinstance(name, str) for name in names):
        raise FilesMissing("the weights index names a shard that is no string")
    return sorted(str(name) for name in names)


def _answer_map(configuration: Mapping[str, object]) -> list[str]:
    """The file that `answer2label` names, which stands under `model` or at the top, by age of the repository."""
    model = configuration.get("model")
    name = model.get("answer2label") if isinstance(model, Mapping) else None
    name = name or configuration.get("answer2label")
    return [name] if isinstance(name, str) else []
