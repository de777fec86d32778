"""How the answers of two slots to the same requests compare, as counts. Pure.

The counts are sums: whoever reads them twice knows what happened between. No text and no picture is kept, only the ids
of requests, and digests. A question counts once: the updater's tests take each observation for a new one, and what a
caller repeats is none.
"""

import bisect
import hashlib
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime

from common.answers import ARROW, SURE, TASK_ANSWERS, AddressPart, format_parts
from common.engine_files import Task
from inference.server.model.stats import LabelCounter
from inference.server.request import EntailmentInput, Outcome, Payload, RequestTags, Result
from inference.wire import AddressSpan, EntailmentScores

DISTANCE_BOUNDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)  # of scores, upper
MAX_DIFFERING = 100  # answers whose ids are kept
MAX_A_PICTURE = 2  # requests about one picture that are compared: a model that sees it otherwise changes them all
MAX_REMEMBERED = 1 << 16  # questions, and pictures; further ones count each time
_DIGEST_BYTES = 16  # of a question
_EDGE_BYTES = 64 << 10  # of a picture's file, at either end, that such a digest covers, beside its size


@dataclass(frozen=True, slots=True)
class Difference:
    """One answer that differs."""

    request_id: str
    item_id: str
    position: int  # of the text in the request
    directions: tuple[str, ...]
    distance: float  # of the scores


@dataclass(frozen=True, slots=True)
class QuestionDigests:
    """What a request asks, without keeping it; long pictures that differ in the middle alone share a digest."""

    picture: bytes  # empty if there is none
    texts: tuple[bytes, ...]  # each with its picture and premise


class Comparison:
    """The counts of one comparison: of the answers that are judged, and of those that they are compared with."""

    def __init__(self, task: Task, judged_digest: str, reference_digest: str, started_at: datetime) -> None:
        self.judged_digest = judged_digest
        self.reference_digest = reference_digest
        self.started_at = started_at
        self.requests = self.equal_requests = 0
        self.answers = self.equal_answers = 0
        self.sure_answers = self.equal_sure_answers = 0  # of which the slot compared with is sure
        self.directions = LabelCounter(other=f"other{ARROW}other")
        self.labels = LabelCounter()
        self.reference_labels = LabelCounter()
        self.distances = [0] * len(DISTANCE_BOUNDS)
        self.dropped: dict[str, int] = {}  # by reason
        self.failed: dict[str, int] = {}  # by reason
        self.judged_answered = 0  # copies, by the slot that is judged
        self.judged_failed: dict[str, int] = {}  # of `failed`, what that slot has failed; not what it refuses
        self.differing: deque[Difference] = deque(maxlen=MAX_DIFFERING)
        self._task = TASK_ANSWERS[task]
        self._compared: set[bytes] = set()  # digests of texts
        self._pictures: dict[bytes, int] = {}  # requests compared, by the picture's digest
        self._failed: dict[bool, set[bytes]] = {True: set(), False: set()}  # texts, by whether the judged slot did
        self._failed_pictures: dict[tuple[bytes, bool], int] = {}  # requests, by the picture's digest too

    def find_new(self, questions: QuestionDigests) -> tuple[int, ...]:
        """Positions of the texts that were not compared yet; none if enough requests about their picture were."""
        if self._pictures.get(questions.picture, 0) >= MAX_A_PICTURE:
            return ()
        texts = questions.texts
        return tuple(at for at, text in enumerate(texts) if text not in self._compared and texts.index(text) == at)

    def remember(self, questions: QuestionDigests) -> None:
        """From now on these questions are not new."""
        if len(self._compared) < MAX_REMEMBERED:
            self._compared.update(questions.texts)
        count = self._pictures.get(questions.picture, 0)
        if questions.picture and (count or len(self._pictures) < MAX_REMEMBERED):
            self._pictures[questions.picture] = count + 1

    def add(
        self,
        texts: Sequence[str],
        judged: Outcome,
        reference: Outcome,
        tags: RequestTags,
        positions: Collection[int] | None = None,
    ) -> int:
        """Count a request that both slots have answered.

        Args:
            texts: that the results are about.
            judged: results of the slot that is judged, one a text.
            reference: results of the other slot.
            tags: of the request.
            positions: of the texts that count; None: all.

        Returns:
            How many of these answers differ.
        """
        rows = list(zip(texts, reference, judged, strict=True))
        positions = range(len(rows)) if positions is None else positions
        different = 0
        for position in positions:
            text, before, after = rows[position]
            old, new = write_answer(text, before), write_answer(text, after)
            directions = self._task.find_directions(old, new)
            distance = measure_distance(before, after)
            for labels, answer in ((self.reference_labels, old), (self.labels, new)):
                labels.add(self._task.list_labels(answer))
            self.directions.add(directions)
            self.distances[min(len(DISTANCE_BOUNDS) - 1, bisect.bisect_left(DISTANCE_BOUNDS, distance))] += 1
            if is_sure(before):
                self.sure_answers += 1
                self.equal_sure_answers += old == new
            if old != new:
                different += 1
                self.differing.append(Difference(tags.request_id, tags.item_id, position, directions, distance))
        self.requests += 1
        self.equal_requests += not different
        self.answers += len(positions)
        self.equal_answers += len(positions) - different
        return different

    def drop(self, reason: str) -> None:
        """Count a request of the sample that was not compared."""
        self.dropped[reason] = self.dropped.get(reason, 0) + 1

    def fail(self, reason: str, questions: QuestionDigests, *, is_judged: bool, is_refused: bool = False) -> bool:
        """Count a copy that the second slot failed, unless it has failed the same before; returns whether it counts.

        What it answers counts once, and of the requests about a picture a few: so does what it fails.

        Args:
            reason: of the error.
            questions: of the request.
            is_judged: the second slot is the one that is judged.
            is_refused: the slot found the input wrong: that is no failure of a trial.
        """
        picture = (questions.picture, is_judged)
        count = self._failed_pictures.get(picture, 0)
        known = self._failed[is_judged]
        if count >= MAX_A_PICTURE or known.issuperset(questions.texts):
            return False
        if len(known) < MAX_REMEMBERED:
            known.update(questions.texts)
            if questions.picture:
                self._failed_pictures[picture] = count + 1
        self.failed[reason] = self.failed.get(reason, 0) + 1
        if is_judged and not is_refused:
            self.judged_failed[reason] = self.judged_failed.get(reason, 0) + 1
        return True


