"""Real runner processes that crash, hang or send invalid frames: noticed in time, reported once, no process left."""

import asyncio
import os
import select
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from hotslot.runner.v1 import runner_pb2
from inference.call_record import CallRecord, create_memory
from inference.server.control import servicer
from inference.server.runner_client import process as runner_process
from inference.server.runner_client.child import Child
from inference.server.runner_client.fork_server import ForkedProcess
from inference.server.runner_client.process import RunnerProcess
from inference.server.runner_client.protocol import EndReason, RunnerEnding
from inference.server.runner_client.start import RunnerSpec, RunnerStarter, StartedRunner
from inference.server.scheduling.limits import WALL_FACTOR, find_hang
from inference.wire import frame
from tests.runner.conftest import MakeRunner
from tests.runner.harness import LIMIT_SECONDS, SPEC, RecordingListener, RunnerHarness
from tests.runner.simulated_forks import settle

pytestmark = pytest.mark.asyncio

SOON = 10.0  # for events that the kernel reports at once; the machine may be busy
SILENCE = {"silence_seconds": 0.4}
STALL = {"load_stall_seconds": 0.4}
BEATING = {"silence_seconds": 1.0}  # of a runner whose heartbeats go on, also on a busy machine


async def test_a_crash_is_reported_with_its_signal(runner: RunnerHarness) -> None:
    """Answers that were sent before the crash are delivered."""
    await runner.load(max_call_rows=1)
    runner.send(["!slow 0.2"])  # meanwhile both of the others are prepared
    runner.send(["fine"])
    runner.send(["!crash"])
    runner.send(["behind it"])
    ending = await runner.ended(SOON)
    assert ending == RunnerEnding(EndReason.DIED, "signal SIGKILL", computing=(3,))
    assert list(runner.listener.outcomes) == [1, 2]


async def test_an_exit_without_retirement_is_a_failure(runner: RunnerHarness) -> None:
    """Whatever the exit code."""
    await runner.load()
    runner.send(["!exit"])
    assert await runner.ended(SOON) == RunnerEnding(EndReason.DIED, "exit code 1", computing=(1,))


async def test_a_kill_from_outside_is_a_failure(runner: RunnerHarness) -> None:
    """The kernel's out-of-memory killer looks the same."""
    await runner.load()
    os.kill(runner.process.pid, signal.SIGKILL)
    assert (await runner.ended(SOON)).reason is EndReason.DIED


async def test_a_lost_device_ends_the_process(runner: RunnerHarness) -> None:
    """Only a new process can use the device again."""
    await runner.load()
    runner.send(["!lost"])
    assert await runner.ended(SOON) == RunnerEnding(EndReason.DIED, "exit code 74", computing=(1,))


async def test_a_crash_during_retirement_is_a_failure(runner: RunnerHarness) -> None:
    """Unanswered items make it different from an orderly end."""
    await runner.load()
    runner.send(["!crash"])
    runner.process.retire()
    assert (await runner.ended(SOON)).reason is EndReason.DIED


async def test_a_stopped_runner_exceeds_the_silence_timeout(make_runner: MakeRunner) -> None:
    """After SIGSTOP it is noticed within the timeout, and can be killed although it is stopped."""
    runner = make_runner(**SILENCE)
    await runner.load()
    os.kill(runner.process.pid, signal.SIGSTOP)
    assert (await runner.ended(0.4 * 1.3 + SOON)).reason is EndReason.SILENT


async def test_a_held_interpreter_exceeds_the_silence_timeout(make_runner: MakeRunner) -> None:
    """A call that never releases the interpreter lock stops every thread, the heartbeat's too."""
    runner = make_runner(**SILENCE)
    await runner.load()
    runner.send(["!gil 60"])
    assert (await runner.ended(0.4 * 1.3 + SOON)).reason is EndReason.SILENT


