"""Lists the files that one Predict and one update visit: `python -m dev.scripts.visited` runs it as a program.

The calls are real. In the server only the transport and the runner process are replaced; the runner is a real process
with the scripted engine; the update runs the shipped loop on simulated ports.
"""

import asyncio
import sys
import tempfile
from collections.abc import Callable, Iterator
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


def main() -> int:
    """Write the files of each, and how many they are."""
    from tests.runner.visits import list_runner_files  # noqa: PLC0415  these import this module
    from tests.server.visits import list_server_files  # noqa: PLC0415
    from tests.updater.core.visits import list_update_files  # noqa: PLC0415

    visited: dict[str, Callable[[Path], list[str]]] = {
        "one Predict in the server": lambda folder: asyncio.run(list_server_files(folder)),
        "the same in the runner, without the engine": lambda folder: asyncio.run(list_runner_files(folder)),
        "one update, from the hub's listing to the commit, in core and stages": lambda _: list_update_files().all,
    }
    for title, list_files in visited.items():
        with tempfile.TemporaryDirectory() as folder:
            files = list_files(Path(folder))
        sys.stdout.write(f"{title}:\n" + "".join(f"{number:4} {name}\n" for number, name in enumerate(files, 1)))
    steps = list_update_files().most
    sys.stdout.write(f"at most {len(steps)} of them in one step of the update\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
