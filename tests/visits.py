"""Lists the files that one Predict and one update visit: `python -m dev.scripts.visited` runs it as a program.

The calls are real. In the server only the transport and the runner process are replaced; the runner is a real process
with the scripted engine; the update runs the shipped loop on simulated ports.
"""

import asyncio
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.runner.visits import list_runner_files
from tests.server.visits import list_server_files
from tests.updater.core.visits import list_update_files


def main() -> int:
    """Write the files of each, and how many they are."""
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