@pytest.mark.fault("K8")
@pytest.mark.parametrize(
    ("statement", "expected"), [("!hang", "of sleep, limit 1.20 s"), ("!burn 60", "of CPU time, limit 1.20 s")]
)
async def test_a_hung_device_call_is_seen_in_the_heartbeat(
    make_runner: MakeRunner, statement: str, expected: str
) -> None:
    """The heartbeat goes on and reports for how long the call has slept or computed, and kill works."""
    runner = make_runner(**BEATING)
    await runner.load()
    runner.process.set_serving(True)
    runner.send([statement])
    await runner.listener.until(lambda: find_hang(runner.listener.heartbeat, 1.2, 60.0, is_cpu=True))
    assert expected in find_hang(runner.listener.heartbeat, 1.2, 60.0, is_cpu=True)
    assert runner.listener.endings == []
    runner.process.kill("over its time")
    assert await runner.ended(SOON) == RunnerEnding(EndReason.KILLED, "over its time", computing=(1,))


@pytest.mark.fault("L12")
async def test_a_call_that_gets_a_tenth_of_a_cpu_does_not_hang(make_runner: MakeRunner) -> None:
    """As under a quota of the container: it takes ten times as long, and no heartbeat shows a hang."""
    runner = make_runner()
    await runner.load()
    runner.process.set_serving(True)  # at a candidate's niceness a busy machine would leave it far less
    hangs: list[str] = []
    runner.listener.on_beat = lambda beat: hangs.append(find_hang(beat, 0.4, 60.0, is_cpu=True))
    async with asyncio.timeout(LIMIT_SECONDS):
        # A machine that wakes this task late leaves the call much more of a CPU, or much less: then once more.
        while not 3 * 0.4 < await _call_in_slices(runner, "!burn 0.2") < WALL_FACTOR * 0.4:
            hangs.clear()
    assert set(hangs) == {""}


@pytest.mark.fault("L9")
async def test_a_slow_preparation_has_a_clock_of_its_own(make_runner: MakeRunner) -> None:
    """It is no device call, and does not hold up others."""
    runner = make_runner()
    await runner.load()
    runner.send(["!unprepared 0.5"])
    await runner.listener.until(lambda: runner.listener.heartbeat.oldest_preparation_seconds > 0.1)
    await runner.listener.until(lambda: runner.listener.heartbeat.waiting_items == 0)
    assert runner.listener.heartbeat.oldest_preparation_seconds == 0

    runner.send(["!unprepared 60"])
    await runner.listener.until(lambda: runner.listener.heartbeat.oldest_preparation_seconds > 0.1)
    assert "a preparation takes" in find_hang(runner.listener.heartbeat, 60.0, 0.1, is_cpu=True)
    assert (runner.listener.heartbeat.preparing_items, runner.listener.heartbeat.rows_on_step) == (1, 0)
    await runner.ask(["another"])
    await runner.listener.until(lambda: runner.listener.heartbeat.waiting_items == 1)


@pytest.mark.parametrize("fault", ["hang", "gil"])
async def test_a_load_that_hangs_is_ended(make_runner: MakeRunner, fault: str) -> None:
    """With or without heartbeats."""
    runner = make_runner(**STALL)
    await runner.start()
    runner.begin_load(fail_load=fault)
    assert (await runner.ended(0.4 * 1.3 + SOON)).reason is EndReason.LOAD_STALLED


async def test_a_stop_while_loading_is_noticed(make_runner: MakeRunner) -> None:
    """A stopped process makes no progress."""
    runner = make_runner(**STALL)
    await runner.start()
    runner.begin_load(load_seconds=60.0)
    os.kill(runner.process.pid, signal.SIGSTOP)
    assert (await runner.ended(0.4 * 1.3 + SOON)).reason is EndReason.LOAD_STALLED


async def test_a_crash_while_loading_is_a_failure(runner: RunnerHarness) -> None:
    """There is no load outcome, only the end."""
    await runner.start()
    runner.begin_load(fail_load="crash")
    assert (await runner.ended(SOON)).reason is EndReason.DIED
    assert runner.listener.loaded is None


async def test_a_runner_without_hello_exceeds_the_start_timeout(make_runner: MakeRunner) -> None:
    """The process is stopped before it can send Hello."""
    runner = make_runner(start_seconds=0.3)
    runner.process.spawn()
    os.kill(runner.process.pid, signal.SIGSTOP)
    assert (await runner.ended(0.3 * 1.3 + SOON)).reason is EndReason.START_TIMEOUT


