"""Real fork servers, without torch: the runners that they fork, and what is left when one of the processes ends."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from common.clock import SystemClock
from inference.server.runner_client.fork_server import ForkServer
from inference.server.runner_client.orphans import adopt_orphans, reap_orphans
from inference.server.runner_client.process import RunnerProcess
from inference.server.runner_client.protocol import EndReason
from inference.server.runner_client.start import START_SECONDS, runner_environment, start_runner
from tests.runner.harness import LIMIT_SECONDS, SPEC, RunnerHarness

# The shipped program, without the import of torch, which takes seconds.
PROGRAM = "import sys; from inference.runner import fork_server as f; f.import_engines = print; sys.exit(f.main())"


class Forks:
    """A fork server, and what it reports."""

    def __init__(self) -> None:
        self.server = ForkServer(self._command, START_SECONDS, SystemClock())
        self.reports: list[str] = []
        self._changed = asyncio.Event()

    def _command(self, _engines: Sequence[str], descriptor: int) -> list[str]:
        return [sys.executable, "-c", PROGRAM, f"--connection-fd={descriptor}", f"--parent={os.getpid()}"]

    def start(self) -> None:
        """Start it."""
        self.server.attach(self._report, self._report)
        self.server.start([], {**runner_environment(), "OPENBLAS_NUM_THREADS": "1"})

    def _report(self, event: str, **_: Any) -> None:  # noqa: ANN401
        self.reports.append(event)
        self._changed.set()

    async def wait_for(self, reports: list[str]) -> None:
        """Wait until it has reported exactly this."""
        async with asyncio.timeout(LIMIT_SECONDS):
            while self.reports != reports:
                self._changed.clear()
                await self._changed.wait()

    def harness(self, state: Path) -> RunnerHarness:
        """A runner that it will fork."""
        runner = RunnerHarness(state)
        runner.process = RunnerProcess(SPEC, runner.listener, partial(start_runner, forks=self.server))
        return runner


@pytest.fixture
async def forks() -> AsyncIterator[Forks]:
    """One that imports."""
    adopt_orphans()
    forks = Forks()
    forks.start()
    yield forks
    forks.server.close()
    adopt_orphans(adopts=False)


async def test_a_forked_runner_is_a_child_of_the_server_and_its_end_is_seen(tmp_path: Path, forks: Forks) -> None:
    """It loads and answers, its parent is this process, and a signal that ends it is told by name."""
    runner = forks.harness(tmp_path)
    await runner.load()
    [outcome] = await runner.ask(["there is a cat"])
    parent = psutil.Process(runner.process.pid).ppid()
    os.kill(runner.process.pid, signal.SIGKILL)
    ending = await runner.ended()

    assert not outcome.HasField("failure")
    assert parent == os.getpid()
    assert (ending.reason, ending.detail) == (EndReason.DIED, "signal SIGKILL")


async def test_a_runner_outlives_its_fork_server_which_is_replaced(tmp_path: Path, forks: Forks) -> None:
    """A killed fork server costs no answer, and the next one forks too."""
    first, second = forks.harness(tmp_path / "one"), forks.harness(tmp_path / "two")
    await first.load()
    os.kill(forks.server.pid, signal.SIGKILL)
    await forks.wait_for(["fork_server_ready", "fork_server_failed", "fork_server_ready"])
    [outcome] = await first.ask(["there is a cat"])
    await second.load()
    for runner in (first, second):
        runner.process.retire()
        await runner.ended()

    assert not outcome.HasField("failure")
    assert [runner.listener.endings[0].reason for runner in (first, second)] == [EndReason.RETIRED] * 2


async def test_a_fork_server_with_threads_refuses_to_fork(forks: Forks) -> None:
    """A fork copies the locks that other threads hold, and no thread that would release them."""
    program = "import threading, time; threading.Thread(target=time.sleep, args=[9], daemon=True).start(); "
    forks.server._command = lambda *of: [*forks._command(*of)[:2], program + PROGRAM, *forks._command(*of)[3:]]  # noqa: SLF001
    forks.start()
    await forks.wait_for(["fork_server_failed"])

    assert not forks.server.can_fork


def test_orphans_are_reaped_but_not_what_is_awaited_elsewhere() -> None:
    """The decoders of a runner that has ended become children of the server, which must not keep them as zombies."""
    script = "import os; print(os.fork() and os._exit(0) or os.getpid(), flush=True)"
    adopt_orphans()
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    adopt_orphans(adopts=False)
    orphan = int(done.stdout)
    os.waitid(os.P_PID, orphan, os.WEXITED | os.WNOWAIT)
    kept = reap_orphans({orphan})
    reaped = reap_orphans(set())

    assert (kept, reaped) == (0, 1)
    with pytest.raises(ChildProcessError):
        os.waitpid(orphan, os.WNOHANG)
