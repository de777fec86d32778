"""Asking slots golden items and probes, in pieces, through the server's real path."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice
from typing import Protocol

from google.rpc import error_details_pb2, status_pb2

from common.clock import Clock
from common.engine_files import Task
from common.golden_set import MAX_ITEMS, GoldenBroken, canonicalize
from hotslot.address.v1 import address_pb2
from hotslot.control.v1 import control_pb2 as pb
from hotslot.entailment.v1 import entailment_pb2
from updater.core.golden import GateAnswers, GoldenAnswer, GoldenQuestion
from updater.core.ports import EffectFailed, GoldenFacts, ServerState
from updater.golden_files import GoldenFiles, Question, builtin_probes, questions_of

MAX_CHUNK_ITEMS = 16  # of a call; the server takes 64
MAX_CHUNK_BYTES = 24 << 20  # of pictures; the server takes 32 MiB
CALL_SECONDS = 120.0
STATE_SECONDS = 10.0
_LABELS = {
    entailment_pb2.LABEL_YES: "yes",
    entailment_pb2.LABEL_NO: "no",
    entailment_pb2.LABEL_MAYBE: "maybe",
}
_NOT_FINITE = "NOT_FINITE"


@dataclass(frozen=True, slots=True)
class Cost:
    """What the server has counted of one load's bundle."""

    seconds: float  # device time; CPU seconds on a CPU
    rows: int  # device rows


class Slots(Protocol):
    """What of the server is asked here."""

    def state(self, deadline_seconds: float) -> ServerState:
        """GetStatus, reduced."""
        ...

    def probe(self, request: pb.ProbeSlotRequest, deadline_seconds: float) -> pb.ProbeSlotResponse:
        """ProbeSlot."""
        ...

    def cost(self, load_id: str, deadline_seconds: float) -> Cost:
        """What has been computed on a slot so far."""
        ...


class Prober:
    """The golden set of one model, and how it is asked. From that model's thread only."""

    def __init__(
        self, files: GoldenFiles, slots: Slots, task: Task, clock: Clock, check_stop: Callable[[], None]
    ) -> None:
        """Ask nothing yet; `check_stop` is called between two pieces and raises to stop."""
        self._files = files
        self._slots = slots
        self._task = task
        self._clock = clock
        self._keep_on = check_stop
        self._asked_before = 0  # probes go through the whole set, not over its beginning again and again

    def facts(self) -> GoldenFacts:
        """What is there now."""
        return self._files.facts()

    def run(self, load_id: str, active_load_id: str, digest: str, deadline_seconds: float) -> GateAnswers:
        """Ask both slots all items of the set with this digest; empty digest: the built-in probes."""
        ends = self._clock.monotonic() + deadline_seconds
        questions, min_accuracy = self._questions(digest)
        before = {load: self._slots.cost(load, STATE_SECONDS) for load in (load_id, active_load_id) if load}
        asked: list[GoldenQuestion] = []
        try:
            for chunk in _chunks(questions):
                candidate = self._ask(load_id, chunk, ends)
                active = self._ask(active_load_id, chunk, ends) if active_load_id else None
                asked += _side_by_side(chunk, candidate, active)
        except GoldenBroken as error:
            raise EffectFailed.inconclusive("GOLDEN_CHANGED", str(error)) from error
        if digest and self.facts().digest != digest:
            raise _changed()
        state = self._slots.state(STATE_SECONDS)
        slot = state.loaded(load_id)
        if slot is None:
            message = "the candidate's slot was lost while it was proven"
            raise EffectFailed.transient("LOAD_UNKNOWN", message)
        return GateAnswers(
            golden_digest=digest,
            device=slot.device,
            precision=slot.precision,
            questions=tuple(asked),
            min_accuracy=min_accuracy,
            candidate_seconds=self._spent(load_id, before[load_id], len(asked)),
            active_seconds=self._spent(active_load_id, before[active_load_id], len(asked)) if active_load_id else 0.0,
            candidate_bytes=slot.resident_bytes,
        )

    def probe(self, load_id: str, items: int, deadline_seconds: float) -> tuple[int, int, int]:
        """Ask one slot some items; returns how many were answered, failed, and failed by NaN."""
        ends = self._clock.monotonic() + deadline_seconds
        answers: list[GoldenAnswer] = []
        for chunk in _chunks(self._some(max(1, items))):
            answers += (answer for row in self._ask(load_id, chunk, ends) for answer in row[:1])
        bad = [answer for answer in answers if answer.failure]
        return len(answers) - len(bad), len(bad), sum(answer.failure == _NOT_FINITE for answer in bad)

    def _some(self, count: int) -> Iterator[Question]:
        """The next items of the set, or of the built-in probes."""
        found = self._files.opened()
        start, self._asked_before = self._asked_before, self._asked_before + count
        if found is None:
            yield from islice(cycle(builtin_probes(self._task)), start % MAX_ITEMS, start % MAX_ITEMS + count)
            return
        items = found.golden.items
        chosen = tuple(items[(start + step) % len(items)] for step in range(count))
        try:
            yield from questions_of(found, replace(found.golden, items=chosen))
        except GoldenBroken as error:
            raise _changed() from error

    def _questions(self, digest: str) -> tuple[Iterable[Question], float]:
        if not digest:
            return builtin_probes(self._task), 0.0
        found = self._files.opened()
        if found is None or found.digest != digest:
            raise _changed()
        return questions_of(found, found.golden), max(self._files.min_accuracy, found.golden.min_accuracy)

    def _ask(self, load_id: str, chunk: Sequence[Question], ends: float) -> list[list[GoldenAnswer]]:
        """One answer a text, for each item of a piece."""
        self._keep_on()
        left = ends - self._clock.monotonic()
        if left <= 0:
            raise EffectFailed.inconclusive("DEADLINE", "asking took too long")
        response = self._slots.probe(_request(load_id, chunk, self._task), min(left, CALL_SECONDS))
        if len(response.outcomes) != len(chunk):
            raise EffectFailed.transient("ANSWERS_MISSING", "the server did not answer every item")
        return [_answers(outcome, question) for outcome, question in zip(response.outcomes, chunk, strict=True)]

    def _spent(self, load_id: str, before: Cost, questions: int) -> float:
        """Device time of our questions: the active slot's time is shared with live traffic, so it is taken a row."""
        after = self._slots.cost(load_id, STATE_SECONDS)
        rows = after.rows - before.rows
        return (after.seconds - before.seconds) / rows * questions if rows > 0 else 0.0


