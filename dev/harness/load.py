"""Callers under whom things happen: no retries, 10 s deadlines, every attempt counted, every answer checked."""

import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise
from types import TracebackType
from typing import Any, Protocol, Self

import grpc

from dev.harness.answers import Answers, Question, question, scores_of
from dev.harness.control import RECONNECT_OPTIONS
from dev.harness.waiting import eventually
from hotslot.entailment.v1.entailment_pb2_grpc import EntailmentServiceStub

DEADLINE_SECONDS = 10.0
PACE_SECONDS = 0.004  # between two calls of one client: leaves the machine room for the server


class Called(Protocol):
    """Whom callers call."""

    address: str
    answers: Answers  # what is right


@dataclass(frozen=True, slots=True)
class Answered:
    """One answer."""

    at: float  # time.monotonic()
    revision: str  # that gave it, by its own word
    seconds: float
    is_right: bool


@dataclass(frozen=True, slots=True)
class Refused:
    """One call without an answer."""

    at: float  # time.monotonic()
    code: str
    sentence: str


@dataclass(slots=True)
class LoadReport:
    """What the callers saw."""

    attempts: int = 0
    failed: list[str] = field(default_factory=list)  # code and message
    wrong: list[str] = field(default_factory=list)  # answers that are not their own revision's
    revisions: Counter[str] = field(default_factory=Counter)
    longest_gap: float = 0.0  # seconds without any answer
    slowest: float = 0.0  # seconds of one call
    answers: list[Answered] = field(default_factory=list)  # in the order of time
    refusals: list[Refused] = field(default_factory=list)

    @property
    def answered(self) -> int:
        """Calls with the right answer."""
        return sum(self.revisions.values()) - len(self.wrong)


class Load:
    """Clients that call in a circle while the `with` lasts.

    Args:
        stack: whom they call.
        revisions: whose answers may come; computed beforehand by the bare engine.
        clients: how many, each with a connection of its own.
        questions: what they ask, in turn.
        deadline: seconds.
        pace: of one client between two calls, seconds.
    """

    def __init__(
        self,
        stack: Called,
        revisions: tuple[str, ...] = ("r1",),
        clients: int = 16,
        questions: tuple[Question, ...] = (),
        deadline: float = DEADLINE_SECONDS,
        pace: float = PACE_SECONDS,
    ) -> None:
        self._questions = questions or tuple(_default_questions())
        self._expected = stack.answers.compute(self._questions, revisions)
        self._address = stack.address
        self._deadline = deadline
        self._pace = pace
        self._stop = threading.Event()
        self._rows: list[_Client] = []
        self._threads: list[threading.Thread] = []
        for number in range(clients):
            row = _Client(number)
            self._rows.append(row)
            self._threads.append(threading.Thread(target=self._run, args=(row,), name=f"caller-{number}", daemon=True))

    def __enter__(self) -> Self:
        """Start; returns once every client has had an answer."""
        for thread in self._threads:
            thread.start()
        eventually(lambda: all(row.answers or row.failed for row in self._rows), what="every caller has an answer")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let every client finish its call."""
        self.stop()

    def stop(self) -> None:
        """No further calls; those that are under way are finished."""
        self._stop.set()
        for thread in self._threads:
            thread.join(2 * self._deadline)
            assert not thread.is_alive(), "a call did not end at its deadline"

    @property
    def answers(self) -> int:
        """Answers so far."""
        return sum(len(row.answers) for row in self._rows)

    def wait_answers(self, count: int) -> None:
        """Wait until so many more answers have come."""
        goal = self.answers + count
        eventually(lambda: self.answers >= goal, what=f"{count} more answers")

    def report(self) -> LoadReport:
        """What was seen, once stopped."""
        report = LoadReport()
        for row in self._rows:
            report.attempts += row.attempts
            report.refusals += row.failed
            report.failed += [one.sentence for one in row.failed]
            report.answers += row.answers
            report.revisions.update(one.revision for one in row.answers)
            report.wrong += [
                f"client {row.number} at {one.at:.3f}: not the answer of {one.revision!r}"
                for one in row.answers
                if not one.is_right
            ]
        report.answers.sort(key=lambda one: one.at)
        report.refusals.sort(key=lambda one: one.at)
        report.slowest = max((one.seconds for one in report.answers), default=0.0)
        pairs = pairwise(report.answers)
        report.longest_gap = max((after.at - before.at for before, after in pairs), default=0.0)
        assert report.attempts == len(report.answers) + len(report.failed), "an attempt has no outcome"
        return report

    def _run(self, row: "_Client") -> None:
        with grpc.insecure_channel(self._address, options=RECONNECT_OPTIONS) as channel:
            stub = EntailmentServiceStub(channel)
            turn = row.number
            while not self._stop.wait(self._pace):
                turn += 1
                self._ask(stub, row, self._questions[turn % len(self._questions)])

    def _ask(self, stub: EntailmentServiceStub, row: "_Client", asked: Question) -> None:
        row.attempts += 1
        begun = time.monotonic()
        try:
            response = stub.Predict(asked.request(), timeout=self._deadline)
        except grpc.RpcError as error:
            call: Any = error
            now, code = time.monotonic(), call.code().name
            row.failed.append(Refused(now, code, f"{code} after {now - begun:.3f} s: {call.details()}"))
            return
        at = time.monotonic()
        revision = response.served_by.revision
        is_right = scores_of(response) == self._expected.get((revision, asked))
        row.answers.append(Answered(at, revision, at - begun, is_right))


@dataclass(slots=True, eq=False)
class _Client:
    """What one client has seen."""

    number: int
    attempts: int = 0
    failed: list[Refused] = field(default_factory=list)
    answers: list[Answered] = field(default_factory=list)


def _default_questions() -> list[Question]:
    words = [f"statement {number}" for number in range(4)]
    return [question(*words[: 1 + number % 4]) for number in range(64)]
