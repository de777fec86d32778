"""A golden set as it lies on disk: `golden.jsonl` beside its pictures; every read is bounded."""

import hashlib
import json
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from common.golden_set import GoldenBroken, GoldenItem, GoldenSet, parse

SET_NAME = "golden.jsonl"
MAX_SET_BYTES = 16 << 20
MAX_PICTURE_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class GoldenFolder:
    """A set that was read and checked; its pictures were hashed, not kept."""

    folder: Path
    golden: GoldenSet
    digest: str  # names what is asked and expected, and the pictures

    def picture(self, item: GoldenItem) -> bytes:
        """The bytes of an item's picture.

        Raises:
            GoldenBroken: it is gone, no regular file, or too large.
        """
        return read_regular(self.folder / item.image, MAX_PICTURE_BYTES, f"the picture of {item.item!r}")


def read_folder(folder: Path, task: str) -> GoldenFolder:
    """Read and check a set.

    Args:
        folder: where it lies.
        task: of the model that it is for.

    Raises:
        GoldenBroken: it is missing, empty, malformed or of another task, or a picture is missing.
    """
    raw = read_regular(folder / SET_NAME, MAX_SET_BYTES, SET_NAME)
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise GoldenBroken("UNREADABLE", f"{SET_NAME} is not UTF-8") from error
    golden = parse(text, task)
    return GoldenFolder(folder, golden, _digest(folder, golden))


def read_regular(path: Path, max_bytes: int, what: str) -> bytes:
    """A regular file of bounded size; a pipe in its place would never end.

    Raises:
        GoldenBroken: it is missing, no regular file, or too large.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise GoldenBroken("UNREADABLE", f"{what} is no regular file")
            content = file.read(max_bytes + 1)
    except OSError as error:
        raise GoldenBroken("UNREADABLE", f"{what} cannot be read: {(error.strerror or 'failed').lower()}") from error
    if len(content) > max_bytes:
        raise GoldenBroken("UNREADABLE", f"{what} has more than {max_bytes} bytes")
    return content


def _digest(folder: Path, golden: GoldenSet) -> str:
    """SHA-256 over what is asked and expected, and over the pictures; recorded answers are only for people."""
    pictures = {"": ""}
    lines = [f"floor {golden.floor!r}"]
    for item in golden.items:
        if item.image not in pictures:
            content = read_regular(folder / item.image, MAX_PICTURE_BYTES, f"the picture of {item.item!r}")
            pictures[item.image] = hashlib.sha256(content).hexdigest()
        asked = [item.item, pictures[item.image], item.premise, item.texts, item.expected]
        lines.append(json.dumps(asked, ensure_ascii=False))
    return "sha256:" + hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()
