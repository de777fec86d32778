"""Locates tensors in files of torch.save: zip archives (torch 1.6 and later) and the older plain pickles."""

import io
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeGuard

from common.durable import open_regular
from common.file_kinds import HEAD_BYTES, identify_mistake
from inference.runner.conversion.pickle_machine import NUMPY_ADVICE, PickledStorage, PickledTensor, run_pickle
from inference.runner.conversion.state_dict import FoundStateDict, TensorNames, find_state_dict
from inference.runner.conversion.tensor_location import (
    ITEM_BYTES,
    MAX_HEADER_BYTES,
    MAX_TENSORS,
    TensorLocation,
    TensorTable,
    refuse,
    shorten,
)

_END = struct.Struct("<4s4H2LH")  # end record: mark, disks, entries, size and offset of the directory, comment's length
_END_MARK = b"PK\x05\x06"
_ZIP64_LOCATOR = struct.Struct("<4sLQL")  # mark, disk, offset of the ZIP64 end record, disks
_ZIP64_LOCATOR_MARK = b"PK\x06\x07"
_ZIP64_END = struct.Struct("<4sQ2H2L4Q")  # mark, …, entries, size and offset of the directory
_ZIP64_END_MARK = b"PK\x06\x06"
_ZIP64_SIZE, _ZIP64_ENTRIES = 0xFFFFFFFF, 0xFFFF  # values that refer to the ZIP64 end record
_SEARCHED_BYTES = 4096  # at the start of a pickle that is too large
_CRC_BYTES = 1 << 20  # read at a time
_PICKLE_MARK = b"\x80"  # of the protocols that torch.save uses
_LOCAL = struct.Struct("<4s5H3L2H")  # "PK\3\4", …, lengths of name and extra field
_PUBLISHED = (".bin", ".pt", ".pth", ".ckpt", ".safetensors", ".json", ".txt")  # files that people pack
_NAMES = re.compile(
    r"data\.pkl|data/[0-9]+|version|byteorder|\.data/serialization_id|\.format_version|\.storage_alignment"
)


@dataclass(frozen=True, slots=True)
class ArchiveRecord:
    """Position of a record's content in the file."""

    start: int  # byte offset in the file
    size: int  # bytes
    crc: int = 0  # CRC-32 by the archive's directory; 0: it has none, as torch.save can be told to write


def list_records(path: Path, file: BinaryIO) -> dict[str, ArchiveRecord]:
    """Return the records of an archive by name, without the name of its folder.

    Raises:
        ConversionRefused: the archive is damaged, compressed, or contains records that torch.save does not write.
        OSError: the file cannot be read.
    """
    _check_directory(path.name, file)
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error):
        refuse(f"{path.name} is damaged: its archive's directory is malformed")
    folder = entries[0].filename.split("/", 1)[0] if entries else ""
    records: dict[str, ArchiveRecord] = {}
    for entry in entries:
        name = entry.filename.removeprefix(f"{folder}/")
        if entry.filename.lower().endswith(_PUBLISHED):
            refuse(f"{path.name} is a zip archive with {shorten(entry.filename)!r} in it: unpack it, and publish that")
        if not _NAMES.fullmatch(name) or name == entry.filename:
            refuse(f"{path.name} contains {shorten(entry.filename)!r}, supported: records that torch.save writes")
        if name in records:
            refuse(f"{path.name} contains {name!r} twice")
        records[name] = _locate_record(path.name, file, name, entry)
    return records


def _check_directory(name: str, file: BinaryIO) -> None:
    """Check the size of the archive's directory before it is read (rule 2), including a ZIP64 directory."""
    offset = os.fstat(file.fileno()).st_size - _END.size
    raw = os.pread(file.fileno(), _END.size, max(0, offset))
    if len(raw) < _END.size or not raw.startswith(_END_MARK) or not raw.endswith(b"\0\0"):
        refuse(f"{name} is cut off or damaged: its archive has no valid end record; upload or download it again")
    *_, entries, size, _, _ = _END.unpack(raw)
    offset -= _ZIP64_LOCATOR.size
    pointer = os.pread(file.fileno(), _ZIP64_LOCATOR.size, max(0, offset))
    if pointer.startswith(_ZIP64_LOCATOR_MARK):
        offset -= _ZIP64_END.size
        zip64 = os.pread(file.fileno(), _ZIP64_END.size, max(0, offset))
        if (
            len(zip64) < _ZIP64_END.size
            or not zip64.startswith(_ZIP64_END_MARK)
            or _ZIP64_LOCATOR.unpack(pointer)[2] != offset
        ):
            refuse(f"{name} is cut off or damaged: its archive has no valid end record; upload or download it again")
        *_, zip64_entries, zip64_size, _ = _ZIP64_END.unpack(zip64)
        entries, size = max(entries % _ZIP64_ENTRIES, zip64_entries), max(size % _ZIP64_SIZE, zip64_size)
    if entries > 2 * MAX_TENSORS or size > MAX_HEADER_BYTES:
        refuse(f"{name} is an archive of {entries} records in a directory of {size} bytes, which is too large")


