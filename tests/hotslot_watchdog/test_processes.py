"""The watchdog with real processes: unresponsive ones are restarted, and the stack stops in order."""

import configparser
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from common.exit_codes import ExitCode
from hotslot_watchdog.monitor import HealthProbe, HeartbeatProbe
from hotslot_watchdog.supervisor import kill_child
from tests.hotslot_watchdog.test_stack import OBEDIENT, ROOT, Start, start

__all__ = ["start"]  # a fixture
pytestmark = pytest.mark.slow

LIVE_SERVER = """
import json, os, signal, sys, threading
from concurrent.futures import ThreadPoolExecutor
import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
end = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: end.set())
health_servicer = health.HealthServicer()
health_servicer.set("liveness", health_pb2.HealthCheckResponse.SERVING)
server = grpc.server(ThreadPoolExecutor(2))
health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
server.add_insecure_port("unix:" + os.environ["HOTSLOT_STATE_DIR"] + "/run/control.sock")
server.start()
print(json.dumps({"event": "server_ready", "pid": os.getpid()}), flush=True)
while not end.wait(0.1):
    pass
server.stop(0).wait()
"""
IMPATIENT = "[watchdog]\ninitial_delay_seconds = 0\nprobe_timeout_seconds = 1\nfailure_threshold = 2\n"


@pytest.mark.timeout(90)
def test_a_process_that_hangs_is_restarted(start: Start) -> None:
    """A server and an updater that are stopped by SIGSTOP are killed and started again."""
    stack = start(LIVE_SERVER, settings=IMPATIENT)
    first = [stack.wait_for("server_ready")["pid"], stack.wait_for("updater_started")["pid"]]
    for pid in first:
        os.kill(pid, signal.SIGSTOP)
    again = [stack.wait_for("server_ready", 2)["pid"], stack.wait_for("updater_started", 2)["pid"]]
    assert not set(first) & set(again)
    ended = [line["program"] for line in stack.lines if line["event"] == "unresponsive_process_killed"]
    assert sorted(ended) == ["server", "updater"]
    stack.process.terminate()
    assert stack.end() == 0


def test_a_server_that_never_answers_ends_the_stack(start: Start) -> None:
    """It is given up after its restarts, and the stack ends with exit code 70."""
    settings = IMPATIENT.replace("threshold = 2", "threshold = 1\nmax_restarts = 0")
    stack = start(OBEDIENT, settings=settings)
    assert stack.end() == ExitCode.INTERNAL_ERROR
    assert stack.wait_for("unresponsive_process_given_up")["program"] == "server"


def test_an_unreachable_server_is_not_live(free_port: int) -> None:
    """A refused connection is a failed check."""
    assert not HealthProbe(f"127.0.0.1:{free_port}", 0.5).is_live()


def test_a_heartbeat_file_must_be_touched_between_two_checks(tmp_path: Path) -> None:
    """Only a change of the modification time counts, not the time itself."""
    file = tmp_path / "alive"
    probe = HeartbeatProbe(file)
    assert not probe.is_live()
    file.touch()
    assert probe.is_live()
    assert not probe.is_live()
    os.utime(file, (0, 1))
    assert probe.is_live()


def test_only_a_child_of_the_given_parent_is_killed() -> None:
    """A process id that another process has taken over is left alone."""
    with subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE) as child:
        kill_child(child.pid, parent=1)
        assert psutil.pid_exists(child.pid)
        assert child.poll() is None
        kill_child(child.pid, parent=os.getpid())
        assert child.wait(10) == -signal.SIGKILL
    kill_child(child.pid, parent=os.getpid())  # already gone: does nothing


def test_every_program_is_started_again_whatever_its_exit_code() -> None:
    """SIGTERM from somebody else than supervisord ends it with 0, which supervisord would take for its wish to end."""
    config = configparser.RawConfigParser(inline_comment_prefixes=None)
    config.read(ROOT / "supervisor.conf")
    programs = [name for name in config if name.startswith(("program:", "eventlistener:"))]
    assert [config[name].get("autorestart") for name in programs] == ["true"] * 4


def test_server_and_updater_stop_together_and_the_watchdog_last() -> None:
    """Supervisord stops groups one after the other, so both are in one group; each gets SIGTERM and time to stop."""
    config = configparser.RawConfigParser(inline_comment_prefixes=None)
    config.read(ROOT / "supervisor.conf")
    server, updater, watchdog = (
        config[name] for name in ("program:server", "program:updater", "eventlistener:watchdog")
    )
    assert config["group:hotslot"]["programs"] == "server,updater"
    # Without priorities the watchdog stops last: an event listener's default is the lowest.
    assert "priority" not in {*server, *updater, *watchdog, *config["group:hotslot"]}
    for program in (server, updater):
        assert tuple(program[key] for key in ("stopsignal", "stopasgroup", "killasgroup")) == ("TERM", "false", "true")
        assert int(program["startsecs"]) >= 3
    assert server["stopwaitsecs"] == "%(ENV_HOTSLOT_STOP_SECONDS)s"
    assert int(updater["stopwaitsecs"]) <= 20  # not longer than the server's default