async def test_an_engine_that_cannot_be_imported_ends_the_runner() -> None:
    """It has an exit code of its own and comes before Hello."""
    listener = RecordingListener()
    process = RunnerProcess(replace(SPEC, engine="none", extra_engines={"none": "tests.no_such:engine"}), listener)
    process.spawn()
    await asyncio.wait_for(process.wait_ended(), LIMIT_SECONDS)
    assert listener.endings == [RunnerEnding(EndReason.DIED, "exit code 78")]
    assert process.resident_bytes == 0


async def test_invalid_frames_end_a_runner(runner: RunnerHarness) -> None:
    """Bytes after an invalid frame cannot be interpreted."""
    await runner.load()
    runner.send(["!garbage"])
    assert (await runner.ended(SOON)).reason is EndReason.GARBAGE


async def test_an_incomplete_frame_ends_a_runner(make_runner: MakeRunner) -> None:
    """Heartbeats go on, but the rest of the frame does not come."""
    runner = make_runner(**BEATING)
    await runner.load()
    runner.process.set_serving(True)
    runner.send(["!half"])
    ending = await runner.ended(1.0 * 1.5 + SOON)
    assert (ending.reason, ending.detail) == (EndReason.GARBAGE, "an incomplete frame")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_signals_of_the_terminal_do_not_end_a_runner(runner: RunnerHarness, number: signal.Signals) -> None:
    """Ctrl-C reaches the whole process group; a runner goes on until the server ends it."""
    await runner.load()
    os.kill(runner.process.pid, number)
    [outcome] = await runner.ask(["a"])
    assert outcome.WhichOneof("outcome") == "entailment"
    assert os.getpgid(runner.process.pid) == os.getpgid(0)


async def test_an_invalid_frame_of_the_server_ends_the_runner(runner: RunnerHarness) -> None:
    """The runner exits with PROTOCOL_ERROR."""
    await runner.load()
    runner.process._data.send([b"\xff" * 64])  # noqa: SLF001  no other way to say nonsense
    assert await runner.ended(SOON) == RunnerEnding(EndReason.DIED, "exit code 65")


HELLO = runner_pb2.RunnerReply(hello=runner_pb2.Hello(devices=["cpu"]))


