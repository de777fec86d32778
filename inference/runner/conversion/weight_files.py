"""Locates the tensors of a published folder in whichever of the declared weight files it has."""

import contextlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from common.durable import open_regular
from common.engine_files import MAX_CONFIG_BYTES, FilesMissing, list_shards
from common.file_kinds import HEAD_BYTES, identify_mistake
from common.json_load import load_json
from common.source import ConversionRefused
from inference.runner.conversion.config_file import read_object
from inference.runner.conversion.pickle_file import open_torch_file
from inference.runner.conversion.refusals import refusing
from inference.runner.conversion.renamed_tensors import describe_old_norms, describe_renaming, find_renamings
from inference.runner.conversion.state_dict import MatchedNames, TensorNames, match_names
from inference.runner.conversion.tensor_location import (
    MAX_HEADER_BYTES,
    MAX_TENSORS,
    TensorLocation,
    TensorTable,
    refuse,
    refuse_overlaps,
    shorten,
)
from inference.runner.conversion.trace import active_trace

INDEX_SUFFIX = ".index.json"
_LENGTH_BYTES = 8  # little-endian length of the header, at the start of a safetensors file
_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}


@dataclass(frozen=True, slots=True)
class LocatedTensors:
    """The tensors of a published folder that its architecture has."""

    file: str  # name of the weight file, or of the index of its shards
    locations: Mapping[str, TensorLocation]  # by the architecture's names
    required: int  # names that the architecture must have
    missing: tuple[str, ...]  # those of them that the file does not have
    surplus: tuple[str, ...]  # names in the file that the architecture does not have
    notes: tuple[str, ...]
    renamings: tuple[str, ...] = ()  # sentences about missing tensors that are there under other names


def locate_tensors(folder: Path, alternatives: Sequence[str], wanted: TensorNames) -> LocatedTensors:
    """Locate an architecture's tensors in the first of the alternative weight files that exists.

    Args:
        folder: published.
        alternatives: names of weight files and indexes, in the order in which the published library looks for them.
        wanted: the architecture's names.

    Raises:
        ConversionRefused: a file is damaged, breaks a rule of `tensor_location`, is missing, or has no such tensors.
        OSError: a file cannot be read.
    """
    name = _find_weights(folder, alternatives)
    with refusing(name):
        located = _locate(folder, name, alternatives, wanted)
    trace = active_trace()
    if trace is not None:
        trace.located.append(located)
    return located


def _locate(folder: Path, name: str, alternatives: Sequence[str], wanted: TensorNames) -> LocatedTensors:
    table = _open_shards(folder, name) if name.endswith(INDEX_SUFFIX) else open_file(folder / name, wanted)
    matched = match_names(name, table.names, wanted)
    locations = {known: table.locate(found) for known, found in matched.file_names.items()}
    refuse_overlaps(locations)
    unread = [other for other in alternatives if other != name and (folder / other).is_file()]
    notes = [f"{other} is ignored, since the folder has {name}" for other in unread]
    missing = tuple(known for known in wanted.required if known not in locations)
    notes += [*table.notes, *matched.describe(name)]
    renamings = _find_renamed(name, table, matched, wanted, missing) if missing else ()
    return LocatedTensors(name, locations, len(wanted.required), missing, matched.surplus, tuple(notes), renamings)


def _find_renamed(
    file: str, table: TensorTable, matched: MatchedNames, wanted: TensorNames, missing: Sequence[str]
) -> tuple[str, ...]:
    """Sentences about tensors that are there under other names."""
    if not isinstance(wanted.required, Mapping):
        return ()
    shapes: dict[str, tuple[int, ...]] = {}
    for name in matched.surplus:
        with contextlib.suppress(ConversionRefused):
            shapes[wanted.rename(name).removeprefix(matched.prefix)] = table.locate(name).shape
    lacking = {name: wanted.required[name] for name in missing}
    found = [describe_renaming(one, file, matched.prefix, wanted.show) for one in find_renamings(lacking, shapes)]
    return tuple(found) or describe_old_norms(lacking, shapes, file)


def _find_weights(folder: Path, alternatives: Sequence[str]) -> str:
    name = next((name for name in alternatives if (folder / name).is_file()), None)
    if name is None:
        raise ConversionRefused("FILES_MISSING", f"the revision lacks its weights: {' or '.join(alternatives)}")
    return name


def locate_in_file(path: Path) -> dict[str, TensorLocation]:
    """Locate all tensors of one file, which must be a plain state dict.

    Raises:
        ConversionRefused: the file is damaged or breaks a rule of `tensor_location`.
        OSError: the file cannot be read.
    """
    return _locate_all(open_file(path))


def _locate_all(table: TensorTable) -> dict[str, TensorLocation]:
    locations = {name: table.locate(name) for name in table.names}
    refuse_overlaps(locations)
    return locations


def open_file(path: Path, wanted: TensorNames | None = None) -> TensorTable:
    """Read the names of one file's tensors; its suffix decides its format.

    Args:
        path: of the file.
        wanted: the architecture's names, by which tensors are found in a checkpoint; None: the file is a state dict.

    Raises:
        ConversionRefused: the file is damaged or breaks a rule of `tensor_location`.
        OSError: the file cannot be read.
    """
    return open_safetensors(path) if path.suffix == ".safetensors" else open_torch_file(path, wanted)


