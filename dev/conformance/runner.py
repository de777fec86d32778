"""The runner of a language: a process that reads and writes JSON lines."""

import contextlib
import json
import queue
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from dev.harness.process import ROOT

Json = dict[str, Any]
LIMIT_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Language:
    """How a language's runner is built and started."""

    name: str
    command: Sequence[str]
    folder: Path = ROOT
    build: Sequence[str] = ()
    needs: Sequence[str] = ()  # programs
    is_client: bool = True  # else a tool, which cannot be a caller under load

    @property
    def missing(self) -> list[str]:
        """The programs that are not on this machine."""
        return [name for name in self.needs if shutil.which(name) is None]


def _make_tool(name: str) -> Language:
    command = [sys.executable, "-m", f"dev.conformance.{name}"]
    return Language(name, command, needs=[str(ROOT / ".tools" / "bin" / name)], is_client=False)


_GO = ROOT / "clients" / "go"
_GO_RUNNER = ROOT / ".tools" / "clients" / "go-conformance"
_JAVA = ROOT / "clients" / "java"
LANGUAGES = {
    "python": Language("python", [sys.executable, str(ROOT / "clients" / "python" / "conformance.py")]),
    "go": Language("go", [str(_GO_RUNNER)], _GO, ["go", "build", "-o", str(_GO_RUNNER), "./conformance"], ["go"]),
    "java": Language(
        "java", [str(_JAVA / "conformance")], _JAVA, [str(_JAVA / "conformance"), "--build"], ["java", "mvn"]
    ),
    "grpcurl": _make_tool("grpcurl"),
    "ghz": _make_tool("ghz"),
}


class RunnerFailed(Exception):
    """The runner ended, said what it may not, or said nothing in time."""


class Runner:
    """A started runner."""

    def __init__(self, language: Language) -> None:
        self.name = language.name
        if language.build:
            subprocess.run(language.build, cwd=language.folder, check=True, timeout=600)
        self._process = subprocess.Popen(
            list(language.command),
            cwd=language.folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )
        self._lines: queue.SimpleQueue[Json | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with contextlib.suppress(ValueError):
                self._lines.put(json.loads(line))
        self._lines.put(None)

    def send(self, command: Json) -> None:
        """Send a line."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command, ensure_ascii=False) + "\n")
        self._process.stdin.flush()

    def receive(self, limit: float = LIMIT_SECONDS) -> Json:
        """The next line.

        Raises:
            RunnerFailed: there is none.
        """
        try:
            line = self._lines.get(timeout=limit)
        except queue.Empty:
            raise RunnerFailed(f"the runner of {self.name} says nothing for {limit:g} s") from None
        if line is None:
            raise RunnerFailed(f"the runner of {self.name} has ended with {self._process.wait(10)}")
        return line

    def run_row(self, command: Json, on_reached: Callable[[], None]) -> Json:
        """Run a row; returns its last line.

        Args:
            command: as the README of the table says.
            on_reached: called when the runner has reached `report_at`.
        """
        self.send(command)
        while "reached" in (line := self.receive()):
            on_reached()
        return line

    def __enter__(self) -> Self:
        """The runner."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End its input, then the process."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(10 if error is None else 0.5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(10)
        if self._process.stdout is not None:
            self._reader.join(5)
            self._process.stdout.close()