class Undead:
    """A process that ignores SIGKILL, as one with a thread in a driver's call does."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        *,
        keeps_sockets: bool = True,
        is_forked: bool = False,
        end_seconds: float = 0.0,
        starter: RunnerStarter | None = None,
    ) -> None:
        monkeypatch.setattr(runner_process, "KILL_SECONDS", 0.0)
        monkeypatch.setattr(runner_process, "END_SECONDS", end_seconds)
        monkeypatch.setattr(Child, "kill", lambda _: None)
        self.listener = RecordingListener()
        self.child: subprocess.Popen[bytes] | ForkedProcess = ForkedProcess()
        self._keeps_sockets, self._is_forked = keeps_sockets, is_forked
        monkeypatch.setattr("inference.server.runner_client.start.start_runner", self._start)
        self.process = RunnerProcess(SPEC, self.listener, self._start if starter is None else starter.take)
        self.process.spawn()

    def _start(self, _: RunnerSpec) -> StartedRunner:
        (data, their_data), (control, their_control) = socket.socketpair(), socket.socketpair()
        memory = create_memory()
        record = CallRecord(memory)
        record.write([7])
        ends = (their_data.fileno(), their_control.fileno()) if self._keeps_sockets else ()
        if not self._is_forked:
            self.child = subprocess.Popen(["/bin/sleep", "60"], pass_fds=ends)
        os.close(memory)
        their_control.sendall(b"".join(frame(HELLO.SerializeToString())))
        their_data.close()
        their_control.close()
        return StartedRunner(self.child, data, control, record)

    def end_at_last(self) -> None:
        """The driver returns; wait until the process has ended, and can be reaped."""
        os.kill(self.child.pid, signal.SIGKILL)
        os.waitid(os.P_PID, self.child.pid, os.WEXITED | os.WNOWAIT)


@pytest.mark.fault("K8")
@pytest.mark.parametrize(
    ("keeps_sockets", "reason", "detail"),
    [
        (True, EndReason.KILLED, "over its time; not ended 0 s after SIGKILL"),
        (False, EndReason.DIED, "not ended 0 s after SIGKILL"),
    ],
)
async def test_a_runner_that_no_signal_ends_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
    keeps_sockets: bool,  # noqa: FBT001
    reason: EndReason,
    detail: str,
) -> None:
    """Its requests are run again elsewhere. Once it does end it is reaped, and nothing is reported twice or left."""
    before = _list_descriptors()
    undead = Undead(monkeypatch, keeps_sockets=keeps_sockets)
    if keeps_sockets:
        undead.process.kill("over its time")
        undead.process.kill("again")
    async with asyncio.timeout(LIMIT_SECONDS):
        await undead.process.wait_ended()
    is_running = undead.child.returncode is None
    undead.process.kill("the test is over")
    undead.end_at_last()
    await settle()

    assert (is_running, undead.child.returncode) == (True, -signal.SIGKILL)
    assert undead.listener.endings == [RunnerEnding(reason, detail, computing=(7,))]
    assert _list_descriptors() == before


@pytest.mark.fault("K8")
@pytest.mark.parametrize(
    ("act", "given_up", "ending"),
    [
        (lambda process: process.retire(), 8.1, (EndReason.RETIRED, "")),
        (lambda process: process.kill("emptied", is_retiring=True), 8.1, (EndReason.KILLED, "emptied; ")),
        (lambda _: None, 2.1, (EndReason.DIED, "")),
    ],
    ids=["retired", "killed while it loads", "ended by itself"],
)
async def test_a_runner_that_retires_and_ends_slowly_is_given_up_later(
    monkeypatch: pytest.MonkeyPatch,
    act: Callable[[RunnerProcess], None],
    given_up: float,
    ending: tuple[EndReason, str],
) -> None:
    """Its memory is freed after its sockets are closed, and the next load needs it; callers wait for no such one.

    They wait for one that ends by itself: it is not ready from then on, although no heartbeat is missed.
    """
    later, now = 0.0, asyncio.get_running_loop().time()
    monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: now + later)
    undead = Undead(monkeypatch, keeps_sockets=False, end_seconds=8.1)
    monkeypatch.setattr(runner_process, "KILL_SECONDS", 2.1)
    are_silent = [undead.process.is_silent]
    act(undead.process)
    reported: list[tuple[float, RunnerEnding]] = []
    for tick in range(40):
        later = tick * 0.25
        await settle()
        are_silent.append(undead.process.is_silent)
        reported += [(later, ending) for ending in undead.listener.endings[len(reported) :]]
    undead.end_at_last()
    await settle()

    told = RunnerEnding(ending[0], f"{ending[1]}not ended {given_up} s after SIGKILL", computing=(7,))
    assert [(round(at - given_up, 2), one) for at, one in reported] == [(0.15, told)]
    assert are_silent == [False] + 40 * [True]
    assert SPEC.timeouts.tick_seconds == 0.25  # a check for heartbeats at each


@pytest.mark.fault("K8")
async def test_no_runner_is_started_while_two_have_not_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver of a failed GPU would hold it, too: one after another would take the machine's memory."""
    before, starter = _list_descriptors(), RunnerStarter()
    undead = [Undead(monkeypatch, starter=starter) for _ in range(2)]
    await _give_up(undead)
    held = _list_descriptors()
    with pytest.raises(OSError, match="2 runners do not end after SIGKILL"):
        Undead(monkeypatch, starter=starter)
    other = starter.take(SPEC, "another model")
    is_alone = other.process.poll() is not None
    other.discard()
    other.process.wait()
    are_unchanged = _list_descriptors() == held
    undead[0].end_at_last()
    await settle()
    undead.append(Undead(monkeypatch, starter=starter))
    is_running = undead[2].child.poll() is None
    await _give_up(undead[2:])
    for each in undead[1:]:
        each.end_at_last()
    await settle()

    assert (are_unchanged, is_running, is_alone) == (True, True, False)
    assert _list_descriptors() == before


