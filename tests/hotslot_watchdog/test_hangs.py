"""Real processes that are stopped: the watchdog starts them anew; the order and the times of an end."""

import configparser
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from common.exit_codes import ExitCode
from hotslot_watchdog.watch import FileTouched, ServerProbe, end_child
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
board = health.HealthServicer()
board.set("liveness", health_pb2.HealthCheckResponse.SERVING)
server = grpc.server(ThreadPoolExecutor(2))
health_pb2_grpc.add_HealthServicer_to_server(board, server)
assert server.add_insecure_port("127.0.0.1:{port}")
server.start()
print(json.dumps({{"event": "server_ready", "pid": os.getpid()}}), flush=True)
while not end.wait(0.1):
    pass
server.stop(0).wait()
"""
HASTY = "[watchdog]\ngrace_seconds = 0\nanswer_seconds = 1\nmisses = 2\n[server]\nport = {port}\n"


@pytest.mark.timeout(90)
def test_what_is_stopped_is_started_anew(start: Start, free_port: int) -> None:
    """A server and an updater that stand still are ended and come back; those that answer are left alone."""
    stack = start(LIVE_SERVER.format(port=free_port), settings=HASTY.format(port=free_port))
    first = [stack.wait_for("server_ready")["pid"], stack.wait_for("updater_started")["pid"]]
    for pid in first:
        os.kill(pid, signal.SIGSTOP)
    again = [stack.wait_for("server_ready", 2)["pid"], stack.wait_for("updater_started", 2)["pid"]]
    assert not set(first) & set(again)
    ended = [line["program"] for line in stack.lines if line["event"] == "wedged_process_ended"]
    assert sorted(ended) == ["server", "updater"]
    stack.process.terminate()
    assert stack.end() == 0


def test_a_server_that_never_answers_ends_the_stack(start: Start, free_port: int) -> None:
    """Given up after its restarts in a row, it ends the stack with the server's code."""
    stack = start(OBEDIENT, settings=HASTY.format(port=free_port).replace("misses = 2", "misses = 1\nrestarts = 0"))
    assert stack.end() == ExitCode.INTERNAL_ERROR
    assert stack.wait_for("wedged_process_given_up")["program"] == "server"


def test_an_unreachable_server_is_not_live(free_port: int) -> None:
    """Nobody there is no answer."""
    assert not ServerProbe(f"127.0.0.1:{free_port}", 0.5).is_live()


def test_a_file_must_be_touched_between_two_looks(tmp_path: Path) -> None:
    """Whatever time it says: what counts is that it changes."""
    file = tmp_path / "alive"
    touched = FileTouched(file)
    assert not touched.is_live()
    file.touch()
    assert touched.is_live()
    assert not touched.is_live()
    os.utime(file, (0, 1))
    assert touched.is_live()


def test_only_a_child_is_ended() -> None:
    """A number that belongs to somebody else's process by now is left alone."""
    with subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE) as child:
        end_child(child.pid, parent=1)
        assert psutil.pid_exists(child.pid)
        assert child.poll() is None
        end_child(child.pid, parent=os.getpid())
        assert child.wait(10) == -signal.SIGKILL
    end_child(child.pid, parent=os.getpid())  # gone: nothing happens


def test_server_and_updater_end_together_and_the_watchdog_last() -> None:
    """Groups end one after the other; these are one group, so that times do not add up; TERM, and time to obey."""
    config = configparser.RawConfigParser(inline_comment_prefixes=None)
    config.read(ROOT / "supervisor.conf")
    server, updater, watchdog = (
        config[name] for name in ("program:server", "program:updater", "eventlistener:watchdog")
    )
    assert config["group:hotslot"]["programs"] == "server,updater"
    assert "priority" not in {*server, *updater, *watchdog, *config["group:hotslot"]}  # a listener's is the lowest
    for program in (server, updater):
        assert tuple(program[key] for key in ("stopsignal", "stopasgroup", "killasgroup")) == ("TERM", "false", "true")
        assert int(program["startsecs"]) >= 3
    assert server["stopwaitsecs"] == "%(ENV_HOTSLOT_STOP_SECONDS)s"
    assert int(updater["stopwaitsecs"]) <= 20  # less than the server's by default: it prolongs nothing
