"""The stack in the foreground: the real supervisord and supervisor.conf, with small programs as server and updater."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from common.exit_codes import ExitCode
from dev.harness.waiting import eventually

ROOT = Path(__file__).resolve().parents[2]
LAUNCH = "-m hotslot_watchdog.launch"
SERVER_COMMAND, UPDATER_COMMAND = f"{LAUNCH} -m inference.server.main", f"{LAUNCH} -m updater.daemon"
PATIENCE_SECONDS = 30.0

OBEDIENT = """
import json, os, signal, subprocess, sys, time
runner = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
def end(*_):
    runner.stdin.close(); runner.wait(); sys.exit(0)
signal.signal(signal.SIGTERM, end)
print(json.dumps({"event": "server_ready", "pid": os.getpid(), "state": os.environ["HOTSLOT_STATE_DIR"]}), flush=True)
while True:
    time.sleep(60)
"""
DYING = "import sys; sys.exit(1)"
# Writes whole lines, as the programs log: supervisord puts what it reads of another program between two reads.
TALKATIVE = """
import json, os, signal, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
for number in range(10_000):
    sys.stdout.write(json.dumps({{"event": "talk", "number": number, "text": "x" * 80}}) + "\\n")
    sys.stdout.flush()
with open("{pids}", "a") as file:
    file.write(f"{{os.getpid()}} ")
while True:
    signal.pause()
"""
UPDATER = """
import json, os, signal, sys, threading
end = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: end.set())
sys.stdout.write(json.dumps({"event": "updater_started", "pid": os.getpid()}) + "\\n")
sys.stdout.flush()
while not end.wait(0.5):
    open(os.environ["HOTSLOT_STATE_DIR"] + "/run/updater.alive", "w").close()
"""


class Stack:
    """A running deploy/run-stack with small programs as server and updater, and its log."""

    def __init__(
        self,
        folder: Path,
        server: str,
        updater: str = UPDATER,
        settings: str = "",
        *,
        is_read: bool = True,
        startsecs: int = 3,
    ) -> None:
        config = (ROOT / "supervisor.conf").read_text()
        for command, program, name in ((SERVER_COMMAND, server, "server.py"), (UPDATER_COMMAND, updater, "updater.py")):
            (folder / name).write_text(program)
            assert config.count(command) == 1
            config = config.replace(command, str(folder / name))
        # One retry instead of twenty, so that the updater is given up within seconds.
        config = config.replace("startretries=20", "startretries=1").replace("startsecs=3", f"startsecs={startsecs}")
        # A watchdog that does not end by itself takes as long as any other program that does not.
        config = config.replace("stopwaitsecs=2\n", "stopwaitsecs=20\n")
        (folder / "supervisor.conf").write_text(config)
        (folder / "hotslot.toml").write_text(f'state_dir = "{folder}/state"\n[[models]]\nname = "shapes"\n{settings}')
        run = [str(ROOT / "deploy/run-stack"), "--config", str(folder / "hotslot.toml")]
        self.process = subprocess.Popen(
            [*run, "--supervisor-config", str(folder / "supervisor.conf")],
            env={**os.environ, "HOTSLOT_PYTHON": sys.executable},
            stdout=subprocess.PIPE,
        )
        self.lines: list[dict[str, Any]] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        if is_read:
            self.read()

    def read(self) -> None:
        """Begin to read its output."""
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self.lines.append(json.loads(line))

    def wait_for(self, event: str, count: int = 1) -> dict[str, Any]:
        """The latest line of an event, once there are `count` of them."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline:
            found = [line for line in self.lines if line["event"] == event]
            if len(found) >= count:
                return found[-1]
            time.sleep(0.02)
        raise AssertionError(f"no {event} in {self.lines}")

    def children(self) -> list[psutil.Process]:
        """All processes of the stack except deploy/run-stack itself."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def end(self) -> int:
        """Wait until the stack ends and return its exit code."""
        code = self.process.wait(PATIENCE_SECONDS)
        self._reader.join(PATIENCE_SECONDS)
        assert self.process.stdout
        self.process.stdout.close()
        return code


Start = Callable[..., Stack]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts stacks; all their processes end with the test."""
    stacks: list[Stack] = []

    def start_stack(server: str, updater: str = UPDATER, settings: str = "", **options: Any) -> Stack:  # noqa: ANN401
        stacks.append(Stack(tmp_path, server, updater, settings, **options))
        return stacks[-1]

    yield start_stack
    for stack in stacks:
        if stack.process.poll() is None:
            children = stack.children()
            stack.process.kill()
            for process in children:
                process.kill()
            stack.end()


