"""Checks 2 to 13 on a folder of staged or kept files, and check 15 on a sealed bundle.

Before these checks only configuration.json has been parsed. Check 14 (weights) runs during conversion.
"""

import stat
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.bundle import Bundle, BundleFile, Interface, compute_source_digest
from common.durable import NotRegular, open_within, read_bounded
from common.engine_files import CONFIGURATION, MAX_CONFIG_BYTES, EngineFiles
from common.json_load import load_json
from common.source import MAX_FILE_BYTES, ManifestBroken, check_files
from updater.core import checks
from updater.core.checks import COMPATIBLE, Check, CheckFailed, make_check_failure, make_failure_by_reason
from updater.core.effects import FailureKind
from updater.revision import UnsupportedRevision, find_declared_files, parse_json_object, select_engine
from updater.store.formats import HEAD_BYTES, find_config_problem, find_format_problem, is_executable
from updater.store.transfer import TransferBroken, hash_file

VOCABULARY, WORD_LIST, MERGES = "vocab.json", "vocab.txt", "merges.txt"
_WORD_FILES = (VOCABULARY, "tokenizer.json", "added_tokens.json")  # words, which may look like paths, and no settings
_MAX_LABELS = 12  # named in a message
MAX_WORDS_BYTES = 64 << 20
_ADVICE = "; configure it as a separate model"


def check_compatible(
    candidate: Bundle, folder: Path, serving: Bundle, serving_folder: Path, *, may_change_labels: bool = False
) -> None:
    """Run check 15: compare a sealed candidate with the serving bundle.

    Args:
        candidate: its manifest.
        folder: its sealed files.
        serving: manifest of the serving bundle.
        serving_folder: sealed files of the serving bundle.
        may_change_labels: the labels are not compared.

    Raises:
        CheckFailed: task, interface or vocabulary differ.
        OSError: a vocabulary cannot be read.
        ValueError: a vocabulary is malformed.
    """
    if candidate.task != serving.task:
        raise _changed("TASK_CHANGED", "its task", candidate.task, serving.task)
    if candidate.engine != serving.engine:
        raise _changed("TYPE_CHANGED", "its engine", candidate.engine, serving.engine)
    if candidate.interface is not None and serving.interface is not None:
        _check_interface(candidate.interface, serving.interface)
    for name, read in _VOCABULARIES.items():
        if _both_have(name, candidate, serving):
            _check_vocabulary(read(folder / name), read(serving_folder / name))
    if _both_have(MERGES, candidate, serving):
        _check_merges(folder / MERGES, serving_folder / MERGES)
    if candidate.interface is not None and serving.interface is not None and not may_change_labels:
        _check_labels(candidate.interface.labels, serving.interface.labels)  # last: the only one that may be approved


def _check_interface(candidate: Interface, serving: Interface) -> None:
    if candidate.model_type != serving.model_type:
        raise _changed("TYPE_CHANGED", "its model type", candidate.model_type, serving.model_type)
    if candidate.picture_size != serving.picture_size:
        raise _changed("PICTURE_SIZE_CHANGED", "its picture size", candidate.picture_size, serving.picture_size)


def _check_labels(candidate: Sequence[str], serving: Sequence[str]) -> None:
    if candidate == serving:
        return
    added, gone = [one for one in candidate if one not in serving], [one for one in serving if one not in candidate]
    moved = [one for one in candidate if one in serving and candidate.index(one) != serving.index(one)]
    parts = ((added, "new"), (gone, "gone"), (moved, "with another number"))
    difference = "; ".join(f"{what}: {_join(labels)}" for labels, what in parts if labels)
    message = f"its labels differ from the serving bundle's: {difference}"
    raise make_check_failure(COMPATIBLE, "LABELS_CHANGED", message)


def _check_vocabulary(new: Mapping[str, int], known: Mapping[str, int]) -> None:
    moved = next((word for word, number in known.items() if new.get(word) != number), None)
    if moved is not None:
        found = new.get(moved, "gone")
        raise _changed("VOCABULARY_CHANGED", f"the number of {moved[:40]!r}", found, known[moved])


def _check_merges(candidate: Path, serving: Path) -> None:
    """Earlier merges take precedence, so new ones may only be appended."""
    new, known = (read_bounded(path, MAX_WORDS_BYTES).split(b"\n") for path in (candidate, serving))
    known = known[:-1] if not known[-1] else known
    if new[: len(known)] != known:
        raise make_check_failure(
            COMPATIBLE,
            "VOCABULARY_CHANGED",
            "its tokenizer splits words differently from the serving bundle's" + _ADVICE,
        )


