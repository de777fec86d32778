"""L8, I3: small pictures that would cost a naive decoder much, beside a caller with ordinary ones."""

import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc
import psutil

from dev.chaos.catalog import Findings, Task
from dev.harness.answers import Question
from dev.harness.numbers import ms
from dev.harness.process import ROOT
from dev.harness.stack import Stack
from dev.parity.pictures import FOLDER
from dev.pictures.bombs import make_bombs

COUNT, SIDE = 500, 480
MAX_ADDED_SECONDS, MAX_ADDED_MIB = 0.1, 300.0
TRIES = 4  # of a bomb beside which an answer was late: this machine has other things to do
PAUSE_SECONDS, SAMPLE_SECONDS, ALONE_SECONDS = 0.01, 0.01, 10.0
DEADLINE_SECONDS = 30.0
_CASES = ROOT / "tests" / "pictures" / "cases"
_REFUSED = (grpc.StatusCode.INVALID_ARGUMENT,)


def run(task: Task) -> Findings:
    """Send one bomb after the other; each is judged by what it cost the other caller, and by the memory."""
    count = task.count or COUNT
    findings = Findings(count=count)
    outcomes: Counter[str] = Counter()
    worst = _Worst()
    with Stack(task.folder, script={"picture_side": SIDE}) as stack, _Neighbour(stack) as neighbour:
        runner = stack.control.active_pid()
        time.sleep(ALONE_SECONDS)
        alone = neighbour.slowest(0.0)
        for number, (name, content) in enumerate(_all_bombs(task.seed, count)):
            cost = _judge(stack, neighbour, runner, content, alone, outcomes)
            worst.add(name, cost)
            if number % 50 == 0:
                task.say(f"{number} of {count}: {worst.added_seconds:.3f} s, {worst.added_mib:.0f} MiB at most")
        findings.expect(so=stack.control.active_pid() == runner, otherwise="the runner has ended")
        findings.troubles += neighbour.failures[:3]
        answered = len(neighbour.answers)
    findings.expect(
        so=worst.added_seconds <= MAX_ADDED_SECONDS,
        otherwise=f"{worst.slowest}: another caller waited {ms(worst.added_seconds)} ms longer",
    )
    findings.expect(
        so=worst.added_mib <= MAX_ADDED_MIB, otherwise=f"{worst.largest}: {worst.added_mib:.0f} MiB more memory"
    )
    for outcome in outcomes:
        findings.expect(so=outcome in ("OK", "INVALID_ARGUMENT"), otherwise=f"{outcomes[outcome]} bombs: {outcome}")
    findings.numbers = {
        "answered": outcomes["OK"],
        "refused": outcomes["INVALID_ARGUMENT"],
        "neighbour_answers": answered,
        "neighbour_slowest_alone_ms": ms(alone),
        "neighbour_added_ms": ms(worst.added_seconds),
        "slowest_bomb": worst.slowest,
        "added_mib": round(worst.added_mib),
        "largest_bomb": worst.largest,
    }
    return findings


@dataclass(frozen=True, slots=True)
class _Cost:
    """What one bomb cost others."""

    added_seconds: float
    added_mib: float


@dataclass(slots=True)
class _Worst:
    """The highest costs."""

    added_seconds: float = 0.0
    slowest: str = ""
    added_mib: float = 0.0
    largest: str = ""

    def add(self, name: str, cost: _Cost) -> None:
        """Compare with one more."""
        if cost.added_seconds > self.added_seconds:
            self.added_seconds, self.slowest = cost.added_seconds, name
        if cost.added_mib > self.added_mib:
            self.added_mib, self.largest = cost.added_mib, name


def _all_bombs(seed: int, count: int) -> Iterator[tuple[str, bytes]]:
    for path in sorted(_CASES.iterdir()):
        yield path.name, path.read_bytes()
    yield from make_bombs(seed, count)


def _judge(
    stack: Stack, neighbour: "_Neighbour", runner: int, content: bytes, alone: float, outcomes: Counter[str]
) -> _Cost:
    """Send a bomb; again if an answer to the other caller was late, and count the best try."""
    costs = []
    for _ in range(TRIES):
        begun = time.monotonic()
        with _Memory(runner) as memory:
            outcome = _send(stack, content)
            time.sleep(3 * PAUSE_SECONDS)
        costs.append(_Cost(max(0.0, neighbour.slowest(begun) - alone), memory.added_mib))
        if costs[-1].added_seconds <= MAX_ADDED_SECONDS:
            break
    outcomes[outcome] += 1
    return _Cost(min(cost.added_seconds for cost in costs), max(cost.added_mib for cost in costs))


def _send(stack: Stack, content: bytes) -> str:
    try:
        stack.predict(Question(content, ("a dog",)), timeout=DEADLINE_SECONDS)
    except grpc.RpcError as error:
        return str(error.code().name)
    return "OK"


@dataclass(slots=True)
class _Neighbour:
    """A caller with an ordinary picture, on a connection and a thread of its own."""

    stack: Stack
    answers: list[tuple[float, float]] = field(default_factory=list)  # when it was sent, seconds
    failures: list[str] = field(default_factory=list)
    _is_over: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None
    _sent_at: float = 0.0  # of the call that runs; 0: none

    def __enter__(self) -> Self:
        """Begin."""
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End after the present call."""
        self._is_over.set()
        if self._thread is not None:
            self._thread.join(DEADLINE_SECONDS)

    def slowest(self, since: float) -> float:
        """Seconds of the slowest call that was under way at or after a time of time.monotonic()."""
        now, sent_at = time.monotonic(), self._sent_at
        ended = [seconds for sent, seconds in self.answers if sent + seconds >= since]
        return max([*ended, now - sent_at if sent_at else 0.0])

    def _run(self) -> None:
        asked = Question((FOLDER / "wide.jpg").read_bytes(), ("a dog",))
        while not self._is_over.wait(PAUSE_SECONDS):
            self._sent_at = time.monotonic()
            try:
                self.stack.predict(asked, timeout=DEADLINE_SECONDS)
            except grpc.RpcError as error:
                self.failures.append(f"the other caller: {error}")
            self.answers.append((self._sent_at, time.monotonic() - self._sent_at))
            self._sent_at = 0.0


@dataclass(slots=True)
class _Memory:
    """The memory of a runner and its decoders while the `with` lasts."""

    runner: int
    added_mib: float = 0.0
    _before: float = 0.0
    _is_over: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        """Begin to sample."""
        self._before = self._sum_mib()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take the last sample."""
        self._is_over.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while not self._is_over.wait(SAMPLE_SECONDS):
            self.added_mib = max(self.added_mib, self._sum_mib() - self._before)

    def _sum_mib(self) -> float:
        try:
            children = psutil.Process(self.runner).children()
        except psutil.Error:
            return 0.0
        return sum(_resident_mib(pid) for pid in (self.runner, *(child.pid for child in children)))


def _resident_mib(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()
    except (OSError, IndexError):
        return 0.0
    return (int(fields[1]) - int(fields[2])) * 4096 / (1 << 20)  # without shared files