@pytest.mark.fault("U8")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_stack_in_order_with_no_process_left(start: Start, number: signal.Signals) -> None:
    """Ctrl-C, `docker stop` and a closed terminal stop all processes in order; the exit code is 0."""
    stack = start(OBEDIENT)
    stack.wait_for("server_ready")
    stack.wait_for("updater_started")
    children = stack.children()
    assert len(children) >= 5  # supervisord, watchdog, updater, server, and its runner

    asked_at = time.monotonic()
    stack.process.send_signal(number)
    assert stack.end() == 0
    assert time.monotonic() - asked_at < 10.0  # none is waited for until it is killed
    assert psutil.wait_procs(children, timeout=10)[1] == []


def test_a_second_stack_on_the_same_state_is_refused(start: Start) -> None:
    """Two stacks cannot share a state folder; the first one keeps running."""
    first = start(OBEDIENT)
    first.wait_for("server_ready")
    assert start(OBEDIENT).end() == ExitCode.BUSY
    assert first.process.poll() is None


def test_a_server_that_dies_is_started_again(start: Start) -> None:
    """A killed server runs again within about a second."""
    stack = start(OBEDIENT)
    os.kill(stack.wait_for("server_ready")["pid"], signal.SIGKILL)
    stack.wait_for("server_ready", count=2)
    stack.process.terminate()
    assert stack.end() == 0


@pytest.mark.fault("L17")
@pytest.mark.timeout(90)
def test_a_reader_that_stalls_stops_neither_restarts_nor_signals(start: Start, tmp_path: Path) -> None:
    """While the log is not read, a killed server is started again, and SIGTERM ends the stack."""
    pids = tmp_path / "pids"
    stack = start(TALKATIVE.format(pids=pids), is_read=False)
    eventually(lambda: pids.is_file() and pids.read_text(), what="the server has written much")
    os.kill(int(pids.read_text()), signal.SIGKILL)
    eventually(lambda: len(pids.read_text().split()) == 2, what="it was started again, and has written much")

    stack.process.terminate()
    eventually(lambda: not stack.children(), what="all processes have ended")
    stack.read()
    assert stack.end() == 0


@pytest.mark.fault("L18")
def test_a_server_that_always_exits_while_importing_ends_the_stack(start: Start) -> None:
    """Also if each time it runs for longer than supervisord takes for a start."""
    stack = start(DYING, startsecs=0)

    assert stack.end() == ExitCode.INTERNAL_ERROR
    assert stack.wait_for("process_given_up")["failed_starts"] == 4


@pytest.mark.fault("U2")
@pytest.mark.slow
def test_a_server_that_cannot_run_ends_the_stack_with_its_code(start: Start) -> None:
    """When supervisord gives up the server, the stack ends with exit code 70 and no process is left."""
    stack = start(DYING)
    children = psutil.Process(stack.process.pid).children(recursive=True)
    assert stack.end() == ExitCode.INTERNAL_ERROR
    assert [line["program"] for line in stack.lines if line["event"] == "process_given_up"] == ["server"]
    assert psutil.wait_procs(children, timeout=30)[1] == []


@pytest.mark.fault("U2")
@pytest.mark.slow
def test_an_updater_that_cannot_run_does_not_end_the_stack(start: Start) -> None:
    """It is given up and logged, and the server keeps running."""
    stack = start(OBEDIENT, updater=DYING)
    assert stack.wait_for("process_given_up")["program"] == "updater"
    assert stack.process.poll() is None
    assert psutil.pid_exists(stack.wait_for("server_ready")["pid"])
    stack.process.terminate()
    assert stack.end() == 0


def test_a_signal_that_was_held_since_the_start_is_taken() -> None:
    """As the first process of a container lost it, and ran on until the platform killed it."""
    code = """
import os, signal
from pathlib import Path
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
os.kill(os.getpid(), signal.SIGTERM)
from hotslot_watchdog.stack import Supervisord
print(Supervisord(Path("socket"))._signals.is_requested)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"


def test_wrong_settings_are_reported_and_nothing_starts(tmp_path: Path) -> None:
    """Every mistake is on standard error, and the exit code is 2."""
    (tmp_path / "hotslot.toml").write_text('[watchdog]\nstop_seconds = 0\n[[models]]\nname = "NO"\n')
    done = subprocess.run(
        [str(ROOT / "deploy/run-stack"), "--config", str(tmp_path / "hotslot.toml")],
        env={**os.environ, "HOTSLOT_PYTHON": sys.executable},
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert done.returncode == 2
    assert "watchdog.stop_seconds" in done.stderr
    assert "models[0].name" in done.stderr
    assert f"settings: {tmp_path}/hotslot.toml, and variables HOTSLOT_" in done.stderr
