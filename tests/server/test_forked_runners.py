"""A real server with the demo model: its runners are forked from a process that has imported torch."""

import os
import signal
from pathlib import Path

import psutil

from common.paths import CONTROL_SOCKET, run_folder
from dev.harness.control import ControlClient
from dev.harness.demo_model import SETTINGS, SHAPES, seal_revisions
from dev.harness.process import running_server
from dev.harness.waiting import eventually

RUNNER = "hotslot-runner"
LIMIT_SECONDS = 60.0


def test_killed_runners_and_a_killed_fork_server_are_replaced_and_leave_no_zombie(tmp_path: Path) -> None:
    """The model answers its self-test after each, in a runner that was forked; the state `Z` is nowhere."""
    state = tmp_path / "state"
    seal_revisions(state, {"v1.0.0": SHAPES / "v1.0.0"})
    control = ControlClient(str(run_folder(state) / CONTROL_SOCKET))
    settings = SETTINGS.format(state=state, port=0).replace('"warning"', '"info"')
    with running_server(tmp_path, settings) as process:
        control.wait_ready()
        before = eventually(lambda: find_processes(process.pid, control), LIMIT_SECONDS, "a standby")
        os.kill(before["python"][0], signal.SIGKILL)
        log = tmp_path / "server.log"
        eventually(lambda: log.read_text().count("fork_server_ready") == 2, LIMIT_SECONDS, "another fork server")
        killed = control.active_pid()
        os.kill(killed, signal.SIGKILL)
        control.wait_replaced(killed)
        after = eventually(lambda: find_processes(process.pid, control), LIMIT_SECONDS, "another standby")
        control.close()

    assert before["python"] != after["python"]
    assert killed not in after[RUNNER]
    assert set(before[RUNNER]) & set(after[RUNNER]), "the standby, which serves now"


def find_processes(server: int, control: ControlClient) -> dict[str, list[int]]:
    """Process ids of the server's children by name; empty until there are two runners, a fork server and no zombie.

    And until the server knows both runners: one whose fork server ends before it has told its id is given up, and the
    next one is a program of its own.
    """
    found: dict[str, list[int]] = {}
    try:
        for child in psutil.Process(server).children():
            if child.status() == psutil.STATUS_ZOMBIE:
                return {}
            found.setdefault(child.name(), []).append(child.pid)
    except psutil.NoSuchProcess:  # one has just been reaped
        return {}
    known = sorted(slot.pid for slot in control.status().slots)
    is_whole = len(known) == 2 and sorted(found.get(RUNNER, ())) == known and len(found.get("python", ())) == 1
    return found if is_whole else {}
