"""The server's side of the fork server: starts and watches it, and asks it for runners. Imports little, see `start`."""

import asyncio
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from common.clock import Clock, SystemClock
from common.exit_codes import ExitCode
from inference.fork_wire import ForkAnswer, ForkRequest, open_connection, receive_answer, send_request

TICK_SECONDS = 1.0
PING_SECONDS = 5.0  # between two questions whether it answers
ANSWER_SECONDS = 5.0  # for an answer; a fork takes 0.01 s, and 0.1 s on a busy machine
STEADY_SECONDS = 60.0  # of answering, after which earlier failures no longer count
REAP_SECONDS = 2.0  # from SIGKILL until the server's end no longer waits for the end of a process
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 1.0, 60.0

Report = Callable[..., None]  # event, then fields


def pause_seconds(failures_in_row: int) -> float:
    """Seconds before the fork server is started again: none after the first failure, then doubling."""
    if failures_in_row <= 1:
        return 0.0
    return min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2.0 ** min(failures_in_row - 2, 32))


class ForkedProcess:
    """A runner that the fork server was asked for; a child of this process once that has answered. Loop thread only."""

    def __init__(self) -> None:
        self.pid = 0  # until it is known
        self.returncode: int | None = None
        self.failure = ""  # why there is none
        self._is_unwanted = False
        self._on_answer: Callable[[], None] | None = None

    @property
    def is_answered(self) -> bool:
        """Whether the process id or the failure is known."""
        return self.pid != 0 or self.returncode is not None

    def call_when_answered(self, call: Callable[[], None]) -> None:
        """Call this once, when the process id or the failure is known; not before this method returns."""
        self._on_answer = call
        if self.is_answered:
            asyncio.get_running_loop().call_soon(self._notify)

    def started(self, pid: int) -> None:
        """Set the process id."""
        self.pid = pid
        if self._is_unwanted:
            self.kill()
        self._notify()

    def fail(self, why: str) -> None:
        """There will be no process."""
        self.failure, self.returncode = why, ExitCode.INTERNAL_ERROR
        self._notify()

    def poll(self) -> int | None:
        """The exit code, or minus the signal; None while it runs, or is not there yet."""
        if self.returncode is None and self.pid:
            self._reap(os.WNOHANG)
        return self.returncode

    def kill(self) -> None:
        """Send SIGKILL, now or when there is a process."""
        self._is_unwanted = True
        if self.pid and self.returncode is None:
            os.kill(self.pid, signal.SIGKILL)  # it is not reaped, so that no other process has its id

    def wait(self) -> int:
        """The exit code, after the end; that of a failure if there is no process yet."""
        if self.returncode is None and self.pid:
            self._reap(0)
        return ExitCode.INTERNAL_ERROR if self.returncode is None else self.returncode

    def _reap(self, options: int) -> None:
        try:
            ended = os.waitid(os.P_PID, self.pid, os.WEXITED | options)
        except ChildProcessError:
            self.returncode = ExitCode.INTERNAL_ERROR
            return
        if ended is not None:
            self.returncode = ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status

    def _notify(self) -> None:
        call, self._on_answer = self._on_answer, None
        if call is not None:
            call()


def reap_killed(processes: Sequence[subprocess.Popen[bytes] | ForkedProcess]) -> None:
    """Wait until killed processes have ended, and reap them; not for long, since a driver may hold one."""
    clock, pause = SystemClock(), threading.Event()
    until = clock.monotonic() + REAP_SECONDS
    while processes := [process for process in processes if process.poll() is None]:
        if clock.monotonic() >= until:
            return
        pause.wait(0.001)


@dataclass(slots=True)
class _Question:
    """A request without an answer yet."""

    asked_at: float
    process: ForkedProcess | None  # None: only whether it answers


