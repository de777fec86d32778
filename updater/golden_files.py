"""The golden set of one model, reloaded when its files change; and the built-in probes, used without a golden set."""

import math
import struct
import zlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from common.clock import Clock, SystemClock
from common.engine_files import Task
from common.golden_set import SET_NAME, GoldenBroken, GoldenFolder, GoldenItem, GoldenSet, hash_picture, read_folder
from updater.core.facts import GoldenFacts

_SIDE_PIXELS = 64
_COLOURS = {"red": (220, 30, 30), "green": (30, 160, 60), "blue": (40, 60, 220), "white": (250, 250, 250)}
_STATEMENTS = ("the picture is red", "there is a circle", "the picture is empty", "there are two animals")
_PROBE_ADDRESSES = (
    "浙江省杭州市余杭区五常街道文一西路969号",
    "北京市海淀区中关村大街27号",
    "上海市浦东新区世纪大道100号",
)

LOOK_SECONDS = 5.0  # of one look that reads a set: commands, and the lease of a trial, do not wait for gigabytes
Stamp = tuple[str, int, int, int, int]  # name, inode, times of change and of modification, size; -1: not there
Signature = tuple[Stamp, ...]


class _NotReadYet(Exception):
    """The time of a look is over; the next one continues."""


class _PictureHashes:
    """SHA-256 of a set's pictures; a picture is read again only if its file has changed."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._known: dict[Path, tuple[Stamp, str]] = {}
        self._seconds = self._ends = math.inf

    def begin(self, seconds: float) -> None:
        """A look begins: from this many seconds after its first picture on, no further one is read.

        So each look reads one at least, however long the set itself and what is known of its pictures take.
        """
        self._seconds, self._ends = seconds, math.inf

    def hash(self, path: Path, what: str) -> str:
        """SHA-256 of a picture; raises GoldenBroken, and _NotReadYet."""
        stamp = _stat_file(path)
        known = self._known.get(path)
        if known is not None and known[0] == stamp:
            return known[1]
        now = self._clock.monotonic()
        if now >= self._ends:
            raise _NotReadYet
        self._ends = min(self._ends, now + self._seconds)
        found = hash_picture(path, what)
        self._known[path] = (stamp, found)
        return found

    def keep(self, paths: Collection[Path]) -> None:
        """Drop cached hashes of all pictures but these."""
        self._known = {path: known for path, known in self._known.items() if path in paths}


@dataclass(frozen=True, slots=True)
class ProbeItem:
    """A golden item with its picture."""

    item: GoldenItem
    image: bytes = b""


class GoldenFiles:
    """Reads the golden set of one model. From that model's thread only."""

    def __init__(
        self,
        folder: Path | None,
        task: Task,
        min_accuracy: float = 0.0,
        clock: Clock | None = None,
        look_seconds: float = math.inf,
    ) -> None:
        """Read nothing yet.

        Args:
            folder: of the set; None if none is configured.
            task: of the model.
            min_accuracy: from the settings. The effective value is the higher of this and the set's own.
            clock: for the time that a call takes.
            look_seconds: longest time that a call reads pictures; the next call continues.
        """
        self._clock = clock or SystemClock()
        self._look_seconds = look_seconds
        self._hashes = _PictureHashes(self._clock)
        self._folder = folder
        self.min_accuracy = min_accuracy
        self._task = task
        self._signature: Signature | None = None
        self._facts = GoldenFacts("")
        self._read: GoldenFolder | None = None

    def facts(self) -> GoldenFacts:
        """The set as it is on disk now; reloaded only if a file has changed. A large one is read in several calls."""
        if self._folder is None:
            return GoldenFacts("")
        signature = self._stat_files(self._folder)
        if signature != self._signature:
            self._hashes.begin(self._look_seconds)
            self._facts = self._reload(self._folder)
            if not self._facts.is_read:
                self._signature = None
                return self._facts
            # The list of pictures is known only after loading; a change during it is noticed at the next call.
            self._signature = self._stat_files(self._folder)
        return self._facts

    def load(self) -> GoldenFolder | None:
        """The set as it is on disk now; None if there is none, or it is unusable or not read yet."""
        self.facts()
        return self._read

    def _reload(self, folder: Path) -> GoldenFacts:
        self._read = None
        if not (folder / SET_NAME).exists():
            return GoldenFacts("", problem="UNREADABLE") if not folder.is_dir() else GoldenFacts("", problem="EMPTY")
        try:
            found = read_folder(folder, self._task.value, self._hashes.hash)
        except GoldenBroken as error:
            return GoldenFacts("", problem=error.problem)
        except _NotReadYet:
            return GoldenFacts("", is_read=False)
        self._hashes.keep({folder / item.image for item in found.golden.items})
        self._read = found
        golden = found.distinct
        return GoldenFacts(found.digest, golden.questions, golden.expected, max(self.min_accuracy, golden.min_accuracy))

    def _stat_files(self, folder: Path) -> Signature:
        """Stamps of the files of the set."""
        items = self._read.golden.items if self._read is not None else ()
        names = {SET_NAME, *(item.image for item in items if item.image)}
        return tuple(_stat_file(folder / name) for name in sorted(names))


def build_probes(task: Task) -> tuple[ProbeItem, ...]:
    """Questions for any model of a task, without expected answers."""
    if task is Task.ADDRESS_TAGGING:
        return tuple(
            ProbeItem(GoldenItem(f"probe-{number}", addresses=(text,)))
            for number, text in enumerate(_PROBE_ADDRESSES, start=1)
        )
    return tuple(_build_picture_probes())


def read_probe_items(folder: GoldenFolder, golden: GoldenSet) -> Iterator[ProbeItem]:
    """The questions of a set; each picture is read when its question is reached.

    Raises:
        GoldenBroken: a picture is missing or too large.
    """
    for item in golden.items:
        yield ProbeItem(item, folder.picture(item) if item.image else b"")


def _build_picture_probes() -> Iterator[ProbeItem]:
    for name, colour in _COLOURS.items():
        yield ProbeItem(GoldenItem(f"probe-{name}", f"{name}.png", statements=_STATEMENTS), _encode_png(colour))


def _encode_png(colour: tuple[int, int, int]) -> bytes:
    """Encode a picture of one colour with a darker half, without an image library."""
    light, dark = bytes(colour), bytes(part // 3 for part in colour)
    row = b"\0" + light * (_SIDE_PIXELS // 2) + dark * (_SIDE_PIXELS // 2)
    head = struct.pack(">IIBBBBB", _SIDE_PIXELS, _SIDE_PIXELS, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(row * _SIDE_PIXELS)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_encode_chunk(kind, content) for kind, content in chunks)


def _encode_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _stat_file(path: Path) -> Stamp:
    """Also what a copy with the times of its origin, or a rename over the file, cannot keep."""
    try:
        seen = path.stat()
    except OSError:
        return (path.name, -1, -1, -1, -1)
    return (path.name, seen.st_ino, seen.st_ctime_ns, seen.st_mtime_ns, seen.st_size)
