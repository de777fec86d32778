"""A real runner that dies, hangs or talks nonsense: each is noticed in time, told once, and leaves no process."""

import asyncio
import os
import select
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from inference.server.runner_client.process import EndReason, RunnerEnding, RunnerProcess, RunnerSpec
from tests.runner.conftest import MakeStage
from tests.runner.stage import LIMIT_SECONDS, SPEC, Ear, Stage

pytestmark = pytest.mark.asyncio

SOON = 2.0  # for what the kernel tells at once
QUICK = {"silence_seconds": 0.4, "load_stall_seconds": 0.4}


async def test_a_crash_is_a_death(stage: Stage) -> None:
    """The end says by which signal; answers that were given before are not lost."""
    await stage.load()
    stage.send(["fine"])
    stage.send(["!crash"])
    ending = await stage.ended(SOON)
    assert ending == RunnerEnding(EndReason.DIED, "signal SIGKILL", -9)
    assert list(stage.ear.outcomes) == [1]


async def test_an_exit_is_a_death(stage: Stage) -> None:
    """Ending without being asked is dying, whatever the code."""
    await stage.load()
    stage.send(["!exit"])
    assert await stage.ended(SOON) == RunnerEnding(EndReason.DIED, "exit code 1", 1)


async def test_a_kill_from_outside_is_a_death(stage: Stage) -> None:
    """The system's out-of-memory killer looks just like that."""
    await stage.load()
    os.kill(stage.process.pid, signal.SIGKILL)
    assert (await stage.ended(SOON)).reason is EndReason.DIED


async def test_a_lost_device_ends_the_process(stage: Stage) -> None:
    """Nothing on it would succeed again: only a new process helps."""
    await stage.load()
    stage.send(["!lost"])
    assert await stage.ended(SOON) == RunnerEnding(EndReason.DIED, "exit code 74", 74)


async def test_a_death_while_retiring_is_a_death(stage: Stage) -> None:
    """What it still held is not answered, so it must not look like a polite end."""
    await stage.load()
    stage.send(["!crash"])
    stage.process.retire()
    assert (await stage.ended(SOON)).reason is EndReason.DIED


async def test_a_stopped_runner_is_silent(make_stage: MakeStage) -> None:
    """SIGSTOP: noticed within its limit, and it can be ended although it is stopped."""
    stage = make_stage(**QUICK)
    await stage.load()
    os.kill(stage.process.pid, signal.SIGSTOP)
    assert (await stage.ended(0.4 * 1.3 + SOON)).reason is EndReason.SILENT


async def test_a_held_interpreter_is_silence(make_stage: MakeStage) -> None:
    """A call that never gives the interpreter back stops every thread, the heartbeat's too."""
    stage = make_stage(**QUICK)
    await stage.load()
    stage.send(["!gil 60"])
    assert (await stage.ended(0.4 * 1.3 + SOON)).reason is EndReason.SILENT


async def test_a_hung_device_call_is_seen_in_the_heartbeat(make_stage: MakeStage) -> None:
    """Not silence: whoever knows the batch's limit decides, and kill works."""
    stage = make_stage(**QUICK)
    await stage.load()
    stage.send(["!hang"])
    await stage.ear.until(lambda: stage.ear.heartbeat.batch_id == 1 and stage.ear.heartbeat.seconds_on_step > 0.6)
    assert stage.ear.endings == []
    stage.process.kill("over its time")
    assert await stage.ended(SOON) == RunnerEnding(EndReason.KILLED, "over its time", -9)


@pytest.mark.parametrize("fault", ["hang", "gil"])
async def test_a_load_that_hangs_is_ended(make_stage: MakeStage, fault: str) -> None:
    """Whether or not its heart beats."""
    stage = make_stage(**QUICK)
    await stage.stand()
    stage.begin_load(fail_load=fault)
    assert (await stage.ended(0.4 * 1.3 + SOON)).reason is EndReason.LOAD_STALLED


async def test_a_stop_while_loading_is_noticed(make_stage: MakeStage) -> None:
    """A stopped process makes no progress either."""
    stage = make_stage(**QUICK)
    await stage.stand()
    stage.begin_load(load_seconds=60.0)
    os.kill(stage.process.pid, signal.SIGSTOP)
    assert (await stage.ended(0.4 * 1.3 + SOON)).reason is EndReason.LOAD_STALLED


async def test_a_crash_while_loading_is_a_death(stage: Stage) -> None:
    """There is no outcome then, only the end."""
    await stage.stand()
    stage.begin_load(fail_load="crash")
    assert (await stage.ended(SOON)).reason is EndReason.DIED
    assert stage.ear.loaded is None


