"""What torch.save writes, zip archive or the older plain pickles: names, types and places of its tensors."""

import io
import os
import re
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeGuard

from inference.runner.conversion.pickle_machine import Pickled, Storage, run_pickle
from inference.runner.conversion.places import (
    ITEM_BYTES,
    MAX_HEADER_BYTES,
    MAX_TENSORS,
    Place,
    check_spans,
    refuse,
    shown,
)

_END = struct.Struct("<4s4H2LH")  # mark, disks, entries, size and place of the directory, comment's length
_END_MARK = b"PK\x05\x06"
_FAR_POINTER = struct.Struct("<4sLQL")  # mark, disk, place of the far end, disks
_FAR_POINTER_MARK = b"PK\x06\x07"
_FAR_END = struct.Struct("<4sQ2H2L4Q")  # mark, …, entries, size and place of the directory
_FAR_END_MARK = b"PK\x06\x06"
_FAR, _FAR_ENTRIES = 0xFFFFFFFF, 0xFFFF  # in the short form: see the long one
_LOCAL = struct.Struct("<4s5H3L2H")  # "PK\3\4", …, lengths of name and extra field
_NAMES = re.compile(
    r"data\.pkl|data/[0-9]+|version|byteorder|\.data/serialization_id|\.format_version|\.storage_alignment"
)


@dataclass(frozen=True, slots=True)
class Record:
    """One record."""

    start: int  # byte of the file
    size: int  # bytes


def zip_records(path: Path, file: BinaryIO) -> dict[str, Record]:
    """Find the records of an archive by their names without its folder.

    Raises:
        ConversionRefused: it is damaged, packed, or holds what torch.save does not write.
        OSError: it cannot be read.
    """
    _check_directory(path.name, file)
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error):
        refuse(f"{path.name} is damaged: its archive's directory makes no sense")
    folder = entries[0].filename.split("/", 1)[0] if entries else ""
    records: dict[str, Record] = {}
    for entry in entries:
        name = entry.filename.removeprefix(f"{folder}/")
        if not _NAMES.fullmatch(name) or name == entry.filename:
            refuse(f"{path.name} holds {shown(entry.filename)!r}, supported: what torch.save writes, and no archives")
        if name in records:
            refuse(f"{path.name} holds {name!r} twice")
        records[name] = _record(path.name, file, name, entry)
    return records


def _check_directory(name: str, file: BinaryIO) -> None:
    """Rule 2: the directory's size, before anybody reads it; a long form of it counts too, where it stands."""
    place = os.fstat(file.fileno()).st_size - _END.size
    raw = os.pread(file.fileno(), _END.size, max(0, place))
    if len(raw) < _END.size or not raw.startswith(_END_MARK) or not raw.endswith(b"\0\0"):
        refuse(f"{name} is damaged: its archive has no end")
    *_, entries, size, _, _ = _END.unpack(raw)
    place -= _FAR_POINTER.size
    pointer = os.pread(file.fileno(), _FAR_POINTER.size, max(0, place))
    if pointer.startswith(_FAR_POINTER_MARK):
        place -= _FAR_END.size
        far = os.pread(file.fileno(), _FAR_END.size, max(0, place))
        if len(far) < _FAR_END.size or not far.startswith(_FAR_END_MARK) or _FAR_POINTER.unpack(pointer)[2] != place:
            refuse(f"{name} is damaged: its archive has no end")
        *_, far_entries, far_size, _ = _FAR_END.unpack(far)
        entries, size = max(entries % _FAR_ENTRIES, far_entries), max(size % _FAR, far_size)
    if entries > 2 * MAX_TENSORS or size > MAX_HEADER_BYTES:
        refuse(f"{name} is an archive of {entries} records in a directory of {size} bytes, which is too many")