def _locate_record(file_name: str, file: BinaryIO, name: str, entry: zipfile.ZipInfo) -> ArchiveRecord:
    if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size or entry.flag_bits & 1:
        refuse(f"{file_name}: record {name!r} is compressed or encrypted, supported: stored records")  # rule 3
    raw = os.pread(file.fileno(), _LOCAL.size, entry.header_offset) if entry.header_offset >= 0 else b""
    if len(raw) < _LOCAL.size or not raw.startswith(b"PK\x03\x04"):
        refuse(f"{file_name} is damaged: record {name!r} is not at the position in its directory")
    fields = _LOCAL.unpack(raw)
    start = entry.header_offset + _LOCAL.size + fields[-2] + fields[-1]
    if start + entry.file_size > os.fstat(file.fileno()).st_size:
        refuse(f"{file_name} is damaged: record {name!r} ends after the end of the file")  # rule 3
    return ArchiveRecord(start, entry.file_size, entry.CRC)


def check_records(paths: Iterable[Path]) -> None:
    """Compare the content of archives with the CRCs in their directories; reads them whole. Other files are skipped.

    Raises:
        ConversionRefused: a record is damaged, or records overlap.
        OSError: a file cannot be read.
    """
    for path in sorted(set(paths)):
        with open_regular(path) as file:
            if os.pread(file.fileno(), 2, 0) != b"PK":
                continue
            records = list_records(path, file)
            if sum(record.size for record in records.values()) > os.fstat(file.fileno()).st_size:
                refuse(f"{path.name} is damaged: its archive's records overlap")
            for name, record in records.items():
                is_content = name == "data.pkl" or name.startswith("data/")
                if is_content and record.crc and record.crc != _compute_crc(file, record):
                    refuse(
                        f"{path.name} is damaged: the content of record {name!r} does not have the checksum in its"
                        " archive's directory; upload or download it again"
                    )


def _compute_crc(file: BinaryIO, record: ArchiveRecord) -> int:
    crc, stop = 0, record.start + record.size
    for start in range(record.start, stop, _CRC_BYTES):
        crc = zlib.crc32(os.pread(file.fileno(), min(_CRC_BYTES, stop - start), start), crc)
    return crc


def require_record(records: Mapping[str, ArchiveRecord], file_name: str, name: str) -> ArchiveRecord:
    """Return a record.

    Raises:
        ConversionRefused: the archive lacks it.
    """
    if name not in records:
        refuse(f"{file_name} lacks the record {shorten(name)!r}")
    return records[name]


_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # first two pickles of the older format
_COUNT = struct.Struct("<q")  # elements of a storage, before its data in the older format
_MAX_DIMENSIONS = 8


def open_torch_file(path: Path, wanted: TensorNames | None) -> TensorTable:
    """Read the names of a file's tensors; a tensor is checked when it is located.

    Args:
        path: of the file.
        wanted: the architecture's names, by which tensors are found in a checkpoint; None: the file is a state dict.

    Raises:
        ConversionRefused: the file is damaged, contains no named tensors, or would run code.
        OSError: the file cannot be read.
    """
    with open_regular(path) as file:
        head = os.pread(file.fileno(), HEAD_BYTES, 0)
        mistake = identify_mistake(head)
        if mistake:
            refuse(f"{path.name} {mistake}")
        if head.startswith(b"PK"):
            found, starts = _read_archive(path, file)
        elif head.startswith(_PICKLE_MARK):
            found, starts = _read_pickles(path, file)
        else:
            is_safetensors = head[8:9] == b"{"
            advice = ": it is a safetensors file, so name it model.safetensors" if is_safetensors else ""
            refuse(f"{path.name} is not what torch.save writes, neither an archive nor a pickle{advice}")
    if wanted is None:
        chosen = FoundStateDict(_as_state_dict(path.name, found), ())
    else:
        chosen = find_state_dict(path.name, found, wanted)
    tensors = chosen.tensors
    if len(tensors) > MAX_TENSORS:
        refuse(f"{path.name} names {len(tensors)} tensors, supported: {MAX_TENSORS}")  # rule 2
    return TensorTable(tensors, lambda name: _locate(path, name, tensors[name], starts), chosen.notes)


def _as_state_dict(file: str, found: object) -> dict[str, PickledTensor]:
    if not isinstance(found, dict) or not all(isinstance(one, PickledTensor) for one in found.values()):
        refuse(f"{file} contains something other than named tensors, supported: a plain state dict")
    return found


