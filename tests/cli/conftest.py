"""Fixtures: the command line in a working folder of its own, with only the test's settings, and a scripted server."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from cli.main import run
from tests.cli.scripted_server import ScriptedServer


@dataclass(frozen=True, slots=True)
class Ended:
    """Exit code and output of a command."""

    code: int
    out: str
    err: str


Hotslot = Callable[..., Ended]


@pytest.fixture(autouse=True)
def _isolate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the machine's settings, and undo what a command sets in the environment."""
    for name in [name for name in os.environ if name.startswith("HOTSLOT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOTSLOT_CONFIG", "hotslot.toml")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def hotslot(capsys: pytest.CaptureFixture[str]) -> Hotslot:
    """Runs a command line through the real entry point."""

    def call(*words: str) -> Ended:
        with pytest.raises(SystemExit) as ended:
            run(words)
        seen = capsys.readouterr()
        code = ended.value.code
        return Ended(code if isinstance(code, int) else 0, seen.out, seen.err)

    return call


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    """A scripted server."""
    scripted = ScriptedServer()
    yield scripted
    scripted.stop()


@pytest.fixture
def picture(tmp_path: Path) -> str:
    """A file with the first bytes of a PNG."""
    path = tmp_path / "picture.png"
    path.write_bytes(b"\x89PNG and more")
    return str(path)
