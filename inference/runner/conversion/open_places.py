"""The weights of a published folder, whichever of the declared files hold them."""

import json
from collections.abc import Callable
from pathlib import Path

from common.durable import read_bounded
from common.engine_files import MAX_CONFIG_BYTES, OFA, FilesMissing, list_shards
from common.source import ConversionRefused
from inference.runner.conversion.pickle_file import pickle_places
from inference.runner.conversion.places import Place, refuse, shown
from inference.runner.conversion.safetensors_file import safetensors_places

INDEX_SUFFIX = ".index.json"
_READERS: dict[str, Callable[[Path], dict[str, Place]]] = {".safetensors": safetensors_places, ".bin": pickle_places}


def open_places(folder: Path) -> dict[str, Place]:
    """Find the tensors of the first of the declared alternatives that is there.

    Raises:
        ConversionRefused: a file is damaged, breaks one of the rules of `places`, or is missing.
        OSError: a file cannot be read.
    """
    name = next((name for name in OFA.weights if (folder / name).is_file()), None)
    if name is None:
        raise ConversionRefused("FILES_MISSING", f"the revision lacks {' or '.join(OFA.weights)}")
    if name.endswith(INDEX_SUFFIX):
        return _of_shards(folder, name)
    return file_places(folder / name)


def file_places(path: Path) -> dict[str, Place]:
    """Find the tensors of one file.

    Raises:
        ConversionRefused: it is damaged, or breaks one of the rules of `places`.
        OSError: it cannot be read.
    """
    return _READERS[path.suffix](path)


def _of_shards(folder: Path, index: str) -> dict[str, Place]:
    """Rule 5."""
    suffix = Path(index.removesuffix(INDEX_SUFFIX)).suffix
    weight_map = _weight_map(folder, index)
    places: dict[str, Place] = {}
    for shard in sorted(set(weight_map.values())):
        if Path(shard).name != shard or not (folder / shard).is_file():
            message = f"{index} names {shown(shard)!r}, which is no file of the revision"
            raise ConversionRefused("FILES_MISSING", message)
        if Path(shard).suffix != suffix:
            refuse(f"{index} names {shown(shard)!r}, supported: names that end in {suffix}")
        for name, place in file_places(folder / shard).items():
            if name in places:
                refuse(f"tensor {shown(name)} stands in two files")
            if weight_map.get(name) != shard:
                refuse(f"tensor {shown(name)} stands in {shown(shard)}, which {index} does not say")
            places[name] = place
    lost = sorted(set(weight_map) - set(places))
    if lost:
        refuse(f"tensor {shown(lost[0])} is named by {index} and stands in no shard")
    return places


def _weight_map(folder: Path, index: str) -> dict[str, str]:
    """File of each tensor."""
    try:
        row = json.loads(read_bounded(folder / index, MAX_CONFIG_BYTES))
        list_shards(row)
    except (ValueError, AttributeError, RecursionError) as error:
        kind = "FILES_MISSING" if isinstance(error, FilesMissing) else "CONFIG_BROKEN"
        raise ConversionRefused(kind, f"{index} is no weights index") from error
    weight_map: dict[str, str] = row["weight_map"]
    return weight_map