def _read_archive(path: Path, file: BinaryIO) -> tuple[object, Mapping[str, ArchiveRecord]]:
    """Return the content of the archive's pickle, and the record of each storage."""
    if not zipfile.is_zipfile(file):
        refuse(f"{path.name} is cut off or damaged: its archive has no valid end record; upload or download it again")
    records = list_records(path, file)
    order = records.get("byteorder")
    if order and os.pread(file.fileno(), min(order.size, 16), order.start) != b"little":
        refuse(f"{path.name} contains big-endian numbers, supported: little-endian")
    pickled = require_record(records, path.name, "data.pkl")
    if pickled.size > MAX_HEADER_BYTES:
        has_arrays = b"numpy" in os.pread(file.fileno(), _SEARCHED_BYTES, pickled.start)
        advice = f"; {NUMPY_ADVICE}" if has_arrays else ""
        refuse(f"{path.name} has a pickle of {pickled.size} bytes, supported: {MAX_HEADER_BYTES}{advice}")  # rule 2
    found = run_pickle(path.name, io.BytesIO(os.pread(file.fileno(), pickled.size, pickled.start)))
    return found, {name.removeprefix("data/"): one for name, one in records.items() if name.startswith("data/")}


def _read_pickles(path: Path, file: BinaryIO) -> tuple[object, Mapping[str, ArchiveRecord]]:
    """Do the same for the older format: five pickles, then the storages in the order of the fifth."""
    data = io.BytesIO(os.pread(file.fileno(), MAX_HEADER_BYTES, 0))  # rule 2
    if run_pickle(path.name, data) != _MAGIC:
        refuse(f"{path.name} is a pickle, but not of torch.save")
    protocol, system = run_pickle(path.name, data), run_pickle(path.name, data)
    if protocol != _PROTOCOL or not isinstance(system, dict) or system.get("little_endian") is not True:
        refuse(
            f"{path.name} contains big-endian numbers or is of another protocol, supported: little-endian, {_PROTOCOL}"
        )
    found, keys = run_pickle(path.name, data), run_pickle(path.name, data)
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys) or len(set(keys)) != len(keys):
        refuse(f"{path.name} is damaged: its list of storages is malformed")
    dtypes = {one.storage.key: one.storage.dtype for one in _tensors(found)}
    starts: dict[str, ArchiveRecord] = {}
    offset, end = data.tell(), os.fstat(file.fileno()).st_size
    for key in keys:
        raw = os.pread(file.fileno(), _COUNT.size, offset)
        count = _COUNT.unpack(raw)[0] if len(raw) == _COUNT.size else -1
        size = count * ITEM_BYTES[dtypes.get(key, "uint8")]
        offset += _COUNT.size
        if count < 0 or offset + size > end:
            refuse(f"{path.name} is damaged: storage {shorten(key)!r} ends after the end of the file")  # rule 3
        starts[key] = ArchiveRecord(offset, size)
        offset += size
    return found, starts


def _tensors(found: object) -> Iterator[PickledTensor]:
    """Every tensor in nested collections, which a pickle may share and close to a circle."""
    waiting, seen = [found], set()
    while waiting:
        one = waiting.pop()
        if isinstance(one, PickledTensor):
            yield one
        elif isinstance(one, dict | list | tuple) and id(one) not in seen:
            seen.add(id(one))
            waiting.extend(one.values() if isinstance(one, dict) else one)


def _locate(path: Path, name: str, pickled: PickledTensor, starts: Mapping[str, ArchiveRecord]) -> TensorLocation:
    """Locate one tensor and check rule 4."""
    storage, offset, shape, strides = pickled.storage, pickled.offset, pickled.shape, pickled.strides
    if not _are_counts(shape) or not _are_counts(strides) or len(shape) != len(strides) or type(offset) is not int:
        refuse(f"{path.name}: tensor {shorten(name)} has an invalid shape, strides or offset")
    record = _find_storage(path.name, name, storage, starts)
    order = _find_dense_order(shape, strides)
    if order is None:
        message = f"{path.name}: tensor {shorten(name)} of shape {shape} has strides {strides}, supported: dense ones"
        refuse(message[:400])
    location = TensorLocation(path, record.start + offset * ITEM_BYTES[storage.dtype], storage.dtype, shape, order)
    if offset < 0 or location.stop > record.start + record.size:
        refuse(f"{path.name}: tensor {shorten(name)} ends after the end of its storage")
    return location


def _find_storage(file: str, name: str, storage: PickledStorage, starts: Mapping[str, ArchiveRecord]) -> ArchiveRecord:
    record = starts.get(storage.key)
    if record is None:
        refuse(f"{file}: tensor {shorten(name)} has no storage")
    if storage.count < 0 or storage.count * ITEM_BYTES[storage.dtype] != record.size:
        refuse(f"{file}: the storage of tensor {shorten(name)} has {record.size} bytes, which is not its declared size")
    return record


def _are_counts(values: object) -> TypeGuard[tuple[int, ...]]:
    if not isinstance(values, tuple) or len(values) > _MAX_DIMENSIONS:
        return False
    return all(type(value) is int and 0 <= value < 1 << 48 for value in values)


def _find_dense_order(shape: tuple[int, ...], strides: tuple[int, ...]) -> tuple[int, ...] | None:
    """Return the dimensions from the slowest to the fastest varying, or None if elements overlap or leave gaps."""
    order = tuple(sorted(range(len(shape)), key=lambda number: (-strides[number], number)))
    expected = 1
    for number in reversed([number for number in order if shape[number] != 1]):
        if strides[number] != expected:
            return None
        expected *= max(1, shape[number])
    return order
