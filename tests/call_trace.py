"""Records which files a call visits."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

ROOT = Path(__file__).resolve().parents[1]


class Visits:
    """Records the files of some folders in the order of the first call of one of their functions."""

    def __init__(self, *folders: str) -> None:
        self._prefixes = tuple(f"{ROOT / folder}/" for folder in folders)
        self.files: list[str] = []

    def trace(self, frame: FrameType, event: str, _argument: object) -> None:
        """A function for `sys.settrace` that sees calls only."""
        path = frame.f_code.co_filename
        if event == "call" and path.startswith(self._prefixes):
            name = str(Path(path).relative_to(ROOT))
            if name not in self.files:
                self.files.append(name)

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record the calls of this thread."""
        sys.settrace(self.trace)
        try:
            yield
        finally:
            sys.settrace(None)
