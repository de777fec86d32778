"""The shipped runner, which appends each file of its own to a list at the first call of one of its functions.

`python -m tests.runner.traced_main LIST …`, with the runner's arguments behind. It records from the first statement
"trace" on that an engine prepares, so that the start is left out.
"""

import sys
import threading
from pathlib import Path
from types import FrameType

from dev.harness import scripted_engine
from inference.runner.main import main
from tests.call_trace import ROOT

_FOLDERS = (f"{ROOT / 'inference' / 'runner'}/", f"{ROOT / 'inference'}/wire.py")
_ENGINES = f"{ROOT / 'inference' / 'runner' / 'engines'}/"


class FileList:
    """Appends names to a file, each once. Any thread."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._known: set[str] = set()
        self.is_recording = False

    def trace(self, frame: FrameType, event: str, argument: object) -> None:
        """A function for `sys.setprofile`."""
        del argument
        path = frame.f_code.co_filename
        if event != "call" or not self.is_recording or not path.startswith(_FOLDERS) or path.startswith(_ENGINES):
            return
        name = str(Path(path).relative_to(ROOT))
        with self._lock:
            if name not in self._known:
                self._known.add(name)
                with self._path.open("a", encoding="utf-8") as stream:
                    stream.write(f"{name}\n")


def run(path: Path) -> int:
    """Run the shipped runner with the profile function in all its threads."""
    files = FileList(path)
    prepare = scripted_engine.ScriptedEngine.prepare

    def prepare_and_record(self: scripted_engine.ScriptedEngine, item: object) -> object:
        files.is_recording = files.is_recording or "trace" in getattr(item, "statements", ())
        return prepare(self, item)  # type: ignore[arg-type]

    scripted_engine.ScriptedEngine.prepare = prepare_and_record  # type: ignore[method-assign,assignment]
    threading.setprofile(files.trace)
    sys.setprofile(files.trace)
    return main()


if __name__ == "__main__":
    sys.exit(run(Path(sys.argv.pop(1))))
