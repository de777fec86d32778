"""The records of a zip archive that torch.save writes: where each lies in the file, as it is."""

import os
import re
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from inference.runner.conversion.places import MAX_HEADER_BYTES, MAX_TENSORS, refuse, shown

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
