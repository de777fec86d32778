"""The files of a revision that each engine needs; no other file of a revision is fetched or read."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

MIB = 1 << 20
CONFIGURATION = "configuration.json"
MAX_CONFIG_BYTES = 8 * MIB
WEIGHTS_HASH = "model_file_sha256"  # a top-level key: what a publisher says about the weight file
# Known top-level keys of configuration.json: ModelScope's own, and harmless ones that repositories add. Others are not
# read, neither here nor by the published pipeline.
SECTIONS = frozenset(
    {
        "framework",
        "task",
        "model",
        "pipeline",
        "preprocessor",
        "postprocessor",
        "dataset",
        "train",
        "evaluation",
        WEIGHTS_HASH,
        "answer2label",
        "language",
        "description",
        "license",
        "name",
        "version",
        "num_bins",  # these two are written by `OfaForAllTasks.save_pretrained`
        "num_codes",
    }
)


class Task(StrEnum):
    """A model's task, in the hub's names."""

    VISUAL_ENTAILMENT = "visual-entailment"
    ADDRESS_TAGGING = "token-classification"


@dataclass(frozen=True, slots=True)
class EngineFiles:
    """The files of a revision that one engine needs.

    `weights` and `vocabulary` list alternatives; the first that is complete is used. A name that ends in `.index.json`
    means the shards that the file lists.
    """

    engine: str
    converter: str  # version of the sealed layout; changes with every change of what the conversion writes
    task: Task
    model_types: tuple[str, ...]  # `model.type` in configuration.json
    required: tuple[str, ...]
    optional: tuple[str, ...]
    weights: tuple[str, ...]
    vocabulary: tuple[tuple[str, ...], ...]
    added: tuple[str, ...] = ()  # optional files that earlier builds did not count in the source digest
    named: tuple[str, ...] = ()  # keys of configuration.json, in `model` or at the top level, that name a file
    architectures: tuple[str, ...] = ()  # `model_type` in config.json
    usual_weights: str = "pytorch_model.bin"  # what ModelScope's trainers write


_OFA_TOKENIZER = ("added_tokens.json", "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json")
WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)

OFA = EngineFiles(
    engine="ofa",
    converter="ofa-2",
    task=Task.VISUAL_ENTAILMENT,
    model_types=("ofa",),
    architectures=("ofa",),
    required=(CONFIGURATION, "config.json"),
    optional=("preprocessor_config.json", *_OFA_TOKENIZER),
    added=_OFA_TOKENIZER,
    weights=WEIGHTS,
    vocabulary=(("vocab.json", "merges.txt"), ("vocab.txt", "merges.txt")),
    named=("answer2label",),
)

MGEO = EngineFiles(
    engine="mgeo",
    converter="mgeo-1",
    task=Task.ADDRESS_TAGGING,
    model_types=("mgeo",),
    architectures=("bert", "mgeo"),
    required=(CONFIGURATION, "config.json"),
    optional=("label_mapping.json", "tokenizer_config.json"),
    weights=WEIGHTS,
    vocabulary=(("vocab.txt",),),
)

ENGINES: tuple[EngineFiles, ...] = (OFA, MGEO)


class FilesMissing(ValueError):
    """A revision lacks files that its engine needs; the message names them."""


def find_engine(task: str, model_type: str) -> EngineFiles | None:
    """The engine for a configuration's task and `model.type`; None if this build has none."""
    for files in ENGINES:
        if files.task == task and model_type in files.model_types:
            return files
    return None


def list_declared_files(
    files: EngineFiles, listing: Mapping[str, int], configuration: Mapping[str, object]
) -> list[str]:
    """Choose the files of a revision that an engine needs.

    Args:
        files: the engine's declaration.
        listing: size in bytes of every file of the revision, by relative name.
        configuration: the revision's parsed configuration.json.

    Returns:
        Relative names, sorted, without the shards of a weights index: see `list_shards`.

    Raises:
        FilesMissing: a needed file is not in the listing.
    """
    chosen = list(files.required) + [name for name in files.optional if name in listing]
    chosen += list_named_files(files.named, configuration)
    weights = next((name for name in files.weights if name in listing), None)
    vocabulary = next((names for names in files.vocabulary if all(name in listing for name in names)), None)
    named = list_named_files(files.named, configuration)
    missing = [
        f"{name}{_describe_named(name, listing) if name in named else describe_near_name(name, listing)}"
        for name in chosen
        if name not in listing
    ]
    if weights is None:
        missing.append(f"its weights ({_describe_weights(files, listing)})")
    if vocabulary is None:
        missing.append(" or ".join(_describe_vocabularies(files, listing)))
    if missing or weights is None or vocabulary is None:
        raise FilesMissing(f"the revision lacks {', '.join(missing)}")
    return sorted({*chosen, weights, *vocabulary})