def _record(file_name: str, file: BinaryIO, name: str, entry: zipfile.ZipInfo) -> Record:
    if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size or entry.flag_bits & 1:
        refuse(f"{file_name}: record {name!r} is packed or encrypted, supported: records as they are")  # rule 3
    raw = os.pread(file.fileno(), _LOCAL.size, entry.header_offset) if entry.header_offset >= 0 else b""
    if len(raw) < _LOCAL.size or not raw.startswith(b"PK\x03\x04"):
        refuse(f"{file_name} is damaged: record {name!r} is not where its directory says")
    fields = _LOCAL.unpack(raw)
    start = entry.header_offset + _LOCAL.size + fields[-2] + fields[-1]
    if start + entry.file_size > os.fstat(file.fileno()).st_size:
        refuse(f"{file_name} is damaged: record {name!r} ends behind the file")  # rule 3
    return Record(start, entry.file_size)


def named(records: Mapping[str, Record], file_name: str, name: str) -> Record:
    """A record that must be there.

    Raises:
        ConversionRefused: it is not.
    """
    if name not in records:
        refuse(f"{file_name} lacks the record {shown(name)!r}")
    return records[name]


_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # with which an older file begins
_COUNT = struct.Struct("<q")  # numbers of a storage, before them in an older file
_MAX_DIMENSIONS = 8
_OTHERS = {
    b"\x1f\x8b": "a gzip archive",
    b"BZh": "a bzip2 archive",
    b"\xfd7zXZ": "an xz archive",
    b"\x28\xb5\x2f\xfd": "a zstd archive",
    b"7z\xbc\xaf": "a 7z archive",
    b"version https://git-lfs": "a pointer to a file elsewhere",
}
_TAR_MARK, _TAR_MARK_PLACE = b"ustar", 257


def pickle_places(path: Path) -> dict[str, Place]:
    """Find the tensors of a file.

    Raises:
        ConversionRefused: it is damaged, holds anything but named tensors, or would run code.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        head = os.pread(file.fileno(), 512, 0)
        _check_kind(path.name, head)
        if head.startswith(b"PK"):
            found, starts = _of_archive(path, file)
        else:
            found, starts = _of_pickles(path, file)
    if not isinstance(found, dict) or not all(isinstance(one, Pickled) for one in found.values()):
        refuse(f"{path.name} holds something else than named tensors, supported: a plain state dict")
    if len(found) > MAX_TENSORS:
        refuse(f"{path.name} names {len(found)} tensors, supported: {MAX_TENSORS}")  # rule 2
    places = {name: _place(path, name, pickled, starts) for name, pickled in found.items()}
    check_spans(path.name, places)
    return places


def _check_kind(name: str, head: bytes) -> None:
    kind = next((kind for mark, kind in _OTHERS.items() if head.startswith(mark)), None)
    if head[_TAR_MARK_PLACE:].startswith(_TAR_MARK):
        kind = "a tar archive"
    if kind:
        refuse(f"{name} is {kind}, supported: what torch.save writes")


def _of_archive(path: Path, file: BinaryIO) -> tuple[object, Mapping[str, Record]]:
    """What the archive's pickle says, and where each storage lies."""
    if not zipfile.is_zipfile(file):
        refuse(f"{path.name} is damaged: its archive has no end")
    records = zip_records(path, file)
    order = records.get("byteorder")
    if order and os.pread(file.fileno(), min(order.size, 16), order.start) != b"little":
        refuse(f"{path.name} holds big-endian numbers, supported: little-endian")
    pickled = named(records, path.name, "data.pkl")
    if pickled.size > MAX_HEADER_BYTES:
        refuse(f"{path.name} has a pickle of {pickled.size} bytes, supported: {MAX_HEADER_BYTES}")  # rule 2
    found = run_pickle(path.name, io.BytesIO(os.pread(file.fileno(), pickled.size, pickled.start)))
    return found, {name.removeprefix("data/"): one for name, one in records.items() if name.startswith("data/")}


