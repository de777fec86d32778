"""Whether staged files may become a bundle. Nothing foreign has been interpreted before, except configuration.json.

 1. File set: exactly the files that the engine declares, none more, none less.
 2. Safe names: plain, no path, no control character, each once.
 3. Regular files only: no link, no folder, no device, no second name of the same file.
 4. Sizes: as listed.
 5. SHA-256: as listed, read again from the disk after it was synced there.
 6. Source digest: that of the revision which was decided for.
 7. Formats: by ending and by content on the allow-list; nothing that is code.
 8. Configuration: no key that asks for code, a task and model type that an engine of this build serves.
 9. Compatibility: the task of what serves.
Then the conversion, in a child with limits, checks names, shapes and finiteness of the weights.
"""

import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from common.bundle import BundleFile, source_digest
from common.engine_files import CONFIGURATION, MAX_CONFIG_BYTES, EngineFiles
from common.published import MAX_FILE_BYTES, ManifestBroken, check_files
from common.regular import NotRegular, open_within
from updater.hub.transfer import TransferBroken, hash_within
from updater.ports import EffectFailed
from updater.store.declared import NotServable, declared, engine_of, parse_object
from updater.store.faults import permanent

MAX_DEPTH = 32
_SUFFIXES = (".json", ".txt", ".safetensors", ".bin")
_CODE_KEYS = {"plugins", "allow_remote", "auto_map", "trust_remote_code", "custom_pipelines"}
_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"
_HEAD_BYTES = 9


def verify(
    folder: Path, digest: str, listed: Sequence[BundleFile] | None, task: str, keep_on: Callable[[], None]
) -> EngineFiles:
    """Run the whole list over a folder of staged or kept files.

    Args:
        folder: holds the files and nothing else.
        digest: source digest that was decided for.
        listed: what the hub listed of them; None for kept files, which the digest alone names.
        task: of what serves; empty if nothing does.
        keep_on: called often; raises to stop.

    Returns:
        The engine that serves it.

    Raises:
        EffectFailed: PERMANENT, with the number's reason and what differs.
        OSError: our own disk failed.
    """
    names = _names_in(folder)
    try:
        check_files([BundleFile(name, 0, "0" * 64) for name in names])  # rule 2
    except ManifestBroken as error:
        raise permanent("UNSAFE_NAME", str(error)) from error
    _check_regular(folder, names)  # rule 3
    configuration = _object(folder, CONFIGURATION, names)
    engine = _check_set(folder, names)  # rule 1
    found = _hash_all(folder, names, listed, keep_on)  # rules 4 and 5
    if source_digest(found) != digest:  # rule 6
        raise permanent("CONTENT_MISMATCH", "the files are not those of the revision that was decided for")
    for file in found:
        _check_format(folder, file)  # rule 7
    for name in names:
        if name.endswith(".json") and not name.endswith("vocab.json"):
            _check_configuration(_object(folder, name, names), name)  # rule 8
    if engine_of(configuration) is not engine:
        raise permanent("CONFIG_CHANGED", f"{CONFIGURATION} changed while it was checked")
    if task and engine.task.value != task:  # rule 9
        raise permanent("TASK_CHANGED", f"its task is {engine.task.value!r}, what serves does {task!r}")
    return engine


def _names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def _check_regular(folder: Path, names: Sequence[str]) -> None:
    for name in names:
        seen = (folder / name).lstat()
        if not stat.S_ISREG(seen.st_mode):
            raise permanent("NOT_REGULAR", f"{name} is no regular file")
        if seen.st_nlink != 1:
            raise permanent("NOT_REGULAR", f"{name} has a second name, by which it could be changed")


def _check_set(folder: Path, names: Sequence[str]) -> EngineFiles:
    sizes = {name: (folder / name).stat().st_size for name in names}
    try:
        found = declared(sizes, lambda name: _read(folder, name))
    except NotServable as error:
        raise permanent(error.reason, str(error)) from error
    more, less = sorted(set(names) - set(found.names)), sorted(set(found.names) - set(names))
    if less:
        raise permanent("FILES_MISSING", f"the revision lacks {less[0]}")
    if more:
        raise permanent("FILES_UNKNOWN", f"{more[0]} is none of the files that the engine {found.engine.engine} takes")
    return found.engine


def _hash_all(
    folder: Path, names: Sequence[str], listed: Sequence[BundleFile] | None, keep_on: Callable[[], None]
) -> list[BundleFile]:
    rows = {file.name: file for file in listed or ()}
    if listed is not None and set(rows) != set(names):
        raise permanent("FILES_UNKNOWN", "the files are not those that were listed")
    found = []
    for name in names:
        row = rows.get(name)
        try:
            file = hash_within(folder, name, row.size if row else MAX_FILE_BYTES, keep_on)
        except (TransferBroken, NotRegular) as error:
            raise permanent("CONTENT_MISMATCH", str(error)) from error
        if row is not None and file.size != row.size:  # rule 4
            raise permanent("CONTENT_MISMATCH", f"{name} has {file.size} bytes, listed were {row.size}")
        if row is not None and file.sha256 != row.sha256:  # rule 5
            raise permanent(
                "CONTENT_MISMATCH", f"{name}: SHA-256 {file.sha256[:12]}… on disk, {row.sha256[:12]}… listed"
            )
        found.append(file)
    return found


def _check_format(folder: Path, file: BundleFile) -> None:
    suffix = Path(file.name).suffix
    if suffix not in _SUFFIXES:
        raise permanent("FORMAT_UNKNOWN", f"{file.name} is of no format that is taken ({', '.join(_SUFFIXES)})")
    with open_within(folder, file.name) as opened:
        head = opened.read(_HEAD_BYTES)
    if suffix == ".bin" and not head.startswith((_ZIP, _PICKLE)):
        raise permanent("FORMAT_UNKNOWN", f"{file.name} is no archive of tensors")
    if suffix in (".json", ".txt") and head.startswith((_ZIP, b"\x7fELF", b"#!", b"\x1f\x8b")):
        raise permanent("FORMAT_UNKNOWN", f"{file.name} is no text")


def _check_configuration(row: Mapping[str, Any], name: str) -> None:
    for key, value, depth in _walk(row, 0):
        if depth > MAX_DEPTH:
            raise permanent("CONFIG_BROKEN", f"{name} is nested deeper than {MAX_DEPTH}")
        if key in _CODE_KEYS and value not in (None, False, [], {}):
            raise permanent("CONFIG_ASKS_FOR_CODE", f"{name} has {key!r}, which asks for code of the repository")


def _walk(value: object, depth: int, key: str = "") -> Iterator[tuple[str, object, int]]:
    yield key, value, depth
    if depth > MAX_DEPTH:
        return
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _walk(inner, depth + 1, str(name))
    elif isinstance(value, list):
        for inner in value:
            yield from _walk(inner, depth + 1, key)


def _object(folder: Path, name: str, names: Sequence[str]) -> dict[str, Any]:
    if name not in names:
        raise permanent("FILES_MISSING", f"the revision lacks {name}")
    try:
        return parse_object(_read(folder, name), name)
    except NotServable as error:
        raise permanent(error.reason, str(error)) from error


def _read(folder: Path, name: str) -> bytes:
    try:
        with open_within(folder, name) as file:
            content = file.read(MAX_CONFIG_BYTES + 1)
    except NotRegular as error:
        raise permanent("NOT_REGULAR", str(error)) from error
    if len(content) > MAX_CONFIG_BYTES:
        raise permanent("CONFIG_BROKEN", f"{name} has more than {MAX_CONFIG_BYTES} bytes")
    return content


__all__ = ["EffectFailed", "verify"]