def open_safetensors(path: Path) -> TensorTable:
    """Read the names of a safetensors file's tensors.

    The safetensors library validates the header: valid JSON, dtypes, sizes, and tensors that fill the file without gaps
    or overlaps. Checked here are the header's length (which bounds the library's memory), the number of tensors,
    duplicate names and the supported dtypes.

    Raises:
        ConversionRefused: the header is invalid or too large.
        OSError: the file cannot be read.
    """
    with open_regular(path) as file:
        mistake = identify_mistake(os.pread(file.fileno(), HEAD_BYTES, 0))
        if mistake:
            refuse(f"{path.name} {mistake}")
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        if os.pread(file.fileno(), 2, 0) in (b"PK", b"\x80\x02"):
            refuse(f"{path.name} is not a safetensors file: torch.save wrote it, so name it pytorch_model.bin")
        size = os.fstat(file.fileno()).st_size
        if _LENGTH_BYTES + length > size:
            cut = (
                f"{path.name} is cut off or damaged (has {size} bytes, by its first ones the header alone has {length})"
            )
            refuse(f"{cut}: download it again")
        if length > MAX_HEADER_BYTES:  # rule 2
            refuse(f"{path.name} has a header of {length} bytes, supported: {MAX_HEADER_BYTES}")
        try:
            with safe_open(path, "numpy"):  # without torch, which a broken file must not cause to be imported
                pass
        except SafetensorError as error:
            header = os.pread(file.fileno(), length, _LENGTH_BYTES)
            damage = _describe_damage(header, _LENGTH_BYTES + length, size, str(error))
            refuse(f"{path.name} {damage or f'is damaged or not a safetensors file: {shorten(str(error))}'}")
        header = load_json(os.pread(file.fileno(), length, _LENGTH_BYTES), pairs_hook=_refuse_duplicates)
    header.pop("__metadata__", None)
    if len(header) > MAX_TENSORS:  # rule 2
        refuse(f"{path.name} names {len(header)} tensors, supported: {MAX_TENSORS}")
    return TensorTable(header, lambda name: _location(path, _LENGTH_BYTES + length, name, header[name]))


def _describe_damage(header: bytes, start: int, size: int, error: str) -> str:
    """What is wrong with a file of `size` bytes whose tensors begin at `start`; empty if it is not its length."""
    try:
        entries = load_json(header).items()
        needed = start + max([0, *(int(entry["data_offsets"][1]) for name, entry in entries if name != "__metadata__")])
    except ValueError:
        return f"is damaged ({shorten(error)}): download it again"
    except (AttributeError, KeyError, TypeError, IndexError):
        return ""
    if size < needed:
        return f"is cut off (has {size} bytes, needs {needed}): download it again"
    return "" if size == needed else f"is damaged (has {size} bytes, its tensors {needed}): download it again"


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        refuse("a safetensors header names something twice")
    return entries


def _location(path: Path, data_start: int, name: str, entry: dict[str, Any]) -> TensorLocation:
    shape, dtype = tuple(entry["shape"]), entry["dtype"]
    if dtype not in _DTYPES:
        advice = "; convert the tensors to bfloat16, and save again" if str(dtype).startswith("F") else ""
        refuse(f"{path.name}: tensor {shorten(name)} is of type {dtype}, supported: {', '.join(_DTYPES)}{advice}")
    return TensorLocation(path, data_start + entry["data_offsets"][0], _DTYPES[dtype], shape, tuple(range(len(shape))))


def _open_shards(folder: Path, index: str) -> TensorTable:
    """Read the names of the tensors in all shards of an index (rule 5)."""
    suffix = Path(index.removesuffix(INDEX_SUFFIX)).suffix
    weight_map = _read_weight_map(folder, index)
    shard_of: dict[str, TensorTable] = {}
    for shard in sorted(set(weight_map.values())):
        if Path(shard).name != shard or not (folder / shard).is_file():
            message = f"{index} names {shorten(shard)!r}, which is not a file of the revision"
            raise ConversionRefused("FILES_MISSING", message)
        if Path(shard).suffix != suffix:
            refuse(f"{index} names {shorten(shard)!r}, supported: names that end in {suffix}")
        table = open_file(folder / shard)
        for name in table.names:
            if name in shard_of:
                refuse(f"tensor {shorten(name)} is in two files")
            if weight_map.get(name) != shard:
                refuse(f"tensor {shorten(name)} is in {shorten(shard)}, but {index} does not list it there")
            shard_of[name] = table
    missing = sorted(set(weight_map) - set(shard_of))
    if missing:
        refuse(f"tensor {shorten(missing[0])} is listed by {index} but is in no shard")
    return TensorTable(shard_of, lambda name: shard_of[name].locate(name))


def _read_weight_map(folder: Path, index: str) -> dict[str, str]:
    """File name of each tensor, by its name."""
    content = read_object(folder, index, MAX_CONFIG_BYTES)
    try:
        list_shards(content)
    except FilesMissing as error:
        raise ConversionRefused("FILES_MISSING", f"{index} is not a valid weights index: {error}") from error
    weight_map: dict[str, str] = content["weight_map"]
    return weight_map