_COPY = re.compile(r" ?\([0-9]+\)(?=\.)")  # such as "config (1).json"


def describe_near_name(name: str, names: Iterable[str]) -> str:
    """A question if a file is there under a name that programs make of another one; else empty."""
    stem = name.rpartition(".")[0]

    def is_near(other: str) -> bool:
        plain = _COPY.sub("", other).lower()
        return plain == name or plain.startswith(f"{name}.") or plain == f"{stem}.txt"

    near = next((other for other in sorted(names) if other != name and is_near(other)), "")
    return f"; is it {near[:80]!r}? then name it {name}" if near else ""


def _describe_named(name: str, listing: Mapping[str, int]) -> str:
    """What is wrong with the name of a missing file that the configuration names."""
    plain = re.split(r"[/\\]", name)[-1]
    there = f" and the folder has as {plain!r}: write the plain name" if plain != name and plain in listing else ""
    return f" (which {CONFIGURATION} names{there})"


def _describe_weights(files: EngineFiles, listing: Mapping[str, int]) -> str:
    """What weights are called, and which file they may be in."""
    single = [name for name in files.weights if not name.endswith(".index.json")]
    known = f"{files.usual_weights}, or {' or '.join(name for name in single if name != files.usual_weights)}"
    shards = sorted(name for name in listing if _SHARD.search(name))
    if shards:
        suffix = ".safetensors" if shards[0].endswith(".safetensors") else ".bin"
        index = next(name for name in files.weights if name.endswith(f"{suffix}.index.json"))
        return f"{known}: the shards, such as {shards[0][:80]!r}, need their index {index}"
    weighty = sorted((name for name in listing if name.lower().endswith(_WEIGHTY)), key=lambda name: -listing[name])
    if not weighty:
        return known
    found = weighty[0]
    if found.lower().endswith((".onnx", ".gguf", ".h5", ".msgpack")):
        return f"{known}; {found[:80]!r} is for another program: publish the weights of PyTorch"
    if found.lower().endswith(_PARTIAL):
        return f"{known}: the download of {found[:80]!r} was not finished: download it again"
    name = "model.safetensors" if ".safetensors" in found.lower() else files.usual_weights
    return f"{known}: is it {found[:80]!r}? then name it {name}"


_SHARD = re.compile(r"-[0-9]+-of-[0-9]+\.(bin|safetensors)$")
_PARTIAL = (".part", ".incomplete", ".crdownload", ".tmp")
_WEIGHTY = (
    *(".bin", ".pt", ".pth", ".ckpt", ".safetensors", ".pkl", ".onnx", ".gguf", ".h5", ".msgpack"),
    *_PARTIAL,
)


def _describe_vocabularies(files: EngineFiles, listing: Mapping[str, int]) -> list[str]:
    """The missing files of a vocabulary that is partly there; else the files of each alternative."""
    begun = [names for names in files.vocabulary if any(name in listing for name in names[:1])]
    return [" + ".join(name for name in names if name not in listing) for names in begun or files.vocabulary]


def list_shards(index: Mapping[str, object]) -> list[str]:
    """The names of the shards in a weights index, sorted.

    Raises:
        FilesMissing: the index lists none.
    """
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, Mapping) or not weight_map:
        raise FilesMissing("the weights index has no weight_map")
    names = set(weight_map.values())
    if not all(isinstance(name, str) for name in names):
        raise FilesMissing("the weights index has a shard name that is not a string")
    return sorted(str(name) for name in names)


def list_named_files(keys: Sequence[str], configuration: Mapping[str, object]) -> list[str]:
    """The files that keys name; they are under `model`, in older repositories at the top level."""
    model = configuration.get("model")
    section = model if isinstance(model, Mapping) else {}
    names = [section.get(key) or configuration.get(key) for key in keys]
    return [name for name in names if isinstance(name, str)]


def describe_unknown_sections(configuration: Mapping[str, object]) -> tuple[str, ...]:
    """A note about top-level keys of configuration.json that are not read; none if there are no such keys."""
    unknown = sorted(key for key in configuration if key not in SECTIONS)
    shown = ", ".join(ascii(key[:80]) for key in unknown[:5]) + (", …" if len(unknown) > 5 else "")  # noqa: PLR2004
    return (f"{CONFIGURATION}: {shown} at the top level is not read",) if unknown else ()