class ForkServer:
    """The process that forks runners. Started with `start`; watched, and replaced when it ends, from `attach` on.

    Args:
        command: its command line, from engines and the descriptor of its connection.
        start_seconds: for its imports.
    """

    def __init__(
        self, command: Callable[[Sequence[str], int], Sequence[str]], start_seconds: float, clock: Clock
    ) -> None:
        self._command = command
        self._start_seconds = start_seconds
        self._clock = clock
        self._environment: Mapping[str, str] = {}
        self._engines: list[str] = []
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: socket.socket | None = None
        self._questions: dict[int, _Question] = {}
        self._number = 0
        self._began = self._asked_at = 0.0
        self._is_ready = False
        self.failures = 0  # how often it could not be started, ended or was killed, since the server's start
        self._failures_in_row = 0
        self._start_at: float | None = None  # a start after a pause
        self._is_given_up = False  # its imports fail, and would again
        self._killed: list[subprocess.Popen[bytes]] = []  # until they are reaped
        self._loop: asyncio.AbstractEventLoop | None = None
        self._unreported: list[tuple[str, dict[str, Any]]] = []  # failures before `attach`
        self._warn: Report = lambda event, **fields: self._unreported.append((event, fields))
        self._report = self._warn

    @property
    def pid(self) -> int:
        """Its process id; 0 if there is none."""
        process = self._process  # read once: metrics are read on another thread
        return 0 if process is None else process.pid

    @property
    def engines(self) -> Sequence[str]:
        """The engines that it was started with."""
        return self._engines

    @property
    def environment(self) -> Mapping[str, str]:
        """The environment that it was started with."""
        return self._environment

    @property
    def can_fork(self) -> bool:
        """Whether it answers, or will as soon as its first imports are done."""
        return self._connection is not None and (self._is_ready or not self._failures_in_row)

    @property
    def is_ready(self) -> bool:
        """Whether its imports are done and it answers."""
        return self._is_ready

    @property
    def is_watched(self) -> bool:
        """Whether it runs, will be started again, or cannot work in this environment."""
        return self._connection is not None or self._start_at is not None or self._is_given_up

    @property
    def is_asked(self) -> bool:
        """Whether a runner was asked for whose process id is not known yet."""
        return any(question.process is not None for question in self._questions.values())

    def start(self, engines: Sequence[str], environment: Mapping[str, str]) -> None:
        """Start the process; one that exists is ended first. If the system cannot, it is started again later."""
        self._end()
        self._engines, self._environment, self._is_given_up = list(engines), environment, False
        try:
            ours = self._launch()
        except OSError as error:
            self._fail(f"it cannot be started: {error!r}")
            return
        self._connection, self._is_ready, self._start_at = ours, False, None
        self._began = self._asked_at = self._clock.monotonic()
        if self._loop is not None:
            self._loop.add_reader(ours, self._receive)

    def give_up(self, environment: Mapping[str, str], why: str) -> None:
        """Report that it cannot work in this environment; it is not started."""
        self._environment, self._is_given_up = environment, True
        self._fail(why)

    def stop(self) -> None:
        """End the process until the next `start`."""
        self._end()
        self._start_at, self._is_given_up = None, False

    def attach(self, report: Report, warn: Report) -> None:
        """Receive answers, and watch the process, on the running loop until `close`; `warn` gets its failures."""
        self._report, self._warn = report, warn
        for event, fields in self._unreported:
            warn(event, **fields)
        self._unreported.clear()
        self._loop = asyncio.get_running_loop()
        if self._connection is not None:
            self._loop.add_reader(self._connection, self._receive)

    def warn(self, event: str, **fields: Any) -> None:  # noqa: ANN401
        """Report a failure, as soon as it can be reported."""
        self._warn(event, **fields)

    def fork(self, arguments: Sequence[str], descriptors: Sequence[int]) -> ForkedProcess:
        """Ask for a runner with these arguments, and copies of the descriptors.

        Raises:
            OSError: it cannot be asked.
        """
        process = ForkedProcess()
        self._ask(process, arguments, descriptors)
        return process

    def tick(self) -> None:
        """Kill it if it does not answer, ask whether it does, start it after a pause."""
        now = self._clock.monotonic()
        self._killed = [process for process in self._killed if process.poll() is None]
        if self._start_at is not None and now >= self._start_at:
            self.start(self._engines, self._environment)
        if self._connection is None:
            return
        if not self._is_ready:
            if now - self._began > self._start_seconds:
                self._fail("its imports did not end in time")
        elif any(now - question.asked_at > ANSWER_SECONDS for question in self._questions.values()):
            self._fail("it does not answer")
        else:
            if now - self._began > STEADY_SECONDS:
                self._failures_in_row = 0
            if not self._questions and now - self._asked_at >= PING_SECONDS:
                self._ping()

    def close(self) -> None:
        """End it; runners that it was asked for and that are not known yet count as failed."""
        self._end()
        self._start_at, self._loop = None, None
        reap_killed(self._killed)
        self._killed.clear()

    def _launch(self) -> socket.socket:
        ours, theirs = open_connection()
        with theirs:
            try:
                self._process = subprocess.Popen(  # this interpreter, arguments from settings
                    self._command(self._engines, theirs.fileno()),
                    stdin=subprocess.DEVNULL,
                    close_fds=True,
                    pass_fds=[theirs.fileno()],
                    env=dict(self._environment),
                )
            except OSError:
                ours.close()
                raise
        ours.setblocking(False)
        return ours

    def _ping(self) -> None:
        try:
            self._ask(None)
        except OSError as error:
            self._fail(repr(error))

    def _ask(
        self, process: ForkedProcess | None, arguments: Sequence[str] = (), descriptors: Sequence[int] = ()
    ) -> None:
        if self._connection is None:
            raise OSError("there is no fork server")
        number = self._number + 1
        send_request(self._connection, ForkRequest(number, tuple(arguments)), descriptors)
        self._number, self._asked_at = number, self._clock.monotonic()
        self._questions[number] = _Question(self._asked_at, process)

    def _receive(self) -> None:
        """Take the answers that have come."""
        while (connection := self._connection) is not None:
            try:
                answer = receive_answer(connection)
            except BlockingIOError:
                return
            except (OSError, ValueError) as error:
                self._fail(repr(error))
                return
            if answer is None:
                self._fail("it has ended")
                return
            self._take(answer)

    def _take(self, answer: ForkAnswer) -> None:
        if not answer.number:
            if answer.error:
                self._is_given_up = True
                self._fail(answer.error)
                return
            now = self._clock.monotonic()
            self._report("fork_server_ready", pid=self.pid, seconds=round(now - self._began, 3))
            self._is_ready, self._began = True, now
            for question in self._questions.values():
                question.asked_at = now
            return
        process = self._questions.pop(answer.number).process if answer.number in self._questions else None
        if process is not None and answer.pid:
            process.started(answer.pid)
        elif process is not None:
            process.fail(f"the fork server cannot fork: {answer.error}")

    def _fail(self, why: str) -> None:
        """End it, and start another one: at once after the first failure, else after a growing pause."""
        self.failures += 1
        self._failures_in_row += 1
        pause = pause_seconds(self._failures_in_row)
        self._start_at = None if self._is_given_up else self._clock.monotonic() + pause
        again = {} if self._is_given_up else {"pause_seconds": pause}
        self._warn("fork_server_failed", pid=self.pid, detail=why, failures=self._failures_in_row, **again)
        self._end()
        if self._start_at is not None and not pause and self._loop is not None:
            self.start(self._engines, self._environment)

    def _end(self) -> None:
        process, connection, questions = self._process, self._connection, self._questions
        self._process, self._connection, self._questions, self._is_ready = None, None, {}, False
        if connection is not None:
            if self._loop is not None:
                self._loop.remove_reader(connection)
            connection.close()
        if process is not None:
            process.kill()
            self._killed.append(process)
        for question in questions.values():
            if question.process is not None:
                question.process.fail("the fork server ended before it had started this process")
