"""Copies of answered requests for a second slot: which are made, when they are computed, what they show.

A caller's answer outranks evidence. So a copy is made of a request that is answered, it is computed while no caller
waits for the model, at low priority where the slot also answers callers, and it makes way at once.
"""

import asyncio
import itertools
import math
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass

from common import errors
from inference.server.events import AnswersCompared, CopyDropped
from inference.server.model.comparison import Comparison, QuestionDigests, digest_questions, write_answer
from inference.server.model.effects import PairMachine
from inference.server.model.options import ModelOptions
from inference.server.model.pair import ANSWERING_ROLES, CPU_DEVICE, Shadow, SlotRecord
from inference.server.model.route import locate
from inference.server.request import Outcome, Payload, PendingRequest, RequestTags
from inference.wire import EntailmentScores

MAX_KEPT = 64  # requests that wait to be copied
MAX_KEPT_SHARE = 1 / 16  # of the bytes that the model's requests may hold, for copies that wait or are sent
MAX_KEPT_SECONDS = 10.0  # a copy is dropped if it gets no time until then
COPY_SECONDS = 10.0  # time limit of a copy that is sent, at least
MAX_LONGER = 1.25  # further copies are sent with one if their call takes at most this much longer than one alone
PATIENT_SECONDS = 1.0  # without an idle moment, after which a card computes a copy beside callers, unless some wait
BUSY_SHARE = 0.75  # of the time that calls of callers take, above which it does not
YIELDING_SECONDS = 1.0  # for which copies yield the CPUs to all other processes; later they are as a candidate's calls
WINDOW_SECONDS = 0.5  # for which that share is measured, at least
BURST_SECONDS = 0.5  # of the time for copies, that may be used ahead
CARD_BUSY_SHARE = 0.05  # of a card's time that copies take at most: what it computes cannot make way


@dataclass(frozen=True, slots=True)
class Activity:
    """The present work of the model for its callers."""

    is_waiting: bool  # a request waits in a queue, or another model's rows wait for the device
    is_computing: bool  # a request is unanswered
    busy_share: float  # of the last time, that its calls have taken
    is_on_cpu: bool  # whether the copy would take the CPUs that callers' requests are computed and served on


def may_compute(activity: Activity, blocked_seconds: float) -> bool:
    """Whether a copy that has found no idle moment for so long may be computed now. Pure."""
    if activity.is_waiting:
        return False
    if not activity.is_computing:
        return True
    return not activity.is_on_cpu and blocked_seconds >= PATIENT_SECONDS and activity.busy_share <= BUSY_SHARE


@dataclass(frozen=True, slots=True)
class KeptCopy:
    """An answered request that the second slot is to answer too."""

    payload: Payload
    outcome: Outcome  # of the first slot
    tags: RequestTags
    questions: QuestionDigests  # of the payload
    slot: str  # the second one
    is_judged: bool  # whether the second slot is the one that is judged
    kept_at: float  # clock.monotonic()


_ShadowId = tuple[str, float, bool]  # load id, begin, and whether the load is on trial