def _of_pickles(path: Path, file: BinaryIO) -> tuple[object, Mapping[str, Record]]:
    """The same of an older file: five pickles, then the storages in the order of the fifth."""
    data = io.BytesIO(os.pread(file.fileno(), MAX_HEADER_BYTES, 0))  # rule 2
    if run_pickle(path.name, data) != _MAGIC:
        refuse(f"{path.name} is a pickle, but none that torch.save writes")
    protocol, system = run_pickle(path.name, data), run_pickle(path.name, data)
    if protocol != _PROTOCOL or not isinstance(system, dict) or system.get("little_endian") is not True:
        refuse(f"{path.name} holds big-endian numbers or is of another protocol, supported: little-endian, {_PROTOCOL}")
    found, keys = run_pickle(path.name, data), run_pickle(path.name, data)
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys) or len(set(keys)) != len(keys):
        refuse(f"{path.name} is damaged: its list of storages makes no sense")
    dtypes = {one.storage.key: one.storage.dtype for one in _tensors(found)}
    starts: dict[str, Record] = {}
    place, end = data.tell(), os.fstat(file.fileno()).st_size
    for key in keys:
        raw = os.pread(file.fileno(), _COUNT.size, place)
        count = _COUNT.unpack(raw)[0] if len(raw) == _COUNT.size else -1
        size = count * ITEM_BYTES[dtypes.get(key, "uint8")]
        place += _COUNT.size
        if count < 0 or place + size > end:
            refuse(f"{path.name} is damaged: storage {shown(key)!r} ends behind the file")  # rule 3
        starts[key] = Record(place, size)
        place += size
    return found, starts


def _tensors(found: object) -> list[Pickled]:
    return [one for one in found.values() if isinstance(one, Pickled)] if isinstance(found, dict) else []


def _place(path: Path, name: str, pickled: Pickled, starts: Mapping[str, Record]) -> Place:
    """Rule 4, for one tensor."""
    storage, offset, shape, strides = pickled.storage, pickled.offset, pickled.shape, pickled.strides
    if not _are_counts(shape) or not _are_counts(strides) or len(shape) != len(strides) or type(offset) is not int:
        refuse(f"{path.name}: tensor {shown(name)} has a shape, strides or offset that are no counts")
    record = _storage_record(path.name, name, storage, starts)
    order = _dense_order(shape, strides)
    if order is None:
        message = f"{path.name}: tensor {shown(name)} of shape {shape} has strides {strides}, supported: dense ones"
        refuse(message[:400])
    place = Place(path, record.start + offset * ITEM_BYTES[storage.dtype], storage.dtype, shape, order)
    if offset < 0 or place.stop > record.start + record.size:
        refuse(f"{path.name}: tensor {shown(name)} ends behind its storage")
    return place


def _storage_record(file: str, name: str, storage: Storage, starts: Mapping[str, Record]) -> Record:
    record = starts.get(storage.key)
    if record is None:
        refuse(f"{file}: tensor {shown(name)} has no storage")
    if storage.count < 0 or storage.count * ITEM_BYTES[storage.dtype] != record.size:
        refuse(f"{file}: the storage of tensor {shown(name)} has {record.size} bytes, which is not what it says")
    return record


def _are_counts(values: object) -> TypeGuard[tuple[int, ...]]:
    if not isinstance(values, tuple) or len(values) > _MAX_DIMENSIONS:
        return False
    return all(type(value) is int and 0 <= value < 1 << 48 for value in values)


def _dense_order(shape: tuple[int, ...], strides: tuple[int, ...]) -> tuple[int, ...] | None:
    """The dimensions from the slowest to the fastest, or None if there are gaps or repetitions."""
    order = tuple(sorted(range(len(shape)), key=lambda number: (-strides[number], number)))
    expected = 1
    for number in reversed([number for number in order if shape[number] != 1]):
        if strides[number] != expected:
            return None
        expected *= max(1, shape[number])
    return order
