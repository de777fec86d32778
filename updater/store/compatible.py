"""Whether a sealed bundle does what serves does. Number 15 of the list in `checks`.

Compared is what the bundles say of themselves and the words that they carry; what an older hotslot did not write down
is not compared.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from common.bundle import Bundle
from common.durable import read_bounded
from common.provenance import Interface
from updater.checks import COMPATIBLE, CheckFailed, refused

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