def _read_numbers(path: Path) -> dict[str, int]:
    """Words with their numbers, as JSON."""
    row = load_json(read_bounded(path, MAX_WORDS_BYTES))
    if not isinstance(row, dict):
        raise ValueError(f"{path.name} is not a JSON object")
    return row


def _read_lines(path: Path) -> dict[str, int]:
    """Words, each with the number of its line."""
    lines = read_bounded(path, MAX_WORDS_BYTES).decode("utf-8").removesuffix("\n").split("\n")
    return {word: number for number, word in enumerate(lines)}


_VOCABULARIES: Mapping[str, Callable[[Path], Mapping[str, int]]] = {VOCABULARY: _read_numbers, WORD_LIST: _read_lines}


def _both_have(name: str, *bundles: Bundle) -> bool:
    return all(name in {file.name for file in bundle.files} for bundle in bundles)


def _join(labels: Sequence[str]) -> str:
    shown = ", ".join(labels[:_MAX_LABELS])
    return shown if len(labels) <= _MAX_LABELS else f"{shown} and {len(labels) - _MAX_LABELS} more"


def _changed(reason: str, what: str, found: object, known: object) -> CheckFailed:
    return make_check_failure(
        COMPATIBLE, reason, f"{what} is {found!r}, in the serving bundle it is {known!r}" + _ADVICE
    )


_Stat = tuple[int, int, int, int]  # inode, size in bytes, mtime and ctime in ns


@dataclass(slots=True)
class StagedFolder:
    """A folder that is being verified, and what the checks found so far."""

    folder: Path
    digest: str  # source digest of the update
    listed: Sequence[BundleFile] | None  # as listed by the hub; None for kept files, which only the digest identifies
    check_stop: Callable[[], None]
    names: tuple[str, ...] = ()
    before: dict[str, _Stat] = field(default_factory=dict)
    found: tuple[BundleFile, ...] = ()
    engine: EngineFiles | None = None


def verify(
    folder: Path,
    digest: str,
    listed: Sequence[BundleFile] | None,
    check_stop: Callable[[], None],
) -> tuple[EngineFiles, tuple[str, ...]]:
    """Run checks 2 to 13 on a folder of staged or kept files.

    Args:
        folder: contains the files and nothing else.
        digest: source digest of the update.
        listed: as listed by the hub; None for kept files, which only the digest identifies.
        check_stop: called often; raises to stop.

    Returns:
        The engine, and the titles of the checks.

    Raises:
        CheckFailed: a check failed.
        OSError: the files cannot be read.
    """
    staged = StagedFolder(folder, digest, listed, check_stop)
    staged.names = tuple(sorted(path.name for path in folder.iterdir()))
    staged.before = _read_stats(staged)
    for _, step in STEPS:
        step(staged)
    if staged.engine is None:
        raise RuntimeError("no check has found the engine")
    return staged.engine, tuple(check.title for check, _ in STEPS)


def _check_names(staged: StagedFolder) -> None:
    try:
        check_files([BundleFile(name, 0, "0" * 64) for name in staged.names])
    except ManifestBroken as error:
        raise make_check_failure(checks.NAMES, "UNSAFE_NAME", str(error)) from error


def _check_regular(staged: StagedFolder) -> None:
    for name in staged.names:
        seen = (staged.folder / name).lstat()
        if not stat.S_ISREG(seen.st_mode):
            raise make_check_failure(checks.REGULAR, "NOT_REGULAR", f"{name} is not a regular file")
        if seen.st_nlink != 1:
            message = f"{name} has a second hard link, by which it could be changed"
            raise make_check_failure(checks.REGULAR, "NOT_REGULAR", message)


def _check_set(staged: StagedFolder) -> None:
    sizes = {name: row[1] for name, row in staged.before.items()}
    try:
        found = find_declared_files(sizes, lambda name: _read(staged, name))
    except UnsupportedRevision as error:
        raise make_failure_by_reason(error.reason, str(error)) from error
    more, less = sorted(set(staged.names) - set(found.names)), sorted(set(found.names) - set(staged.names))
    if less:
        raise make_check_failure(checks.FILE_SET, "FILES_MISSING", f"the revision lacks {less[0]}")
    if more:
        message = f"{more[0]} is not declared by the engine {found.engine.engine}"
        raise make_check_failure(checks.FILE_SET, "FILES_UNKNOWN", message)
    if staged.listed is not None and {file.name for file in staged.listed} != set(staged.names):
        raise make_check_failure(checks.FILE_SET, "FILES_UNKNOWN", "the staged files are not the listed ones")


