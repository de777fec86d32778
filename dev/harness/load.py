"""Callers, without retries unless their channels have them: each attempt is counted, each answer compared."""

import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from types import TracebackType
from typing import Any, Protocol, Self

import grpc

from dev.harness.answers import Scores, scores_of, spans_of
from dev.harness.control import RECONNECT_OPTIONS
from dev.harness.waiting import eventually
from hotslot.address.v1.address_pb2_grpc import AddressTaggingServiceStub
from hotslot.entailment.v1.entailment_pb2_grpc import EntailmentServiceStub

DEADLINE_SECONDS = 10.0
PAUSE_SECONDS = 0.004  # of one client between two calls: leaves the machine room for the server
Expected = Mapping[tuple[str, Any], Any]  # answers by revision and question


class AnyQuestion(Protocol):
    """A question of any service."""

    def request(self, model: str = "") -> Any:  # noqa: ANN401  a message of the service
        """The question as a protobuf request."""
        ...


@dataclass(frozen=True, slots=True)
class ServiceCalls:
    """How a service is called, and what of its answers is compared."""

    make_stub: Callable[[grpc.Channel], Any]
    read_answer: Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class Answered:
    """One answer."""

    at: float  # time.monotonic() when it came
    revision: str  # that gave it, as the answer says
    seconds: float
    is_right: bool
    phase: str = ""  # of the load when it was asked


@dataclass(frozen=True, slots=True)
class Refused:
    """One call without an answer."""

    at: float  # time.monotonic()
    code: str
    sentence: str


@dataclass(slots=True)
class LoadReport:
    """The callers' results."""

    attempts: int = 0
    failed: list[str] = field(default_factory=list)  # code and message
    wrong: list[str] = field(default_factory=list)  # answers that are not their own revision's
    revisions: Counter[str] = field(default_factory=Counter)  # answers by revision
    longest_gap: float = 0.0  # seconds without any answer
    slowest: float = 0.0  # seconds of one call
    answers: list[Answered] = field(default_factory=list)  # in the order of time
    refusals: list[Refused] = field(default_factory=list)

    @property
    def answered(self) -> int:
        """Calls with the right answer."""
        return sum(self.revisions.values()) - len(self.wrong)

    def first_of(self, revision: str, since: float = 0.0) -> float | None:
        """When a revision first answered."""
        return next((one.at for one in self.answers if one.revision == revision and one.at >= since), None)

    def last_of(self, revision: str) -> float | None:
        """When a revision last answered."""
        return next((one.at for one in reversed(self.answers) if one.revision == revision), None)

    def gap_between(self, since: float, until: float) -> float:
        """Longest time without any answer, seconds; of those that ended after `since` and began before `until`."""
        pairs = pairwise(one.at for one in self.answers)
        return max((after - before for before, after in pairs if after >= since and before <= until), default=0.0)

    def p99(self, phases: Iterable[str]) -> float:
        """Seconds within which 99 of 100 answers of some phases came; 0 if there are none."""
        chosen = set(phases)
        took = sorted(one.seconds for one in self.answers if one.phase in chosen)
        return took[min(len(took) - 1, int(len(took) * 0.99))] if took else 0.0


class Load:
    """Clients that call in a loop while the `with` lasts.

    Args:
        address: of the server.
        questions: what they ask, in turn; may be replaced meanwhile.
        expected: the right answers; may grow meanwhile.
        clients: each with a connection of its own.
        deadline: of a call, seconds.
        pace: pause of one client between two calls, seconds.
        tolerance: of a probability; a real engine's last bits depend on the batch.
        options: of the clients' channels.
    """

    calls = ServiceCalls(EntailmentServiceStub, scores_of)

    def __init__(
        self,
        address: str,
        questions: Sequence[AnyQuestion],
        expected: Expected,
        clients: int = 16,
        deadline: float = DEADLINE_SECONDS,
        pace: float = PAUSE_SECONDS,
        tolerance: float = 0.0,
        options: Sequence[tuple[str, Any]] = RECONNECT_OPTIONS,
    ) -> None:
        self.questions = tuple(questions)
        self.phase = ""  # noted with each answer
        self.pace = pace  # may be changed meanwhile
        self._expected = expected
        self._address = address
        self.open_channel: Callable[[str], grpc.Channel] = partial(grpc.insecure_channel, options=options)
        self._deadline = deadline
        self._tolerance = tolerance
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
        """Begin no further calls, and wait for those that are in flight."""
        self._stop.set()
        for thread in self._threads:
            thread.join(2 * self._deadline)
            if thread.is_alive():
                raise AssertionError("a call did not end at its deadline")

    @property
    def answers(self) -> int:
        """Answers so far."""
        return sum(len(row.answers) for row in self._rows)

    def wait_answers(self, count: int) -> None:
        """Wait for `count` more answers."""
        goal = self.answers + count
        eventually(lambda: self.answers >= goal, what=f"{count} more answers")

    def report(self) -> LoadReport:
        """The results so far; complete once stopped."""
        report = LoadReport()
        for row in self._rows:
            answers = list(row.answers)
            report.attempts += row.attempts
            report.refusals += row.failed
            report.answers += answers
            report.revisions.update(one.revision for one in answers)
            report.wrong += [
                f"client {row.number} at {one.at:.3f}: not the answer of {one.revision!r}"
                for one in answers
                if not one.is_right
            ]
        report.answers.sort(key=lambda one: one.at)
        report.refusals.sort(key=lambda one: one.at)
        report.failed = [one.sentence for one in report.refusals]
        report.slowest = max((one.seconds for one in report.answers), default=0.0)
        report.longest_gap = report.gap_between(0.0, math.inf)
        if self._stop.is_set() and report.attempts != len(report.answers) + len(report.failed):
            raise AssertionError("an attempt has no outcome")
        return report

    def _run(self, row: "_Client") -> None:
        with self.open_channel(self._address) as channel:
            stub = self.calls.make_stub(channel)
            turn = row.number
            while not self._stop.wait(self.pace):
                turn += 1
                questions = self.questions
                self._ask(stub, row, questions[turn % len(questions)])

    def _ask(self, stub: Any, row: "_Client", asked: AnyQuestion) -> None:  # noqa: ANN401  of any service
        row.attempts += 1
        phase, begun = self.phase, time.monotonic()
        try:
            response = stub.Predict(asked.request(), timeout=self._deadline)
        except grpc.RpcError as error:
            call: Any = error
            now, code = time.monotonic(), call.code().name
            row.failed.append(Refused(now, code, f"{code} after {now - begun:.3f} s: {call.details()}"))
            return
        at = time.monotonic()
        revision = response.served_by.revision
        is_right = self._is_right(self.calls.read_answer(response), self._expected.get((revision, asked)))
        row.answers.append(Answered(at, revision, at - begun, is_right, phase))

    def _is_right(self, answer: object, expected: Scores | None) -> bool:
        if expected is None or not self._tolerance or not isinstance(answer, tuple):
            return answer == expected
        pairs = zip(answer, expected, strict=True)
        return all(abs(a - b) <= self._tolerance for one, other in pairs for a, b in zip(one, other, strict=True))


class AddressLoad(Load):
    """Clients that have addresses cut into their parts; `tolerance` is 0."""

    calls = ServiceCalls(AddressTaggingServiceStub, spans_of)


@dataclass(slots=True, eq=False)
class _Client:
    """The results of one client."""

    number: int
    attempts: int = 0
    failed: list[Refused] = field(default_factory=list)
    answers: list[Answered] = field(default_factory=list)