async def test_a_runner_that_does_not_stand_up_is_given_up(make_stage: MakeStage) -> None:
    """Stopped before it could say Hello."""
    stage = make_stage(start_seconds=0.3)
    stage.process.spawn()
    os.kill(stage.process.pid, signal.SIGSTOP)
    assert (await stage.ended(0.3 * 1.3 + SOON)).reason is EndReason.START_TIMEOUT


async def test_an_engine_that_cannot_be_imported_is_a_death() -> None:
    """With an exit code of its own, before any Hello."""
    ear = Ear()
    process = RunnerProcess(RunnerSpec(engine="none", extra_engines={"none": "tests.no_such:engine"}), ear)
    process.spawn()
    await asyncio.wait_for(process.wait_ended(), LIMIT_SECONDS)
    assert ear.endings == [RunnerEnding(EndReason.DIED, "exit code 78", 78)]
    assert process.resident_bytes == 0


async def test_garbage_ends_a_runner(stage: Stage) -> None:
    """Bytes that are no frame: nothing behind them can be believed."""
    await stage.load()
    stage.send(["!garbage"])
    assert (await stage.ended(SOON)).reason is EndReason.GARBAGE


async def test_half_a_frame_ends_a_runner(make_stage: MakeStage) -> None:
    """Its heart beats on, but the rest does not come."""
    stage = make_stage(**QUICK)
    await stage.load()
    stage.send(["!half"])
    ending = await stage.ended(0.4 * 1.5 + SOON)
    assert (ending.reason, ending.detail) == (EndReason.GARBAGE, "an incomplete frame")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_signals_of_the_terminal_are_the_server_s_business(stage: Stage, number: signal.Signals) -> None:
    """Ctrl-C reaches the whole group; a runner goes on until the server ends it."""
    await stage.load()
    os.kill(stage.process.pid, number)
    [outcome] = await stage.ask(["a"])
    assert outcome.WhichOneof("outcome") == "entailment"
    assert os.getpgid(stage.process.pid) == os.getpgid(0)


async def test_a_server_that_is_not_understood_is_left(stage: Stage) -> None:
    """The runner ends rather than guess."""
    await stage.load()
    stage.process._data.send([b"\xff" * 64])  # noqa: SLF001  no other way to say nonsense
    assert await stage.ended(SOON) == RunnerEnding(EndReason.DIED, "exit code 65", 65)


async def test_a_listener_s_bug_costs_no_later_message(stage: Stage) -> None:
    """Whoever listens may fail on one message; the next one still comes, and the failure is told."""
    told: list[str] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: told.append(repr(context.get("exception"))))
    await stage.load()
    stage.ear.bug = ZeroDivisionError()
    stage.send(["a"])
    await stage.ask(["b"])
    assert told == ["ZeroDivisionError()"]


async def test_a_runner_dies_with_its_server(tmp_path: Path) -> None:
    """SIGKILL of the server leaves no process, not even one whose interpreter is held in a device call."""
    pid = await _orphan(tmp_path, "await stage.load(); stage.send(['!gil 60'])")
    await _gone(pid)


@pytest.mark.parametrize("standing", ["stage.process.spawn()", "await stage.stand()", "await stage.load()"])
async def test_an_idle_runner_dies_with_its_server(tmp_path: Path, standing: str) -> None:
    """The same for one that is still importing, has no model yet, or nothing to do."""
    pid = await _orphan(tmp_path, standing)
    await _gone(pid)


async def test_a_runner_whose_server_is_already_gone_ends_at_once() -> None:
    """The parent-death signal comes too late for it, so it asks who its parent is."""
    arguments = ["--data-fd=0", "--control-fd=0", "--parent=0", f"--engine={SPEC.engine}"]
    command = [sys.executable, "-m", "inference.runner.main", *arguments]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = await asyncio.create_subprocess_exec(*command, env=environment)
    assert await asyncio.wait_for(process.wait(), LIMIT_SECONDS) == 69


async def _orphan(state: Path, then: str) -> int:
    """Let a process in between spawn a runner, kill that process, and give back the runner's id."""
    code = f"""
        import asyncio, pathlib, sys
        from tests.runner.stage import Stage
        async def main():
            stage = Stage(pathlib.Path({str(state)!r}))
            {then}
            print(stage.process.pid, flush=True)
            await asyncio.sleep(60)
        asyncio.run(main())
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    server = await asyncio.create_subprocess_exec(
        sys.executable, "-c", textwrap.dedent(code), env=environment, stdout=subprocess.PIPE
    )
    assert server.stdout is not None
    pid = int(await asyncio.wait_for(server.stdout.readline(), LIMIT_SECONDS))
    server.kill()
    await server.wait()
    return pid


async def _gone(pid: int) -> None:
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        assert await asyncio.to_thread(poll.poll, LIMIT_SECONDS * 1000), "the runner outlives its server"
    finally:
        os.close(descriptor)