def _check_sizes(staged: StagedFolder) -> None:
    for file in staged.listed or ():
        size = staged.before[file.name][1]
        if size != file.size:
            raise make_check_failure(checks.SIZES, "SIZE_MISMATCH", f"{file.name} has {size} bytes, listed {file.size}")


def _check_hashes(staged: StagedFolder) -> None:
    rows = {file.name: file for file in staged.listed or ()}
    found = []
    for name in staged.names:
        row = rows.get(name)
        try:
            file = hash_file(staged.folder, name, row.size if row else MAX_FILE_BYTES, staged.check_stop)
        except (TransferBroken, NotRegular) as error:
            raise make_check_failure(checks.HASHES, "CONTENT_MISMATCH", str(error)) from error
        if row is not None and file != row:
            message = f"{name}: SHA-256 {file.sha256[:12]}… on disk, {row.sha256[:12]}… listed"
            raise make_check_failure(checks.HASHES, "CONTENT_MISMATCH", message)
        found.append(file)
    staged.found = tuple(found)


def _check_source(staged: StagedFolder) -> None:
    if compute_source_digest(staged.found) != staged.digest:
        message = "the files do not have the source digest of this update"
        raise make_check_failure(checks.SOURCE, "SOURCE_MISMATCH", message)


def _check_not_executable(staged: StagedFolder) -> None:
    for name in staged.names:
        mode = (staged.folder / name).lstat().st_mode
        if mode & (stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH) or is_executable(_read_head(staged, name)):
            raise make_check_failure(checks.NOT_EXECUTABLE, "EXECUTABLE", f"{name} is executable")


def _check_formats(staged: StagedFolder) -> None:
    for file in staged.found:
        with open_within(staged.folder, file.name) as opened:
            problem = find_format_problem(file.name, file.size, opened)
        if problem:
            raise make_check_failure(checks.FORMATS, "FORMAT_UNKNOWN", problem)


def _check_keys(staged: StagedFolder) -> None:
    for name in staged.names:
        if not name.endswith(".json") or name in _WORD_FILES:
            continue
        problem = find_config_problem(_read_object(staged, name), name)
        if problem is not None:
            raise make_check_failure(checks.CONFIGURATION_KEYS, problem.reason, problem.message)


def _check_engine(staged: StagedFolder) -> None:
    try:
        staged.engine = select_engine(_read_object(staged, CONFIGURATION))
    except UnsupportedRevision as error:
        raise make_failure_by_reason(error.reason, str(error)) from error


def _check_unchanged(staged: StagedFolder) -> None:
    if staged.names != tuple(sorted(path.name for path in staged.folder.iterdir())) or staged.before != _read_stats(
        staged
    ):
        message = "a staged file was changed while it was checked"
        raise make_check_failure(checks.UNCHANGED, "FILES_CHANGED", message, FailureKind.TRANSIENT)


# Check 8 (signatures) does not exist yet; 14 and 15 run during and after conversion.
STEPS: tuple[tuple[Check, Callable[[StagedFolder], None]], ...] = (
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


def _read_stats(staged: StagedFolder) -> dict[str, _Stat]:
    rows = {name: (staged.folder / name).lstat() for name in staged.names}
    return {name: (row.st_ino, row.st_size, row.st_mtime_ns, row.st_ctime_ns) for name, row in rows.items()}


def _read_head(staged: StagedFolder, name: str) -> bytes:
    with open_within(staged.folder, name) as opened:
        return opened.read(HEAD_BYTES)


def _read_object(staged: StagedFolder, name: str) -> dict[str, Any]:
    try:
        return parse_json_object(_read(staged, name), name)
    except UnsupportedRevision as error:
        raise make_failure_by_reason(error.reason, str(error)) from error


def _read(staged: StagedFolder, name: str) -> bytes:
    try:
        with open_within(staged.folder, name) as file:
            content = file.read(MAX_CONFIG_BYTES + 1)
    except NotRegular as error:
        raise make_check_failure(checks.REGULAR, "NOT_REGULAR", str(error)) from error
    if len(content) > MAX_CONFIG_BYTES:
        message = f"{name} has more than {MAX_CONFIG_BYTES} bytes"
        raise make_check_failure(checks.CONFIGURATION_KEYS, "CONFIG_BROKEN", message)
    return content
