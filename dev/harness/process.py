"""Processes of the stack: started with a settings file, observed by their log, ended with all their children."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from dev.harness.waiting import eventually

ROOT = Path(__file__).parents[2]
MARK = "HOTSLOT_STACK"  # an environment variable that every process of a stack inherits
LIMIT_SECONDS = 60.0


def stack_environment(mark: str, more: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of all processes of one stack."""
    path = os.pathsep.join((str(ROOT), str(ROOT / "protos")))
    return {**os.environ, "PYTHONPATH": path, MARK: mark, **(more or {})}


def processes_of(mark: str) -> Iterator[psutil.Process]:
    """Every living process of one stack."""
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                yield process
        except (psutil.Error, OSError):
            continue


def list_runners(server: psutil.Process) -> list[psutil.Process]:
    """The runners among a server's children: forked ones by their name, programs by their arguments."""
    return [child for child in server.children() if is_runner(child.name(), child.cmdline())]


def is_runner(name: str, arguments: Sequence[str]) -> bool:
    """Whether a child of the server is a runner; a forked one has the fork server's arguments."""
    return name == "hotslot-runner" or "inference.runner.main" in arguments


def free_port() -> int:
    """A port that no socket listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class HotslotProcess:
    """One program of hotslot, started as a supervisor starts it.

    Args:
        module: its program, as for `python -m`.
        config: settings file.
        log_path: its standard output, a JSON line for each event; appended.
        error_path: its standard error; without one, the log.
        environment: variables beside those of every process.
    """

    def __init__(
        self,
        module: str,
        config: Path,
        log_path: Path,
        error_path: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.log_path, self.error_path = log_path, error_path
        self.name = module
        self._mark = uuid.uuid4().hex
        self._log_begin = log_path.stat().st_size if log_path.exists() else 0
        variables = {"HOTSLOT_CONFIG": str(config), **(environment or {})}
        with contextlib.ExitStack() as opened:
            log = opened.enter_context(log_path.open("ab"))
            errors = opened.enter_context(error_path.open("ab")) if error_path is not None else log
            self._process = subprocess.Popen(
                [sys.executable, "-m", module],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=errors,
                env=stack_environment(self._mark, variables),
                cwd=ROOT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative for a signal."""
        return self._process.poll()

    def wait_exit(self, limit: float = LIMIT_SECONDS) -> int:
        """Wait for the end of the process itself; returns its exit code."""
        try:
            return self._process.wait(limit)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} has not ended within {limit:g} s; {self.tail()}") from None

    def send(self, number: signal.Signals) -> None:
        """Send a signal to this process alone."""
        self._process.send_signal(number)

    def send_all(self, number: signal.Signals) -> None:
        """Send a signal to the process and its children, as a terminal or a supervisor does."""
        os.killpg(self._process.pid, number)

    def living(self) -> list[int]:
        """Process ids of this process and its children that are alive."""
        numbered = (entry for entry in Path("/proc").iterdir() if entry.name.isdigit())
        return [int(entry.name) for entry in numbered if self._is_ours(entry)]

    def wait_gone(self, limit: float = 30.0) -> None:
        """Wait until this process and all its children have ended."""
        eventually(lambda: not self.living(), limit, f"processes are left: {self.living()}")

    def stop(self) -> int:
        """Send SIGTERM and wait; returns the exit code."""
        self.send(signal.SIGTERM)
        return self.wait_exit()

    def end(self, limit: float = 30.0) -> None:
        """Stop it in good order and wait for its children; kill what is left."""
        try:
            if self.exit_code is None:
                self.send(signal.SIGTERM)
            self.wait_exit(limit)
            self.wait_gone()
        finally:
            self.destroy()

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone; its children are left alone."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        self._process.wait(10)

    def destroy(self) -> None:
        """Kill it and all its children."""
        for pid in self.living():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(10)

    def is_frozen(self) -> bool:
        """Whether it is stopped by SIGSTOP."""
        return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"

    def thaw(self) -> None:
        """SIGCONT."""
        os.kill(self.pid, signal.SIGCONT)

    def events(self, name: str = "", **fields: object) -> list[dict[str, Any]]:
        """Lines of this process's log, in order: of one name, with these fields."""
        is_mixed = self.error_path is None  # with what went to standard error
        rows = [json.loads(line) for line in self._lines() if not is_mixed or line.startswith(b"{")]
        return [row for row in rows if _fits(row, name, fields)]

    def wait_event(self, name: str, limit: float = 30.0, **fields: object) -> dict[str, Any]:
        """Wait for a line of a name with these fields; returns the first one."""

        def look() -> list[dict[str, Any]]:
            found = self.events(name, **fields)
            if not found and self.exit_code is not None:
                raise AssertionError(f"{self.name} ended with {self.exit_code}; {self.tail()}")
            return found

        return eventually(look, limit, f"event {name} {fields}")[0]

    def errors(self) -> str:
        """What went to standard error; with the log if that is one file."""
        return (self.error_path or self.log_path).read_text(encoding="utf-8", errors="replace")

    def tail(self) -> str:
        """The end of its log and errors, for a failed test."""
        paths = [path for path in (self.log_path, self.error_path) if path is not None]
        return "\n".join(path.read_text(errors="replace")[-4000:] for path in paths)

    def _lines(self) -> list[bytes]:
        with self.log_path.open("rb") as log:
            log.seek(self._log_begin)
            return log.read().rpartition(b"\n")[0].splitlines()

    def _is_ours(self, entry: Path) -> bool:
        try:
            return f"{MARK}={self._mark}".encode() in (entry / "environ").read_bytes().split(b"\0")
        except OSError:
            return False


class ServerProcess(HotslotProcess):
    """One server process and its runners; its logs lie in a folder."""

    def __init__(self, folder: Path, config: Path, environment: Mapping[str, str] | None = None) -> None:
        super().__init__("inference.server.main", config, folder / "server.log", folder / "server.err", environment)


class UpdaterProcess(HotslotProcess):
    """One updater process; with a stub for the conversion unless another program is named.

    Args:
        folder: of its log.
        config: settings file.
        crash_at: where it dies or freezes; see `updater.loop.CrashPoints`.
        program: its module.
    """

    def __init__(
        self, folder: Path, config: Path, crash_at: str = "", program: str = "dev.harness.scripted_updater"
    ) -> None:
        super().__init__(program, config, folder / "updater.log", environment={"HOTSLOT_CRASH_AT": crash_at})


def _fits(row: Mapping[str, Any], name: str, fields: Mapping[str, object]) -> bool:
    return (not name or row["event"] == name) and all(row.get(key) == value for key, value in fields.items())


@contextlib.contextmanager
def running_server(folder: Path, settings: str) -> Iterator[ServerProcess]:
    """A server on a settings file in a folder, with its logs beside it; ended afterwards."""
    config = folder / "hotslot.toml"
    config.write_text(settings, encoding="utf-8")
    server = ServerProcess(folder, config)
    try:
        yield server
    finally:
        server.end()