class Shadows:
    """The copies of one model's requests. Loop thread only."""

    def __init__(
        self,
        options: ModelOptions,
        machine: PairMachine,
        send: Callable[[KeptCopy, float], PendingRequest],
        count_unanswered: Callable[[], int],
    ) -> None:
        """Create it.

        Args:
            options: of the model.
            machine: its slots.
            send: queues a copy on its slot, with a deadline; `on_copy_done` must follow.
            count_unanswered: requests of callers without an answer.
        """
        self.comparison: Comparison | None = None  # of the pair's present shadow, once a request was sampled
        self._options = options
        self._machine = machine
        self._send = send
        self._count_unanswered = count_unanswered
        self._followed: _ShadowId | None = None  # which shadow that is
        self._revision = ""  # that is judged
        self._kept: deque[KeptCopy] = deque()
        self.kept_bytes = 0
        self._sent: dict[int, tuple[KeptCopy, PendingRequest]] = {}  # by request id
        self._numbers = itertools.count()  # of answers that may be compared
        self._spent_seconds = 0.0  # with copies, since the shadow began
        self._busy_since = 0.0  # while copies are sent
        self._busy_share = 0.0
        self._measured: tuple[float, float] = (-math.inf, 0.0)  # when, and seconds computed until then
        self._allowed_at = 0.0  # since when a copy may be computed at the next idle moment
        self._due: asyncio.Handle | None = None

    # From the requests of callers.

    def on_answer(self, slot: str, request: PendingRequest, outcome: Outcome) -> None:
        """Keep a request that a slot has answered, if it belongs to the sample."""
        pair, now = self._machine.pair, self._options.clock.monotonic()
        shadow, compared = pair.shadow, pair.compared_slots()
        if shadow is None or compared is None or request.internal or request.attribution is not None:
            return
        if slot not in (compared[0].name, compared[1].name) or not shadow.is_copying(now):
            return
        # Numbered: a caller that sends the same id with each request would be in the sample with all of them, or none.
        own_key = f"{request.tags.request_id}/{request.tags.item_id}/{next(self._numbers)}"
        if locate(f"shadow of {shadow.load_id}", own_key) >= shadow.policy.share:
            return
        comparison = self._follow(shadow, compared)
        judged, reference = compared
        is_judged = slot == reference.name
        second = judged if is_judged else reference
        questions = digest_questions(request.payload)
        reason = self._find_refusal(comparison, questions, second, request.size_bytes)
        if reason:
            self._drop(comparison, reason)
            return
        self._kept.append(KeptCopy(request.payload, outcome, request.tags, questions, second.name, is_judged, now))
        self.kept_bytes += request.size_bytes
        self._compute_soon()

    def on_caller(self, slot: str) -> None:
        """Make way: a request of a caller is given to a slot.

        Copies that the other slot computes on the CPUs go on: they run only when no other process wants a CPU.
        """
        target = self._machine.slots[slot]
        if target.is_lowered:
            target.set_serving(is_serving=True)
        for copy, request in list(self._sent.values()):
            if copy.slot != slot and self._is_on_cpu(copy.slot):
                continue
            self._machine.slots[copy.slot].dispatcher.cancel(request)
            if not request.sent_at:
                request.finish(errors.DeadlineMissed("a caller's request came first"))

    # In time.

    def update(self, now: float) -> None:
        """Follow the pair, drop what is too old, compute what may be computed; called about every 50 ms."""
        pair = self._machine.pair
        shadow, compared = pair.shadow, pair.compared_slots()
        if shadow is None or compared is None:
            if self._followed is not None:
                self._end()
            return
        comparison = self._follow(shadow, compared)
        self._measure(now)
        if not self._sent or now - self._busy_since >= YIELDING_SECONDS:
            self._stop_yielding()
        reason = "BUSY" if self._has_budget(shadow, now) else "BUDGET"
        while self._kept and now - self._kept[0].kept_at >= MAX_KEPT_SECONDS:
            self._take()
            self._drop(comparison, reason)
        while self._kept and self._options.is_memory_tight():
            self._take()
            self._drop(comparison, "MEMORY")
        self._compute(shadow, now)

    def on_copy_done(self, request: PendingRequest) -> None:
        """Compare the answer to a copy, or count why there is none."""
        copy = self._sent.pop(request.id, (None, request))[0]
        comparison = self.comparison
        if not self._sent:
            self._spent_seconds += self._options.clock.monotonic() - self._busy_since
        if copy is None or comparison is None:
            return
        error = errors.Interrupted("ended") if request.outcome.cancelled() else request.outcome.exception()
        if error is None:
            self._compare(comparison, copy, request.outcome.result().outcome)
        elif isinstance(error, errors.DeadlineMissed):
            self._keep_again(comparison, copy)
        elif isinstance(error, errors.Interrupted):
            self._drop(comparison, "ENDED")
        else:
            self._fail(comparison, copy, error)
        self._compute_soon()

    # Helpers.

    def _fail(self, comparison: Comparison, copy: KeptCopy, error: BaseException) -> None:
        reason, is_refused = getattr(error, "reason", "INTERNAL"), isinstance(error, errors.InputRefused)
        if not comparison.fail(reason, copy.questions, is_judged=copy.is_judged, is_refused=is_refused):
            self._drop(comparison, "REPEATED")

    def _compare(self, comparison: Comparison, copy: KeptCopy, outcome: Outcome) -> None:
        judged, reference = (outcome, copy.outcome) if copy.is_judged else (copy.outcome, outcome)
        positions = comparison.find_new(copy.questions)  # less than when it was kept, if texts came twice since
        if not positions:
            self._drop(comparison, "REPEATED")
            return
        different = comparison.add(copy.payload.texts, judged, reference, copy.tags, positions)
        comparison.remember(copy.questions)
        comparison.judged_answered += copy.is_judged
        if different and self._options.samples is not None:
            self._options.samples.keep(self._describe(copy, judged, reference), copy.payload.picture)
        self._options.emit(AnswersCompared(self._options.model, self._revision, len(positions) - different, different))

    def _describe(self, copy: KeptCopy, judged: Outcome, reference: Outcome) -> dict[str, object]:
        """A request and both slots' answers, for a person."""
        texts = copy.payload.texts
        return {
            "request_id": copy.tags.request_id,
            "item_id": copy.tags.item_id,
            "texts": texts,
            "revision": self._revision,
            "answers": [write_answer(*row) for row in zip(texts, judged, strict=True)],
            "previous_answers": [write_answer(*row) for row in zip(texts, reference, strict=True)],
            "scores": [asdict(row) if isinstance(row, EntailmentScores) else [*map(asdict, row)] for row in judged],
        }

    def _stop_yielding(self) -> None:
        """Give the processes the low priority of candidates: they send heartbeats, and finish what they have begun."""
        for slot in self._machine.slots.values():
            if slot.is_yielding:
                slot.set_serving(is_serving=False)

    def _keep_again(self, comparison: Comparison, copy: KeptCopy) -> None:
        """Keep a copy that has made way, unless it has become too old."""
        if self._options.clock.monotonic() - copy.kept_at >= MAX_KEPT_SECONDS:
            self._drop(comparison, "BUSY")
            return
        self._kept.appendleft(copy)
        self.kept_bytes += copy.payload.size_bytes

    def _drop(self, comparison: Comparison, reason: str) -> None:
        comparison.drop(reason)
        self._options.emit(CopyDropped(self._options.model, self._revision, reason))

    def _find_refusal(
        self, comparison: Comparison, questions: QuestionDigests, second: SlotRecord, size_bytes: int
    ) -> str:
        """Why a request is not kept; empty if it is."""
        sent = (copy for copy, _ in self._sent.values())
        if not comparison.find_new(questions) or any(one.questions == questions for one in (*self._kept, *sent)):
            return "REPEATED"
        if not second.is_loaded:
            return "SLOT_DOWN"
        limit = MAX_KEPT_SHARE * self._options.capacity.max_bytes
        sent_bytes = sum(copy.payload.size_bytes for copy, _ in self._sent.values())  # they may come back
        if self.kept_bytes + sent_bytes + size_bytes > limit or self._options.is_memory_tight():
            return "MEMORY"
        return "BUSY" if len(self._kept) >= MAX_KEPT else ""

    def _take(self) -> KeptCopy:
        copy = self._kept.popleft()
        self.kept_bytes -= copy.payload.size_bytes
        return copy

    def _follow(self, shadow: Shadow, compared: tuple[SlotRecord, SlotRecord]) -> Comparison:
        """The comparison of the pair's present shadow; begins it if it is another one than before."""
        followed = self._identify(shadow)
        if followed != self._followed or self.comparison is None:
            self._end()
            judged, reference = compared
            self._followed = followed
            self._revision = "" if judged.load is None else judged.load.bundle.revision
            self.comparison = Comparison(self._options.task, judged.digest, reference.digest, shadow.started_at)
            if self._options.samples is not None:
                self._options.samples.begin(
                    shadow.started_at, "" if judged.load is None else judged.load.transaction_id
                )
        return self.comparison

    def _identify(self, shadow: Shadow) -> "_ShadowId":
        return shadow.load_id, shadow.begun_at, self._machine.pair.trial is not None

    def _end(self) -> None:
        """Forget the copies of a shadow that is over."""
        self.comparison, self._followed, self._spent_seconds = None, None, 0.0
        self._kept.clear()
        self.kept_bytes = 0
        for copy, request in list(self._sent.values()):
            self._machine.slots[copy.slot].dispatcher.cancel(request)
            request.finish(errors.Interrupted("the comparison is over"))
        for name, slot in self._machine.slots.items():
            if slot.is_lowered:
                slot.set_serving(is_serving=self._machine.pair.role_of(name) in ANSWERING_ROLES)

    def _has_budget(self, shadow: Shadow, now: float) -> bool:
        share, slot = shadow.policy.busy_share, self._machine.pair.slot_holding(shadow.load_id)
        if slot is not None and slot.load is not None and slot.load.device != CPU_DEVICE:
            share = min(share, CARD_BUSY_SHARE)
        return share >= 1 or self._spent_seconds <= share * (now - shadow.begun_at + BURST_SECONDS)

    def _measure(self, now: float) -> None:
        """Measure which part of the time the calls of callers take."""
        since, before = self._measured
        if now - since < WINDOW_SECONDS:
            return
        computed = sum(slot.dispatcher.computed_seconds for slot in self._machine.slots.values())
        if computed >= before:  # less: a process was replaced
            self._busy_share = (computed - before) / (now - since)
        self._measured = now, computed

    def _compute_soon(self) -> None:
        if self._kept and self._due is None:
            self._due = asyncio.get_running_loop().call_soon(self._on_due)

    def _on_due(self) -> None:
        self._due = None
        shadow, now = self._machine.pair.shadow, self._options.clock.monotonic()
        if shadow is not None and self._followed == self._identify(shadow):
            self._compute(shadow, now)

    def _compute(self, shadow: Shadow, now: float) -> None:
        """Send the first copies that are kept, if they may be computed now."""
        pair = self._machine.pair
        if not self._kept or pair.is_stopping or self._options.drain.is_draining or not self._has_budget(shadow, now):
            self._allowed_at = now
            return
        first = self._kept[0]
        slot, dispatcher = self._machine.slots[first.slot], self._machine.slots[first.slot].dispatcher
        if not pair[first.slot].is_loaded or not dispatcher.is_empty:
            return
        if not may_compute(self._read_activity(first.slot), now - max(first.kept_at, self._allowed_at)):
            return
        if not slot.is_yielding:
            slot.yield_cpus()
        self._busy_since = self._allowed_at = now
        longest = MAX_LONGER * dispatcher.cost.expected(first.payload.rows)
        deadline, rows = now + max(COPY_SECONDS, dispatcher.limit_of(first.payload.rows)), 0
        while self._kept and self._kept[0].slot == first.slot:
            rows += self._kept[0].payload.rows
            if self._kept[0] is not first and dispatcher.cost.expected(rows) > longest:
                break
            copy = self._take()
            request = self._send(copy, deadline)
            self._sent[request.id] = copy, request

    def _is_on_cpu(self, slot: str) -> bool:
        load = self._machine.pair[slot].load
        return load is not None and load.device == CPU_DEVICE

    def _read_activity(self, slot: str) -> Activity:
        dispatchers = [slot.dispatcher for slot in self._machine.slots.values()]
        is_waiting = any(dispatcher.has_waiting or dispatcher.is_contended for dispatcher in dispatchers)
        return Activity(is_waiting, self._count_unanswered() > 0, self._busy_share, self._is_on_cpu(slot))
