"""Our grpc-go health checker, with grpc_health_probe's flags and exit codes, against the real server."""

import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from dev.harness.stack import ADDRESS, ENTAILMENT, Stack
from dev.harness.waiting import eventually

SERVING, USAGE, NO_CONNECTION, CALL_FAILED, NOT_SERVING = range(5)


def thread_states(pid: int) -> list[str]:
    """The state of every thread of a process, "T" for stopped."""
    lines = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/stat")]
    return [line.rpartition(") ")[2][0] for line in lines]


def run(tool: Path, *arguments: str) -> int:
    """Its exit code; generous limits, unless the arguments say otherwise."""
    line = [str(tool), "-connect-timeout=10s", "-rpc-timeout=10s", *arguments]
    return subprocess.run(line, capture_output=True, timeout=40, check=False).returncode


@pytest.mark.parametrize("service", ["", "shapes", "liveness", ENTAILMENT])
def test_what_serves_is_0(go_healthcheck: Path, stack: Stack, service: str) -> None:
    """Without -service the server as a whole is meant."""
    assert run(go_healthcheck, f"-addr={stack.address}", *([f"-service={service}"] if service else [])) == SERVING


def test_wrong_arguments_are_1(go_healthcheck: Path, stack: Stack) -> None:
    """No address, or a flag that does not exist."""
    assert run(go_healthcheck) == USAGE
    assert run(go_healthcheck, f"-addr={stack.address}", "-no-such-flag") == USAGE


def test_no_connection_is_2(go_healthcheck: Path) -> None:
    """No server listens on the port."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    assert run(go_healthcheck, f"-addr=127.0.0.1:{port}", "-connect-timeout=300ms") == NO_CONNECTION


def test_an_unknown_name_is_3(go_healthcheck: Path, stack: Stack) -> None:
    """The call fails."""
    assert run(go_healthcheck, f"-addr={stack.address}", "-service=squares") == CALL_FAILED


def test_what_does_not_serve_is_4(go_healthcheck: Path, stack: Stack) -> None:
    """The address service has no engine in this build."""
    assert run(go_healthcheck, f"-addr={stack.address}", f"-service={ADDRESS}") == NOT_SERVING


def test_a_server_without_a_model_is_4_and_alive(go_healthcheck: Path, make_stack: Callable[..., Stack]) -> None:
    """What Kubernetes would see of a first start: not ready, but alive."""
    stack = make_stack(committed=None, until_ready=False)

    assert run(go_healthcheck, f"-addr={stack.address}") == NOT_SERVING
    assert run(go_healthcheck, f"-addr={stack.address}", "-service=liveness") == SERVING


def test_a_frozen_server_is_2(go_healthcheck: Path, make_stack: Callable[..., Stack]) -> None:
    """A server that is stopped accepts nothing any more; it goes on when it is continued, and no runner was lost."""
    stack = make_stack()
    pids = sorted(slot.pid for slot in stack.control.status().slots)
    stack.process.send(signal.SIGSTOP)
    limits = ("-connect-timeout=500ms", "-rpc-timeout=500ms")
    try:
        eventually(lambda: set(thread_states(stack.process.pid)) == {"T"}, what="every thread of it is stopped")
        assert run(go_healthcheck, f"-addr={stack.address}", *limits) == NO_CONNECTION
    finally:
        stack.process.send(signal.SIGCONT)

    assert run(go_healthcheck, f"-addr={stack.address}") == SERVING
    assert sorted(slot.pid for slot in stack.control.status().slots) == pids
