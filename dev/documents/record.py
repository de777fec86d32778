"""`make recording`: runs the demo, records a terminal session and what a caller sees of a swap, and draws both."""

import json
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import astuple, dataclass
from pathlib import Path

from dev.documents import recording, swap
from dev.documents.blocks import ROOT
from dev.documents.sandbox import Sandbox, demo_stack
from dev.harness.waiting import eventually
from hotslot_client import Client

PICTURE = "examples/shapes/pictures/two-red-circles.png"
STATEMENT = "there are two red circles"
PAUSE_SECONDS = 0.1  # of the caller, between two calls
LONG_SECONDS = 240.0
PREDICT = f'hotslot predict {PICTURE} "{STATEMENT}"'


@dataclass(frozen=True, slots=True)
class Call:
    """One call of the caller."""

    at: float  # seconds since the recording began
    seconds: float
    revision: str


class Caller:
    """Calls all the time, and keeps what it gets."""

    def __init__(self, address: str) -> None:
        self.calls: list[Call] = []
        self.failed = 0
        self._address, self._over = address, threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._begun = time.monotonic()

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End after the present call."""
        self._over.set()
        self._thread.join()

    def elapsed(self) -> float:
        """Seconds since the recording began."""
        return time.monotonic() - self._begun

    def _run(self) -> None:
        picture = (ROOT / PICTURE).read_bytes()
        with Client(self._address) as client:
            while not self._over.wait(PAUSE_SECONDS):
                before = self.elapsed()
                try:
                    answer = client.predict(picture, [STATEMENT], model="shapes")
                except Exception:  # noqa: BLE001  whatever it is, it is counted
                    self.failed += 1
                    continue
                self.calls.append(Call(round(before, 3), round(self.elapsed() - before, 4), answer.served_by.revision))


class Session:
    """A terminal in which commands are typed."""

    def __init__(self, sandbox: Sandbox) -> None:
        self.steps: list[dict[str, str]] = []
        self._folder = sandbox.page_folder("recording.md")
        self._environment = {**sandbox.environment, "FORCE_COLOR": "1", "COLUMNS": "100", "TERM": "xterm-256color"}

    def run(self, command: str, *, is_shown: bool = True) -> str:
        """Run a command; it is in the recording unless it only waits for something."""
        ended = subprocess.run(
            ["/bin/bash", "-c", command],
            cwd=self._folder,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if is_shown:
            self.steps.append({"command": command, "output": ended.stdout})
        return ended.stdout

    def wait_for(self, command: str, text: str) -> None:
        """Repeat a command until its output has a text."""
        eventually(lambda: text in self.run(command, is_shown=False), LONG_SECONDS, f"{text} in {command}", 0.3)


def record(sandbox: Sandbox) -> tuple[list[dict[str, str]], dict[str, object]]:
    """The session, and the calls with the moments of the update."""
    session, caller = Session(sandbox), Caller(f"127.0.0.1:{sandbox.ports['50051']}")
    marks: dict[str, float] = {}
    session.run(PREDICT)
    caller.start()
    try:
        session.run("hotslot hub add examples/shapes/v1.1.0 v1.1.0")
        marks["published"] = caller.elapsed()
        session.wait_for("hotslot updates status --model shapes", "observing")
        session.run("hotslot updates status --model shapes")
        session.wait_for("hotslot updates history --model shapes", "committed")
        marks["committed"] = caller.elapsed()
        session.run("hotslot updates history --model shapes")
        session.run(PREDICT)
        marks["rollback"] = caller.elapsed()
        session.run("hotslot updates rollback --model shapes")
        session.wait_for("hotslot updates history --model shapes", "rolled back")
        session.run(PREDICT)
    finally:
        caller.stop()
    rounded = {name: round(at, 2) for name, at in marks.items()}
    return session.steps, {"marks": rounded, "failed": caller.failed, "calls": [astuple(call) for call in caller.calls]}


def main() -> int:
    """Record and draw."""
    with tempfile.TemporaryDirectory(prefix="hotslot-recording-") as folder, demo_stack(Path(folder) / "demo") as stack:
        steps, calls = record(stack)
    for path, content in ((recording.DATA, steps), (swap.DATA, calls)):
        path.write_text(json.dumps(content, ensure_ascii=False) + "\n", "utf-8")
    recording.PICTURE.write_text(recording.draw(), "utf-8")
    swap.PICTURE.write_text(swap.draw(), "utf-8")
    print(f"{recording.PICTURE.name} and {swap.PICTURE.name} are drawn of this run")
    return 0


if __name__ == "__main__":
    sys.exit(main())
