"""Whether staged files may become a bundle: numbers 2 to 13 of the list in `checks`, in order.

Nothing foreign has been interpreted before, except configuration.json. What is left, weights (14) and compatibility
(15), is looked at while and after converting.
"""

import json
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.bundle import Bundle, BundleFile, Interface, compute_source_digest
from common.durable import NotRegular, open_within, read_bounded
from common.engine_files import CONFIGURATION, MAX_CONFIG_BYTES, EngineFiles
from common.source import MAX_FILE_BYTES, ManifestBroken, check_files
from updater.core import checks
from updater.core.checks import COMPATIBLE, Check, CheckFailed, by_reason, refused
from updater.core.results import FaultKind
from updater.revision import NotServable, declared, engine_of, parse_object
from updater.store.formats import HEAD_BYTES, fault_of_keys, is_executable, is_of_its_format
from updater.store.transfer import TransferBroken, hash_within

VOCABULARY, MERGES = "vocab.json", "merges.txt"
MAX_WORDS_BYTES = 64 << 20
_WAY_OUT = "; serve it as a model of its own name"


def check_compatible(candidate: Bundle, folder: Path, serving: Bundle, serving_folder: Path) -> None:
    """Compare a candidate with what serves.

    Args:
        candidate: what its manifest says.
        folder: of its sealed files.
        serving: what the manifest of what serves says.
        serving_folder: of the sealed files of what serves.

    Raises:
        CheckFailed: callers, or their words, would meet something else.
        OSError: the words of one cannot be read.
        ValueError: they are none.
    """
    if candidate.task != serving.task:
        raise _changed("TASK_CHANGED", "its task", candidate.task, serving.task)
    if candidate.engine != serving.engine:
        raise _changed("TYPE_CHANGED", "its engine", candidate.engine, serving.engine)
    if candidate.interface is not None and serving.interface is not None:
        _check_interface(candidate.interface, serving.interface)
    if _both_have(VOCABULARY, candidate, serving):
        _check_vocabulary(folder / VOCABULARY, serving_folder / VOCABULARY)
    if _both_have(MERGES, candidate, serving):
        _check_merges(folder / MERGES, serving_folder / MERGES)


def _check_interface(candidate: Interface, serving: Interface) -> None:
    if candidate.model_type != serving.model_type:
        raise _changed("TYPE_CHANGED", "its model type", candidate.model_type, serving.model_type)
    if candidate.picture_size != serving.picture_size:
        raise _changed("PICTURE_SIZE_CHANGED", "its picture size", candidate.picture_size, serving.picture_size)
    if candidate.labels != serving.labels:
        raise _changed("LABELS_CHANGED", "the order of its labels", _listed(candidate.labels), _listed(serving.labels))


def _check_vocabulary(candidate: Path, serving: Path) -> None:
    new, known = _words(candidate), _words(serving)
    moved = next((word for word, number in known.items() if new.get(word) != number), None)
    if moved is not None:
        found = new.get(moved, "gone")
        raise _changed("VOCABULARY_CHANGED", f"the number of {moved[:40]!r}", found, known[moved])


def _check_merges(candidate: Path, serving: Path) -> None:
    """Words are cut by the first merges that fit: new ones may only come behind."""
    new, known = (read_bounded(path, MAX_WORDS_BYTES).split(b"\n") for path in (candidate, serving))
    known = known[:-1] if not known[-1] else known
    if new[: len(known)] != known:
        raise refused(COMPATIBLE, "VOCABULARY_CHANGED", "it cuts words otherwise than what serves" + _WAY_OUT)


def _words(path: Path) -> dict[str, int]:
    row = json.loads(read_bounded(path, MAX_WORDS_BYTES))
    if not isinstance(row, dict):
        raise ValueError(f"{path.name} holds no object")
    return row


def _both_have(name: str, *bundles: Bundle) -> bool:
    return all(name in {file.name for file in bundle.files} for bundle in bundles)


def _listed(labels: Sequence[str]) -> str:
    return ", ".join(labels)[:80]


