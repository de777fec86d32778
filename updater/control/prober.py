"""Sends golden questions and built-in probes to slots, in chunks, through the server's normal request path."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from google.rpc import error_details_pb2, status_pb2

from common import reasons
from common.answers import SURE, AddressPart, format_parts
from common.clock import Clock
from common.engine_files import Task
from common.golden_set import GoldenBroken
from hotslot.address.v1 import address_pb2
from hotslot.control.v1 import control_pb2 as pb
from hotslot.entailment.v1 import entailment_pb2
from updater.core.comparison import GoldenAnswer
from updater.core.effects import LATE_PROBE_REASONS
from updater.core.facts import GoldenFacts, ServerState
from updater.core.golden import GateAnswers, GoldenQuestion
from updater.core.ports import EffectFailed
from updater.golden_files import GoldenFiles, ProbeItem, build_probes, read_probe_items

MAX_CHUNK_ITEMS = 16  # of one call; the server's limit is 64
MAX_CHUNK_BYTES = 24 << 20  # of pictures; the server's limit is 32 MiB
CALL_SECONDS = 120.0
STATE_SECONDS = 10.0
_LABELS = {
    entailment_pb2.LABEL_YES: "yes",
    entailment_pb2.LABEL_NO: "no",
    entailment_pb2.LABEL_MAYBE: "maybe",
}


@dataclass(frozen=True, slots=True)
class ComputeCost:
    """The cost and rows computed so far with a load's bundle."""

    seconds: float  # device time; CPU seconds on a CPU
    rows: int  # device rows


class ProbeClient(Protocol):
    """The calls of the server's control socket that a `Prober` uses; see `ControlClient`."""

    def state(self, deadline_seconds: float) -> ServerState:
        """GetStatus, converted."""
        ...

    def probe(self, request: pb.ProbeSlotRequest, deadline_seconds: float) -> pb.ProbeSlotResponse:
        """Call ProbeSlot."""
        ...

    def measure_cost(self, load_id: str, deadline_seconds: float) -> ComputeCost:
        """Reads the cost and rows computed so far with a load's bundle."""
        ...


class Prober:
    """The port `Golden` for one model. From that model's thread only."""

    def __init__(
        self, files: GoldenFiles, client: ProbeClient, task: Task, clock: Clock, check_stop: Callable[[], None]
    ) -> None:
        """Send nothing yet; `check_stop` is called before each chunk and raises to stop."""
        self._files = files
        self._client = client
        self._task = task
        self._clock = clock
        self._check_stop = check_stop
        self._next_item = 0  # of `probe`, which cycles through the set

    def facts(self) -> GoldenFacts:
        """The golden set as it is on disk now."""
        return self._files.facts()

    def run(self, load_id: str, active_load_id: str, digest: str, deadline_seconds: float) -> GateAnswers:
        """Send all questions of the set with this digest to both slots; an empty digest: the built-in probes."""
        ends = self._clock.monotonic() + deadline_seconds
        questions, min_accuracy = self._select_questions(digest)
        before = {load: self._client.measure_cost(load, STATE_SECONDS) for load in (load_id, active_load_id) if load}
        asked: list[GoldenQuestion] = []
        try:
            for chunk in _split_chunks(questions):
                candidate = self._probe_chunk(load_id, chunk, ends)
                active = self._probe_chunk(active_load_id, chunk, ends) if active_load_id else None
                asked += _pair_answers(chunk, candidate, active)
        except GoldenBroken as error:
            raise EffectFailed.inconclusive("GOLDEN_CHANGED", str(error)) from error
        if digest and self._files.facts().digest != digest:
            raise _build_changed_error()
        state = self._client.state(STATE_SECONDS)
        slot = state.loaded(load_id)
        if slot is None:
            message = "the candidate's slot was emptied while the gate ran"
            raise EffectFailed.transient("LOAD_UNKNOWN", message)
        return GateAnswers(
            golden_digest=digest,
            device=slot.device,
            precision=slot.precision,
            questions=tuple(asked),
            min_accuracy=min_accuracy,
            candidate_seconds=self._measure_seconds(load_id, before[load_id], len(asked)),
            active_seconds=self._measure_seconds(active_load_id, before[active_load_id], len(asked))
            if active_load_id
            else 0.0,
            candidate_bytes=slot.resident_bytes,
            task=self._task,
        )

    def probe(self, load_id: str, previous_load_id: str, items: int, deadline_seconds: float) -> tuple[int, int, int]:
        """Send some questions to one slot, one after the other, until the time is over.

        A question that the previous load, if there is one, fails too is void and not counted, as at the gate.

        Returns:
            The numbers of answers, of failures, and of failures by NaN.

        Raises:
            EffectFailed: there was no time for a single question, the slot was emptied, or the set has changed.
        """
        ends, longest = self._clock.monotonic() + deadline_seconds, 0.0
        answers: list[GoldenAnswer] = []
        for asked in range(items):
            began = self._clock.monotonic()
            if asked and began + longest > ends:
                break
            try:
                question = self._take()
                answer = self._probe_one(load_id, question, ends)
                is_suspect = bool(answer.failure and previous_load_id)
                is_void = is_suspect and bool(self._probe_one(previous_load_id, question, ends).failure)
            except EffectFailed:
                if not asked:
                    raise
                break
            answers += [] if is_void else [answer]
            longest = max(longest, self._clock.monotonic() - began)
        bad = [answer for answer in answers if answer.failure]
        return len(answers) - len(bad), len(bad), sum(answer.failure == reasons.NOT_FINITE for answer in bad)

    def _probe_one(self, load_id: str, question: ProbeItem, ends: float) -> GoldenAnswer:
        """The answer to one question; if its time has run out, there is none: the time is ours, not the callers'."""
        ((answer, *_),) = self._probe_chunk(load_id, [question], ends)
        if answer.failure in LATE_PROBE_REASONS:  # of the item: as its call, a moment before
            raise EffectFailed.inconclusive("DEADLINE", "probing took too long")
        return answer

    def _take(self) -> ProbeItem:
        """The next question of the set, or of the built-in probes."""
        found = self._files.load()
        number, self._next_item = self._next_item, self._next_item + 1
        if found is None:
            probes = build_probes(self._task)
            return probes[number % len(probes)]
        items = found.golden.items
        try:
            (question,) = read_probe_items(found, replace(found.golden, items=(items[number % len(items)],)))
        except GoldenBroken as error:
            raise _build_changed_error() from error
        return question

    def _select_questions(self, digest: str) -> tuple[Iterable[ProbeItem], float]:
        if not digest:
            return build_probes(self._task), 0.0
        found = self._files.load()
        if found is None or found.digest != digest:
            raise _build_changed_error()
        return read_probe_items(found, found.distinct), max(self._files.min_accuracy, found.golden.min_accuracy)

    def _probe_chunk(self, load_id: str, chunk: Sequence[ProbeItem], ends: float) -> list[list[GoldenAnswer]]:
        """For each question of a chunk, one answer for each of its texts."""
        self._check_stop()
        left = ends - self._clock.monotonic()
        if left <= 0:
            raise EffectFailed.inconclusive("DEADLINE", "probing took too long")
        response = self._client.probe(_build_request(load_id, chunk, self._task), min(left, CALL_SECONDS))
        if len(response.outcomes) != len(chunk):
            raise EffectFailed.transient("ANSWERS_MISSING", "the server did not answer every item")
        return [_convert_answers(outcome, question) for outcome, question in zip(response.outcomes, chunk, strict=True)]

    def _measure_seconds(self, load_id: str, before: ComputeCost, questions: int) -> float:
        """Device time of our questions, estimated from the time per row: live traffic shares the active slot."""
        after = self._client.measure_cost(load_id, STATE_SECONDS)
        rows = after.rows - before.rows
        return (after.seconds - before.seconds) / rows * questions if rows > 0 else 0.0


