"""Which runners are forked, and when the fork server is started, restarted and ended."""

import asyncio
import os
from collections.abc import Iterator
from dataclasses import replace

import pytest

from common.engine_files import Task
from common.settings import ModelSettings
from inference.fork_wire import ForkAnswer, receive_request
from inference.server.runner_client.fork_failures import MAX_FAILURES, PAUSE_SECONDS
from inference.server.runner_client.fork_server import ForkedProcess
from inference.server.runner_client.process import RunnerProcess
from inference.server.runner_client.start import RunnerSpec, RunnerStarter
from inference.server.runner_specs import runner_spec
from inference.server.settings import ServerSettings
from tests.runner.harness import LIMIT_SECONDS, RecordingListener
from tests.runner.simulated_forks import SimulatedForks, settle

SPEC = RunnerSpec("ofa", start_seconds=60.0, load_stall_seconds=60.0, fork=True)
MGEO = replace(SPEC, engine="mgeo")
NO_MEMORY = "OSError(12, 'Cannot allocate memory')"


class Starter:
    """Starts runners, from a simulated fork server."""

    def __init__(self) -> None:
        self.forks = SimulatedForks()
        self.starter = RunnerStarter(clock=self.forks.clock, forks=self.forks.server)

    async def fail_fork(self) -> None:
        """A slot's runner is asked for, and the fork server has no memory for it."""
        listener = RecordingListener()
        process = RunnerProcess(SPEC, listener, self.starter.take)
        process.spawn()
        if len(self.forks.ends) == 1 and not self.forks.reports:
            await self.forks.answer(ForkAnswer(0))
        received = receive_request(self.forks.ends[-1])
        assert received is not None
        for descriptor in received[1]:
            os.close(descriptor)
        await self.forks.answer(ForkAnswer(received[0].number, error=NO_MEMORY))
        async with asyncio.timeout(LIMIT_SECONDS):
            await process.wait_ended()

    def is_forked(self, spec: RunnerSpec) -> bool:
        """Whether the next runner is."""
        runner = self.starter.take(spec)
        runner.discard()
        runner.process.wait()
        return isinstance(runner.process, ForkedProcess)


@pytest.fixture
def made() -> Iterator[Starter]:
    """It has started nothing yet."""
    made = Starter()
    yield made
    made.starter.close()
    made.forks.close()


async def test_runners_start_as_programs_for_a_minute_after_two_failed_forks(made: Starter) -> None:
    """A fork server that answers and cannot fork would take the model out of service; it is reported once."""
    made.forks.attach()
    for _ in range(MAX_FAILURES):
        await made.fail_fork()
    meanwhile = made.is_forked(SPEC)
    made.forks.clock.advance(PAUSE_SECONDS)
    await made.fail_fork()

    [fields] = [fields for event, fields in made.forks.reports if event == "runner_forks_paused"]
    assert NO_MEMORY in fields["detail"]
    assert (meanwhile, made.is_forked(SPEC)) == (False, False)


async def test_a_forked_runner_that_reaches_hello_ends_the_row_of_failures(made: Starter) -> None:
    """Single failures, days apart, are no reason to start programs."""
    made.forks.attach()
    for _ in range(MAX_FAILURES):
        runner = made.starter.take(SPEC)
        assert runner.fork_failures is not None
        runner.fork_failures.record("exit code 1")
        runner.fork_failures.record("")
        runner.discard()

    assert made.is_forked(SPEC)


async def test_a_closed_starter_starts_nothing(made: Starter) -> None:
    """A process that is started while the server ends would have nothing that reads its answers."""
    made.starter.close()
    made.starter.prepare(SPEC)

    with pytest.raises(OSError, match="stopping"):
        made.starter.take(SPEC)
    assert made.forks.engines == []


async def test_a_reload_that_adds_an_engine_restarts_the_fork_server_with_it(made: Starter) -> None:
    """Otherwise each runner of the new model would import its engine. Not while a runner is asked for: it would die."""
    made.forks.attach()
    assert made.is_forked(SPEC)
    made.starter.retain([SPEC, MGEO])
    made.starter.tick()
    while_asked = list(made.forks.engines)
    await made.forks.answer(ForkAnswer(0))
    await made.forks.answer(ForkAnswer(1, error=NO_MEMORY))
    made.starter.tick()
    made.starter.tick()

    assert while_asked == [["ofa"]]
    assert made.forks.engines == [["ofa"], ["ofa", "mgeo"]]


async def test_a_reload_without_forked_models_ends_the_fork_server(made: Starter) -> None:
    """It has 300 MB. A model that is replaced meanwhile does not bring it back."""
    made.forks.attach()
    made.starter.prepare(SPEC)
    await made.forks.answer(ForkAnswer(0))
    await made.forks.answer(ForkAnswer(1, error=NO_MEMORY))
    made.starter.retain([replace(SPEC, fork=False)])
    made.starter.tick()

    assert not made.is_forked(SPEC)
    assert made.forks.server.pid == 0


async def test_a_system_without_subreapers_is_reported_once(made: Starter, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runners are programs there, and the log says why."""

    def refuse() -> None:
        raise OSError("no child subreaper")

    monkeypatch.setattr("inference.server.runner_client.start.adopt_orphans", refuse)
    are_forked = [made.is_forked(SPEC), made.is_forked(SPEC)]
    made.forks.attach()
    await settle()

    [(event, fields)] = made.forks.reports
    assert "no child subreaper" in fields["detail"]
    assert (event, are_forked) == ("fork_server_failed", [False, False])


@pytest.mark.parametrize("forks", [True, False])
async def test_the_setting_decides_whether_runners_are_forked(made: Starter, *, forks: bool) -> None:
    """Without the fork server each runner is a program, and no process waits to fork it."""
    table = {"state_dir": "/state", "runner": {"fork_server": forks}}
    settings = ServerSettings.model_validate({**table, "models": [{"name": "m"}]})
    spec = runner_spec(settings, ModelSettings(name="m", task=Task.VISUAL_ENTAILMENT))

    assert made.is_forked(spec) is forks
    assert len(made.forks.engines) == forks