def _changed(reason: str, what: str, found: object, known: object) -> CheckFailed:
    return refused(COMPATIBLE, reason, f"{what} is {found!r}, of what serves it is {known!r}" + _WAY_OUT)


_Stat = tuple[int, int, int, int]  # inode, bytes, times of the last change of content and of anything


@dataclass(slots=True)
class Staged:
    """A folder of files while it is looked at."""

    folder: Path
    digest: str  # source digest that was decided for
    listed: Sequence[BundleFile] | None  # what the hub listed; None for kept files, which the digest alone names
    keep_on: Callable[[], None]
    known_sections: frozenset[str] = frozenset()
    names: tuple[str, ...] = ()
    before: dict[str, _Stat] = field(default_factory=dict)
    found: tuple[BundleFile, ...] = ()
    engine: EngineFiles | None = None


def verify(
    folder: Path,
    digest: str,
    listed: Sequence[BundleFile] | None,
    keep_on: Callable[[], None],
    known_sections: frozenset[str] = frozenset(),
) -> tuple[EngineFiles, tuple[str, ...]]:
    """Run the list over a folder of staged or kept files.

    Args:
        folder: holds the files and nothing else.
        digest: source digest that was decided for.
        listed: what the hub listed of them; None for kept files, which the digest alone names.
        keep_on: called often; raises to stop.
        known_sections: of configuration.json, beside those of the format.

    Returns:
        The engine that serves it, and what it passed.

    Raises:
        CheckFailed: with the number's reason and what differs.
        OSError: our own disk failed.
    """
    staged = Staged(folder, digest, listed, keep_on, known_sections)
    staged.names = tuple(sorted(path.name for path in folder.iterdir()))
    staged.before = _stats(staged)
    for _, step in STEPS:
        step(staged)
    if staged.engine is None:
        raise RuntimeError("the list has no step that finds the engine")
    return staged.engine, tuple(check.title for check, _ in STEPS)


def _check_names(staged: Staged) -> None:
    try:
        check_files([BundleFile(name, 0, "0" * 64) for name in staged.names])
    except ManifestBroken as error:
        raise refused(checks.NAMES, "UNSAFE_NAME", str(error)) from error


def _check_regular(staged: Staged) -> None:
    for name in staged.names:
        seen = (staged.folder / name).lstat()
        if not stat.S_ISREG(seen.st_mode):
            raise refused(checks.REGULAR, "NOT_REGULAR", f"{name} is no regular file")
        if seen.st_nlink != 1:
            message = f"{name} has a second name, by which it could be changed"
            raise refused(checks.REGULAR, "NOT_REGULAR", message)


def _check_set(staged: Staged) -> None:
    sizes = {name: row[1] for name, row in staged.before.items()}
    try:
        found = declared(sizes, lambda name: _read(staged, name))
    except NotServable as error:
        raise by_reason(error.reason, str(error)) from error
    more, less = sorted(set(staged.names) - set(found.names)), sorted(set(found.names) - set(staged.names))
    if less:
        raise refused(checks.FILE_SET, "FILES_MISSING", f"the revision lacks {less[0]}")
    if more:
        message = f"{more[0]} is none of the files that the engine {found.engine.engine} takes"
        raise refused(checks.FILE_SET, "FILES_UNKNOWN", message)
    if staged.listed is not None and {file.name for file in staged.listed} != set(staged.names):
        raise refused(checks.FILE_SET, "FILES_UNKNOWN", "the files are not those that were listed")


def _check_sizes(staged: Staged) -> None:
    for file in staged.listed or ():
        size = staged.before[file.name][1]
        if size != file.size:
            raise refused(checks.SIZES, "SIZE_MISMATCH", f"{file.name} has {size} bytes, listed were {file.size}")


