"""The golden set of one model on disk, read again when it changes; and the built-in probes, for where there is none."""

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from common.engine_files import Task
from common.golden_set import SET_NAME, GoldenBroken, GoldenFolder, GoldenItem, GoldenSet, read_folder
from updater.core.ports import GoldenFacts

_SIDE_PIXELS = 64
_COLOURS = {"red": (220, 30, 30), "green": (30, 160, 60), "blue": (40, 60, 220), "white": (250, 250, 250)}
_STATEMENTS = ("the picture is red", "there is a circle", "the picture is empty", "there are two animals")
_PROBE_ADDRESSES = (
    "浙江省杭州市余杭区五常街道文一西路969号",
    "北京市海淀区中关村大街27号",
    "上海市浦东新区世纪大道100号",
)

Signature = tuple[tuple[str, int, int], ...]


@dataclass(frozen=True, slots=True)
class Question:
    """An item with its picture, ready to be asked."""

    item: GoldenItem
    image: bytes = b""


class GoldenFiles:
    """Reads one model's set. From that model's thread only."""

    def __init__(self, folder: Path | None, task: Task, min_accuracy: float = 0.0) -> None:
        """Read nothing yet.

        Args:
            folder: of the set; None if the operator has named none.
            task: of the model.
            min_accuracy: of the settings; the higher one of it and the set's own counts.
        """
        self._folder = folder
        self.min_accuracy = min_accuracy
        self._task = task
        self._signature: Signature | None = None
        self._facts = GoldenFacts("")
        self._read: GoldenFolder | None = None

    def facts(self) -> GoldenFacts:
        """What is there now; read again only if a file has changed."""
        if self._folder is None:
            return GoldenFacts("")
        signature = self._look(self._folder)
        if signature != self._signature:
            self._facts = self._read_again(self._folder)
            # Pictures are known only after reading: what changes meanwhile is seen at the next look.
            self._signature = self._look(self._folder)
        return self._facts

    def opened(self) -> GoldenFolder | None:
        """The set as it was read last; None if there is none that can be used."""
        self.facts()
        return self._read

    def _read_again(self, folder: Path) -> GoldenFacts:
        self._read = None
        if not (folder / SET_NAME).exists():
            return GoldenFacts("", problem="UNREADABLE") if not folder.is_dir() else GoldenFacts("", problem="EMPTY")
        try:
            found = read_folder(folder, self._task.value)
        except GoldenBroken as error:
            return GoldenFacts("", problem=error.problem)
        self._read = found
        golden = found.golden
        return GoldenFacts(found.digest, golden.questions, golden.expected, max(self.min_accuracy, golden.min_accuracy))

    def _look(self, folder: Path) -> Signature:
        """Names, times and sizes of the set and its pictures."""
        items = self._read.golden.items if self._read is not None else ()
        names = {SET_NAME, *(item.image for item in items if item.image)}
        return tuple(_stat(folder / name) for name in sorted(names))


def builtin_probes(task: Task) -> tuple[Question, ...]:
    """Questions that any model of a task can be asked; nobody knows the right answers."""
    if task is Task.ADDRESS_TAGGING:
        return tuple(
            Question(GoldenItem(f"probe-{number}", addresses=(text,)))
            for number, text in enumerate(_PROBE_ADDRESSES, start=1)
        )
    return tuple(_picture_probes())


def questions_of(folder: GoldenFolder, golden: GoldenSet) -> Iterator[Question]:
    """The items of a set with their pictures, read one by one.

    Raises:
        GoldenBroken: a picture is gone or too large.
    """
    for item in golden.items:
        yield Question(item, folder.picture(item) if item.image else b"")


def _picture_probes() -> Iterator[Question]:
    for name, colour in _COLOURS.items():
        yield Question(GoldenItem(f"probe-{name}", f"{name}.png", statements=_STATEMENTS), _png(colour))


def _png(colour: tuple[int, int, int]) -> bytes:
    """A picture of one colour with a darker half, made without a library for pictures."""
    light, dark = bytes(colour), bytes(part // 3 for part in colour)
    row = b"\0" + light * (_SIDE_PIXELS // 2) + dark * (_SIDE_PIXELS // 2)
    head = struct.pack(">IIBBBBB", _SIDE_PIXELS, _SIDE_PIXELS, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(row * _SIDE_PIXELS)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, content) for kind, content in chunks)


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _stat(path: Path) -> tuple[str, int, int]:
    try:
        seen = path.stat()
    except OSError:
        return (path.name, -1, -1)
    return (path.name, seen.st_mtime_ns, seen.st_size)
