"""Runners that are started before the server's own imports."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace

import pytest

from dev.harness.process import is_runner
from inference.call_record import CallRecord, create_memory
from inference.server.runner_client import fork_server, start
from inference.server.runner_client.fork_server import STEADY_SECONDS
from inference.server.runner_client.start import MAX_REPLACED, MAX_WAITING, RunnerSpec, RunnerStarter, StartedRunner
from tests.common.clock import SimClock

SPEC = RunnerSpec("", start_seconds=60.0, load_stall_seconds=60.0)
OTHER = RunnerSpec("", start_seconds=60.0, load_stall_seconds=60.0, device_policy="cpu")


@pytest.fixture
def early() -> Iterator[RunnerStarter]:
    """Two runners of different specifications."""
    with RunnerStarter([SPEC, OTHER]) as early:
        yield early


@pytest.mark.fault("K2")
def test_an_early_runner_is_taken_once_and_the_rest_are_ended(early: RunnerStarter) -> None:
    """Whoever comes first of its specification gets it; the next one is started anew."""
    left = early._runners[1][1]  # noqa: SLF001  the one that nobody takes
    first, second = early.take(SPEC), early.take(SPEC)
    early.close()
    codes = [runner.process.poll() for runner in (first, second, left)]
    for runner in (first, second):
        runner.discard()
        runner.process.wait()

    assert first.process.pid != second.process.pid
    assert codes == [None, None, -9]


def test_a_prepared_runner_is_taken_unless_it_has_ended(early: RunnerStarter) -> None:
    """One of each specification waits; one that the system has killed is started anew."""
    early.prepare(SPEC)
    waiting = [runner for spec, runner in early._runners if spec == SPEC]  # noqa: SLF001  none is started twice
    waiting[0].process.kill()
    waiting[0].process.wait()

    early.prepare(SPEC)
    prepared = [runner for spec, runner in early._runners if spec == SPEC]  # noqa: SLF001
    taken = early.take(SPEC)
    taken.discard()
    taken.process.wait()

    assert len(waiting) == 1
    assert [runner.process for runner in prepared] == [taken.process]
    assert taken is not waiting[0]


def test_a_waiting_runner_that_ends_is_replaced_at_once_a_few_times(early: RunnerStarter) -> None:
    """Not when the next one is taken; but one that always ends must not take the CPUs for ever."""
    pids = []
    for _ in range(MAX_REPLACED + 1):
        [waiting] = [runner for spec, runner in early._runners if spec == SPEC]  # noqa: SLF001
        pids.append(waiting.process.pid)
        waiting.process.kill()
        waiting.process.wait()
        early.tick()

    assert len(set(pids)) == MAX_REPLACED + 1
    assert [spec for spec, _ in early._runners] == [OTHER]  # noqa: SLF001


def test_a_waiting_runner_is_replaced_whatever_finds_that_it_has_ended() -> None:
    """Also if another model's runner is started first; and deaths that are minutes apart are no row."""
    clock = SimClock()
    counts = []
    with RunnerStarter([SPEC, OTHER], clock) as early:
        for _ in range(MAX_REPLACED + 2):
            [waiting] = [runner for spec, runner in early._runners if spec == SPEC]  # noqa: SLF001
            waiting.process.kill()
            waiting.process.wait()
            early.prepare(OTHER)
            early.tick()
            counts.append(len(early._runners))  # noqa: SLF001
            clock.advance(STEADY_SECONDS)

    assert counts == [2] * (MAX_REPLACED + 2)


def test_runners_of_settings_that_nobody_has_any_more_are_ended(early: RunnerStarter) -> None:
    """A setting that changes again and again leaves no process for each of its values."""
    oldest = early._runners[0][1]  # noqa: SLF001
    for seconds in range(1, MAX_WAITING):
        early.prepare(replace(SPEC, start_seconds=float(seconds)))

    assert oldest.process.wait() == -9
    assert len(early._runners) == MAX_WAITING  # noqa: SLF001


class HeldProcess:
    """A process that SIGKILL does not end, because a driver holds it."""

    pid, returncode = 0, None

    def kill(self) -> None:
        """Do nothing."""

    def poll(self) -> int | None:
        """The exit code, if it has ended."""
        return self.returncode

    def wait(self) -> int:
        """Would block the event loop."""
        raise AssertionError


@pytest.mark.fault("K8")
def test_a_waiting_runner_that_does_not_end_holds_nothing_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reload ends it, and every model would stand still; nor does it hold up the server's own end."""
    monkeypatch.setattr(fork_server, "REAP_SECONDS", 0.0)
    held, memory = HeldProcess(), create_memory()
    runner = StartedRunner(held, *socket.socketpair(), CallRecord(memory))  # type: ignore[arg-type]
    monkeypatch.setattr(start, "start_runner", lambda _: runner)
    with RunnerStarter() as starter:
        starter.prepare(SPEC)
        starter.retain([])
        starter.tick()
        kept = list(starter._killed)  # noqa: SLF001
        starter.fork_server._killed.append(held)  # type: ignore[arg-type]  # noqa: SLF001
        starter.close()
        held.returncode = -9  # type: ignore[assignment]
        starter.tick()
        left = list(starter._killed)  # noqa: SLF001
    os.close(memory)

    assert (len(kept), left) == (1, [])


def test_benchmarks_tell_runners_from_the_fork_server() -> None:
    """A forked runner has the fork server's arguments, and a runner that is a program has its name."""
    forks = ["python", "-m", "inference.runner.fork_server"]
    children = [("python", forks), ("hotslot-runner", forks), ("python", ["python", "-m", "inference.runner.main"])]

    assert [is_runner(name, arguments) for name, arguments in children] == [False, True, True]


@pytest.mark.fault("K2")
def test_little_is_imported_before_the_first_runner_starts() -> None:
    """Its engine takes longer to import than the server, and both go on side by side."""
    slow = {"grpc", "structlog", "rich", "prometheus_client", "google.protobuf"}
    script = f"import sys, inference.server.main; print(*sys.modules.keys() & {slow})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert done.stdout.split() == []


def test_a_runner_imports_numpy_only_with_an_engine_that_needs_it() -> None:
    """It takes as long as everything else that a runner imports before it says hello."""
    script = "import sys, inference.runner.main; print(*sys.modules.keys() & {'numpy', 'torch', 'PIL'})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert done.stdout.split() == []
