"""Counts the pictures that a runner has decoded or refused, by format and outcome."""

import threading
from dataclasses import dataclass

DECODED = "DECODED"
OTHER = "other"
_FORMATS = ((b"\xff\xd8\xff", "jpeg"), (b"\x89PNG\r\n\x1a\n", "png"))
_RIFF, _WEBP, _WEBP_OFFSET = b"RIFF", b"WEBP", 8


@dataclass(frozen=True, slots=True)
class PictureTotal:
    """The pictures of one format with one outcome."""

    format: str
    outcome: str  # DECODED, or a reason
    count: int
    seconds: float


class PictureTally:
    """Totals since the process began. Any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._totals: dict[tuple[str, str], tuple[int, float]] = {}

    def add(self, content: bytes, outcome: str, seconds: float) -> None:
        """Count a picture whose decoding has ended."""
        key = (name_format(content), outcome)
        with self._lock:
            count, total = self._totals.get(key, (0, 0.0))
            self._totals[key] = (count + 1, total + seconds)

    def read(self) -> list[PictureTotal]:
        """All totals, sorted."""
        with self._lock:
            totals = sorted(self._totals.items())
        return [PictureTotal(*key, count, seconds) for key, (count, seconds) in totals]


def name_format(content: bytes) -> str:
    """The format that the first bytes announce: "jpeg", "png" or "webp"; else OTHER."""
    if content.startswith(_RIFF) and content[_WEBP_OFFSET:].startswith(_WEBP):
        return "webp"
    return next((name for mark, name in _FORMATS if content.startswith(mark)), OTHER)