def _build_request(load_id: str, chunk: Sequence[ProbeItem], task: Task) -> pb.ProbeSlotRequest:
    request = pb.ProbeSlotRequest(load_id=load_id)
    for question in chunk:
        item = question.item
        if task is Task.ADDRESS_TAGGING:
            request.address.requests.add(addresses=item.addresses)
            continue
        asked = request.entailment.requests.add(statements=item.statements, premise=item.premise)
        asked.image.content = question.image
    return request


def _convert_answers(outcome: pb.ProbeOutcome, question: ProbeItem) -> list[GoldenAnswer]:
    count = len(question.item.texts)
    match outcome.WhichOneof("outcome"):
        case "entailment":
            answers = [_convert_label(result) for result in outcome.entailment.results]
        case "address":
            answers = [_convert_spans(result) for result in outcome.address.results]
        case _:
            return [GoldenAnswer(failure=_read_reason(outcome.error))] * count
    if len(answers) != count or not all(answer.text for answer in answers):
        return [GoldenAnswer(failure="ANSWERS_MISSING")] * count
    return answers


def _convert_label(result: entailment_pb2.StatementResult) -> GoldenAnswer:
    scores = result.scores
    return GoldenAnswer(_LABELS.get(result.label, ""), is_sure=max(scores.yes, scores.no, scores.maybe) >= SURE)


def _convert_spans(result: address_pb2.AddressResult) -> GoldenAnswer:
    text = format_parts(AddressPart(span.kind, span.text, span.start) for span in result.spans)
    return GoldenAnswer(text, is_sure=all(span.probability >= SURE for span in result.spans))


def _read_reason(status: status_pb2.Status) -> str:
    info = error_details_pb2.ErrorInfo()
    for detail in status.details:
        if detail.Unpack(info):
            return str(info.reason)
    return "FAILED"


def _pair_answers(
    chunk: Sequence[ProbeItem], candidate: list[list[GoldenAnswer]], active: list[list[GoldenAnswer]] | None
) -> Iterator[GoldenQuestion]:
    for number, question in enumerate(chunk):
        item = question.item
        for position, text in enumerate(item.texts):
            expected = item.expected[position] if item.expected else ""
            beside = None if active is None else active[number][position]
            yield GoldenQuestion(item.item, text, expected, candidate[number][position], beside)


def _split_chunks(questions: Iterable[ProbeItem]) -> Iterator[list[ProbeItem]]:
    chunk: list[ProbeItem] = []
    size = 0
    for question in questions:
        if chunk and (len(chunk) >= MAX_CHUNK_ITEMS or size + len(question.image) > MAX_CHUNK_BYTES):
            yield chunk
            chunk, size = [], 0
        chunk.append(question)
        size += len(question.image)
    if chunk:
        yield chunk


def _build_changed_error() -> EffectFailed:
    return EffectFailed.inconclusive("GOLDEN_CHANGED", "the golden set changed while the gate ran")
