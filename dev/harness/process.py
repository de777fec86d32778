"""The server as a process: started with a settings file, read by its log, ended so that nothing is left."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dev.harness.waiting import eventually

ROOT = Path(__file__).parents[2]
_MARK = "STACK_UNDER_TEST"  # an environment variable that every process of a stack inherits

Settings = Mapping[str, Mapping[str, Any]]


class ServerProcess:
    """One server process and its runners."""

    def __init__(self, folder: Path, config: Path) -> None:
        self.log_path = folder / "server.log"
        self.error_path = folder / "server.err"
        self._mark = uuid.uuid4().hex
        environment = {
            **os.environ,
            "HOTSLOT_CONFIG": str(config),
            "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "protos"))),
            _MARK: self._mark,
        }
        self._log_begin = self.log_path.stat().st_size if self.log_path.exists() else 0
        with self.log_path.open("ab") as log, self.error_path.open("ab") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "inference.server.server"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=errors,
                env=environment,
                cwd=ROOT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Process id of the server."""
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative for a signal."""
        return self._process.poll()

    def wait_exit(self, limit: float = 30.0) -> int:
        """Wait for the end of the server itself, and say how it ended."""
        try:
            return self._process.wait(limit)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the server has not ended within {limit:g} s; {self.tail()}") from None

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the server alone."""
        self._process.send_signal(number)

    def send_all(self, number: signal.Signals) -> None:
        """Send a signal to the server and all its runners, as a terminal or a supervisor does."""
        os.killpg(self._process.pid, number)

    def living(self) -> list[int]:
        """Processes of this stack that are there, the server among them."""
        numbered = (entry for entry in Path("/proc").iterdir() if entry.name.isdigit())
        return [int(entry.name) for entry in numbered if self._is_ours(entry)]

    def wait_gone(self, limit: float = 10.0) -> None:
        """Fail unless every process of this stack ends."""
        eventually(lambda: not self.living(), limit, f"processes are left: {self.living()}")

    def end(self, limit: float = 30.0) -> None:
        """End it politely; the test fails if that does not work, and nothing is left either way."""
        try:
            if self.exit_code is None:
                self.send(signal.SIGTERM)
            self.wait_exit(limit)
            self.wait_gone()
        finally:
            self.destroy()

    def destroy(self) -> None:
        """Kill whatever is left."""
        for pid in self.living():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(10)

    def events(self, name: str = "", **fields: object) -> list[dict[str, Any]]:
        """Lines of this process's log, in order: of one name, with these fields."""
        rows = [json.loads(line) for line in self._lines()]
        return [row for row in rows if _fits(row, name, fields)]

    def wait_event(self, name: str, limit: float = 30.0, **fields: object) -> dict[str, Any]:
        """The first line of a name with these fields, once it is there."""

        def look() -> list[dict[str, Any]]:
            found = self.events(name, **fields)
            if not found and self.exit_code is not None:
                raise AssertionError(f"the server ended with {self.exit_code}; {self.tail()}")
            return found

        return eventually(look, limit, f"event {name} {fields}")[0]

    def tail(self) -> str:
        """The end of both logs, for a failed test."""
        texts = [path.read_text(errors="replace")[-2000:] for path in (self.log_path, self.error_path)]
        return "\n".join(texts)

    def _lines(self) -> list[bytes]:
        with self.log_path.open("rb") as log:
            log.seek(self._log_begin)
            return log.read().rpartition(b"\n")[0].splitlines()

    def _is_ours(self, entry: Path) -> bool:
        try:
            return f"{_MARK}={self._mark}".encode() in (entry / "environ").read_bytes().split(b"\0")
        except OSError:
            return False


def _fits(row: Mapping[str, Any], name: str, fields: Mapping[str, object]) -> bool:
    return (not name or row["event"] == name) and all(row.get(key) == value for key, value in fields.items())


def write_settings(
    path: Path,
    top: Mapping[str, Any],
    models: tuple[str, ...],
    sections: Settings,
    model_keys: Mapping[str, Any] | None = None,
) -> None:
    """Write a settings file; `model_keys` stand in the table of every model."""
    lines = [f"{key} = {_toml(value)}" for key, value in top.items()]
    for model in models:
        keys = {"name": model, **(model_keys or {})}
        lines += ["[[models]]", *(f"{key} = {_toml(value)}" for key, value in keys.items())]
    for section, values in sections.items():
        lines += [f"[{section}]", *(f"{key} = {_toml(value)}" for key, value in values.items())]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _toml(value: object) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key} = {_toml(item)}" for key, item in value.items()) + " }"
    return json.dumps(value)
