"""The command line as a user has it: an own working folder, no settings but the test's, a server that stands in."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from cli.main import run
from tests.cli.standin import StandIn


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


Hotslot = Callable[..., Ended]


@pytest.fixture(autouse=True)
def _own_world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No settings of the machine reach a test, and what a command sets is undone."""
    for name in [name for name in os.environ if name.startswith("HOTSLOT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOTSLOT_CONFIG", "hotslot.toml")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def hotslot(capsys: pytest.CaptureFixture[str]) -> Hotslot:
    """Run a command line through the real entry point."""

    def call(*words: str) -> Ended:
        with pytest.raises(SystemExit) as ended:
            run(words)
        seen = capsys.readouterr()
        code = ended.value.code
        return Ended(code if isinstance(code, int) else 0, seen.out, seen.err)

    return call


@pytest.fixture
def server() -> Iterator[StandIn]:
    """A server that answers."""
    standin = StandIn()
    yield standin
    standin.stop()


@pytest.fixture
def picture(tmp_path: Path) -> str:
    """A file that may be a picture."""
    path = tmp_path / "picture.png"
    path.write_bytes(b"\x89PNG and more")
    return str(path)