def _request(load_id: str, chunk: Sequence[Question], task: Task) -> pb.ProbeSlotRequest:
    request = pb.ProbeSlotRequest(load_id=load_id)
    for question in chunk:
        item = question.item
        if task is Task.ADDRESS_TAGGING:
            request.address.requests.add(addresses=item.addresses)
            continue
        asked = request.entailment.requests.add(statements=item.statements, premise=item.premise)
        asked.image.content = question.image
    return request


def _answers(outcome: pb.ProbeOutcome, question: Question) -> list[GoldenAnswer]:
    count = len(question.item.texts)
    match outcome.WhichOneof("outcome"):
        case "entailment":
            answers = [GoldenAnswer(_LABELS.get(result.label, "")) for result in outcome.entailment.results]
        case "address":
            answers = [GoldenAnswer(canonicalize(_components(result))) for result in outcome.address.results]
        case _:
            return [GoldenAnswer(failure=_reason(outcome.error))] * count
    if len(answers) != count or not all(answer.text for answer in answers):
        return [GoldenAnswer(failure="ANSWERS_MISSING")] * count
    return answers


def _components(result: address_pb2.AddressResult) -> dict[str, str]:
    return dict(result.components)


def _reason(status: status_pb2.Status) -> str:
    info = error_details_pb2.ErrorInfo()
    for detail in status.details:
        if detail.Unpack(info):
            return str(info.reason)
    return "FAILED"


def _side_by_side(
    chunk: Sequence[Question], candidate: list[list[GoldenAnswer]], active: list[list[GoldenAnswer]] | None
) -> Iterator[GoldenQuestion]:
    for number, question in enumerate(chunk):
        item = question.item
        for position, text in enumerate(item.texts):
            expected = item.expected[position] if item.expected else ""
            beside = None if active is None else active[number][position]
            yield GoldenQuestion(item.item, text, expected, candidate[number][position], beside)


def _chunks(questions: Iterable[Question]) -> Iterator[list[Question]]:
    chunk: list[Question] = []
    size = 0
    for question in questions:
        if chunk and (len(chunk) >= MAX_CHUNK_ITEMS or size + len(question.image) > MAX_CHUNK_BYTES):
            yield chunk
            chunk, size = [], 0
        chunk.append(question)
        size += len(question.image)
    if chunk:
        yield chunk


def _changed() -> EffectFailed:
    return EffectFailed.inconclusive("GOLDEN_CHANGED", "the golden set was changed meanwhile")