async def test_a_process_is_given_up_before_retire_slot_is() -> None:
    """The command's answer says then that the slot is free."""
    assert SPEC.retire_seconds + runner_process.END_SECONDS < servicer._RETIRE_LIMIT_SECONDS  # noqa: SLF001


async def test_a_runner_that_has_no_process_id_yet_is_not_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGKILL was not sent yet; the fork server has a time limit of its own."""
    undead = Undead(monkeypatch, is_forked=True)
    undead.process.kill("over its time")
    for _ in range(20):
        await asyncio.sleep(0)
    endings = list(undead.listener.endings)
    assert isinstance(undead.child, ForkedProcess)
    undead.child.fail("it does not answer")
    async with asyncio.timeout(LIMIT_SECONDS):
        await undead.process.wait_ended()

    assert endings == []
    assert undead.listener.endings == [RunnerEnding(EndReason.KILLED, "over its time", computing=(7,))]


async def test_a_listener_s_bug_costs_no_later_message(runner: RunnerHarness) -> None:
    """A listener may raise on one message; the next one is delivered, and the error is reported."""
    reported: list[str] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: reported.append(repr(context.get("exception"))))
    await runner.load(max_call_rows=1)
    runner.listener.bug = ZeroDivisionError()
    runner.send(["a"])
    await runner.ask(["b"])
    assert reported == ["ZeroDivisionError()"]


async def test_a_runner_ends_with_its_server(tmp_path: Path) -> None:
    """SIGKILL of the server leaves no process, not even one that holds the interpreter in a device call."""
    pid = await _orphan(tmp_path, "await runner.load(); runner.send(['!gil 60'])")
    assert await _is_gone(pid)


@pytest.mark.parametrize("state_code", ["runner.process.spawn()", "await runner.start()", "await runner.load()"])
async def test_an_idle_runner_ends_with_its_server(tmp_path: Path, state_code: str) -> None:
    """The same for one that is importing, has no model, or is idle."""
    pid = await _orphan(tmp_path, state_code)
    assert await _is_gone(pid)


async def test_a_runner_whose_server_has_ended_exits_at_once() -> None:
    """The parent-death signal would come too late, so the runner checks its parent's id."""
    arguments = ["--data-fd=0", "--control-fd=0", "--call-record-fd=0", "--parent=0", f"--engine={SPEC.engine}"]
    command = [sys.executable, "-m", "inference.runner.main", *arguments]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = await asyncio.create_subprocess_exec(*command, env=environment)
    assert await asyncio.wait_for(process.wait(), LIMIT_SECONDS) == 69


async def _give_up(runners: Sequence[Undead]) -> None:
    for runner in runners:
        runner.process.kill("over its time")
        async with asyncio.timeout(LIMIT_SECONDS):
            await runner.process.wait_ended()


async def _call_in_slices(runner: RunnerHarness, statement: str) -> float:
    """Let a call compute for a tenth of the time; returns the seconds that it takes."""
    [item_id] = runner.send([statement])
    began = time.monotonic()
    while item_id not in runner.listener.outcomes:
        os.kill(runner.process.pid, signal.SIGSTOP)
        await asyncio.sleep(0.045)
        os.kill(runner.process.pid, signal.SIGCONT)
        await asyncio.sleep(0.005)
    return time.monotonic() - began


def _list_descriptors() -> set[Path]:
    return set(Path("/proc/self/fd").iterdir())


async def _orphan(state: Path, then: str) -> int:
    """Spawn a runner from a parent process, kill the parent and return the runner's process id."""
    code = f"""
        import asyncio, pathlib, sys
        from tests.runner.harness import RunnerHarness
        async def main():
            runner = RunnerHarness(pathlib.Path({str(state)!r}))
            {then}
            print(runner.process.pid, flush=True)
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


async def _is_gone(pid: int) -> bool:
    """Whether a process ends in time."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        return bool(await asyncio.to_thread(poll.poll, LIMIT_SECONDS * 1000))
    finally:
        os.close(descriptor)