def digest_questions(payload: Payload) -> QuestionDigests:
    """What a request asks. Takes a fraction of a millisecond, where `identify` takes ten for the largest picture."""
    picture, premise = b"", b""
    if isinstance(payload, EntailmentInput):
        file, size, premise = payload.image, len(payload.image), payload.premise.encode()
        picture = _digest(file[:_EDGE_BYTES], file[max(_EDGE_BYTES, size - _EDGE_BYTES) :], salt=size)
    texts = (_digest(picture, premise, text.encode(), salt=len(premise)) for text in payload.texts)
    return QuestionDigests(picture, tuple(texts))


def _digest(*parts: bytes | memoryview, salt: int) -> bytes:
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES, salt=salt.to_bytes(8))
    for part in parts:
        digest.update(part)
    return digest.digest()


def write_answer(text: str, result: Result) -> str:
    """A result in the form of `common.answers`, in which equal answers are equal texts."""
    if isinstance(result, EntailmentScores):
        return result.label
    return format_parts(AddressPart(span.kind, text[span.start : span.end], span.start) for span in result)


def is_sure(result: Result) -> bool:
    """Whether a model is sure of its answer: of every part, where an answer has parts."""
    if isinstance(result, EntailmentScores):
        return max(result.yes, result.no, result.maybe) >= SURE
    return all(span.probability >= SURE for span in result)


def measure_distance(before: Result, after: Result) -> float:
    """How far the scores of two results are apart, 0 to 1.

    Of statements half the sum of the differences; of addresses the mean difference of the parts' probabilities, where a
    part that only one of them has counts 1.
    """
    if isinstance(before, EntailmentScores) and isinstance(after, EntailmentScores):
        pairs = ((before.yes, after.yes), (before.no, after.no), (before.maybe, after.maybe))
        return min(1.0, sum(abs(a - b) for a, b in pairs) / 2)
    old, new = _by_place(before), _by_place(after)
    places = old.keys() | new.keys()
    apart = sum(abs(old[place] - new[place]) if place in old and place in new else 1.0 for place in places)
    return apart / len(places) if places else 0.0


def _by_place(result: Result) -> dict[tuple[str, int, int], float]:
    spans: tuple[AddressSpan, ...] = () if isinstance(result, EntailmentScores) else result
    return {(span.kind, span.start, span.end): span.probability for span in spans}