def _check_hashes(staged: Staged) -> None:
    rows = {file.name: file for file in staged.listed or ()}
    found = []
    for name in staged.names:
        row = rows.get(name)
        try:
            file = hash_within(staged.folder, name, row.size if row else MAX_FILE_BYTES, staged.keep_on)
        except (TransferBroken, NotRegular) as error:
            raise refused(checks.HASHES, "CONTENT_MISMATCH", str(error)) from error
        if row is not None and file != row:
            message = f"{name}: SHA-256 {file.sha256[:12]}… on disk, {row.sha256[:12]}… listed"
            raise refused(checks.HASHES, "CONTENT_MISMATCH", message)
        found.append(file)
    staged.found = tuple(found)


def _check_source(staged: Staged) -> None:
    if compute_source_digest(staged.found) != staged.digest:
        message = "the files are not those of the revision that was decided for"
        raise refused(checks.SOURCE, "SOURCE_MISMATCH", message)


def _check_not_executable(staged: Staged) -> None:
    for name in staged.names:
        mode = (staged.folder / name).lstat().st_mode
        if mode & (stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH) or is_executable(_head(staged, name)):
            raise refused(checks.NOT_EXECUTABLE, "EXECUTABLE", f"{name} could be run as a program")


def _check_formats(staged: Staged) -> None:
    for file in staged.found:
        with open_within(staged.folder, file.name) as opened:
            fault = is_of_its_format(file.name, file.size, opened)
        if fault:
            raise refused(checks.FORMATS, "FORMAT_UNKNOWN", fault)


def _check_keys(staged: Staged) -> None:
    for name in staged.names:
        if not name.endswith(".json") or name.endswith("vocab.json"):
            continue
        fault = fault_of_keys(_object(staged, name), name, staged.known_sections)
        if fault is not None:
            raise refused(checks.CONFIGURATION_KEYS, fault.reason, fault.message)


def _check_engine(staged: Staged) -> None:
    try:
        staged.engine = engine_of(_object(staged, CONFIGURATION))
    except NotServable as error:
        raise by_reason(error.reason, str(error)) from error


def _check_unchanged(staged: Staged) -> None:
    if staged.names != tuple(sorted(path.name for path in staged.folder.iterdir())) or staged.before != _stats(staged):
        message = "a staged file was touched while it was checked"
        raise refused(checks.UNCHANGED, "FILES_CHANGED", message, FaultKind.TRANSIENT)


# The list, as far as a folder alone tells; 8 is the place of signatures.
STEPS: tuple[tuple[Check, Callable[[Staged], None]], ...] = (
    (checks.NAMES, _check_names),
    (checks.REGULAR, _check_regular),
    (checks.FILE_SET, _check_set),
    (checks.SIZES, _check_sizes),
    (checks.HASHES, _check_hashes),
    (checks.SOURCE, _check_source),
    (checks.NOT_EXECUTABLE, _check_not_executable),
    (checks.FORMATS, _check_formats),
    (checks.CONFIGURATION_KEYS, _check_keys),
    (checks.ENGINE, _check_engine),
    (checks.UNCHANGED, _check_unchanged),
)


def _stats(staged: Staged) -> dict[str, _Stat]:
    rows = {name: (staged.folder / name).lstat() for name in staged.names}
    return {name: (row.st_ino, row.st_size, row.st_mtime_ns, row.st_ctime_ns) for name, row in rows.items()}


def _head(staged: Staged, name: str) -> bytes:
    with open_within(staged.folder, name) as opened:
        return opened.read(HEAD_BYTES)


def _object(staged: Staged, name: str) -> dict[str, Any]:
    try:
        return parse_object(_read(staged, name), name)
    except NotServable as error:
        raise by_reason(error.reason, str(error)) from error


def _read(staged: Staged, name: str) -> bytes:
    try:
        with open_within(staged.folder, name) as file:
            content = file.read(MAX_CONFIG_BYTES + 1)
    except NotRegular as error:
        raise refused(checks.REGULAR, "NOT_REGULAR", str(error)) from error
    if len(content) > MAX_CONFIG_BYTES:
        message = f"{name} has more than {MAX_CONFIG_BYTES} bytes"
        raise refused(checks.CONFIGURATION_KEYS, "CONFIG_BROKEN", message)
    return content
