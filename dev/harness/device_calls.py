"""The device calls of scripted engines, as the engines themselves count them: which rows were computed, and when."""

import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class DeviceCall:
    """One call of one engine."""

    revision: str
    ended: float  # unix time
    seconds: float
    rows: tuple[tuple[str, int], ...]  # of each item: its picture's key, and how many of its rows

    def rows_of(self, pictures: Collection[str]) -> int:
        """Rows of items with one of these pictures; a server's self-test has another one."""
        return sum(count for picture, count in self.rows if picture in pictures)


def read_device_calls(path: Path) -> Iterator[DeviceCall]:
    """The calls in the file that `SCRIPTED_CALLS` names, in the order of their ends."""
    if path.exists():
        for line in path.read_text(encoding="ascii").splitlines():
            row = json.loads(line)
            rows = tuple((picture, count) for picture, count in row["rows"])
            yield DeviceCall(row["revision"], row["ended"], row["seconds"], rows)
