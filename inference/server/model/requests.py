"""A request's whole life, in reading order: route, admit, submit; answered or failed; handed over or run again.

Every rule of "a trial costs no answer" is here or in `route`: which slot is tried and for how long (`choose_route`),
which slot answers then (`choose_handover_slot`), and what is counted against the trial (`on_answer`, `record_death`).
"""

import asyncio
import uuid

from common import errors, reasons
from hotslot.runner.v1 import runner_pb2
from inference.server.events import DeviceCallEnded, RequestHandedOver
from inference.server.model import messages as m
from inference.server.model.effects import PairMachine
from inference.server.model.options import ModelOptions
from inference.server.model.pair import UNRESOLVED_DEVICES, Load, Pair, Role, SlotRecord
from inference.server.model.policy import ShortageAction
from inference.server.model.route import Intake, choose_handover_slot, choose_route
from inference.server.model.shadow import KeptCopy, Shadows
from inference.server.model.slot import Slot
from inference.server.model.stats import DeathTracker, PoisonMemory, RunnerDeath, StatsKey, StatsTable, describe_item
from inference.server.model.transitions import after_item
from inference.server.request import (
    COPY,
    MAX_DEATHS,
    NO_TAGS,
    Attribution,
    Failure,
    Payload,
    PendingRequest,
    Prediction,
    RequestTags,
    list_labels,
)
from inference.server.scheduling.admission import draining_error
from inference.server.scheduling.dispatcher import Computed, Dispatcher
from inference.server.scheduling.fair_queue import UNNAMED, Source

RETRY_SECONDS = 1.0  # retry delay for callers if no better estimate is known
SELF_TEST_PAUSE_SECONDS = 1.0  # between two self-tests, at least
SELF_TEST_PAUSE_FACTOR = 20  # times the duration of the latest one
MIN_SELF_TEST_TIMEOUT_SECONDS = 10.0
STALLED_SHARE = 0.5  # of a time limit, after which the model is not ready until the call ends
_CALLER_ENDED_REASONS = ("CANCELLED", reasons.DEADLINE_EXPIRED)  # reasons that are not counted against a model


class Requests:
    """The requests of one model, from acceptance until their outcome is set, exactly once. Loop thread only."""

    def __init__(self, options: ModelOptions) -> None:
        self.options = options
        self.stats = StatsTable()
        self.intake = Intake(options, self._find_answering_dispatcher)
        self.last_good_at: float | None = None  # clock.monotonic()
        self.last_good_seconds = 0.0
        self.poison = PoisonMemory(options.poison_seconds)
        self._deaths = DeathTracker()
        self._open: dict[int, PendingRequest] = {}
        self._awaiting_cpu: list[PendingRequest] = []  # until the CPU fallback has a slot; bounded by admission
        self._self_test: PendingRequest | None = None
        self._self_test_sent_at = 0.0
        self._self_test_seconds = 0.0  # of the latest one
        self.machine = PairMachine(options, self.stats, self)
        self.shadows = Shadows(options, self.machine, self._send_copy, lambda: self.waiting)

    @property
    def pair(self) -> Pair:
        """The two slots as they are now."""
        return self.machine.pair

    # Routed, admitted, submitted.

    def predict(
        self, payload: Payload, deadline: float, source: Source = UNNAMED, tags: RequestTags = NO_TAGS
    ) -> PendingRequest:
        """Accept a request and queue it on a slot.

        Args:
            payload: checked input of the model's task.
            deadline: clock.monotonic() at which the request fails.
            source: its caller and flow.
            tags: what its caller says about it, beside its content.

        Returns:
            The pending request; its `outcome` is set once, to a Prediction or a HotslotError.

        Raises:
            HotslotError: refused; no state has changed.
        """
        if self.options.drain.is_draining:
            raise draining_error()
        now, pair = self.options.clock.monotonic(), self.machine.pair
        deaths = self.poison.count_deaths(payload, now)
        if deaths is not None and deaths >= MAX_DEATHS:
            raise errors.Failed("this input has ended two runner processes; it is refused now", reason="POISON_INPUT")
        outcome = asyncio.get_running_loop().create_future()
        request = PendingRequest(payload, now, deadline, outcome, flow=source.flow, tags=tags)
        decision = choose_route(pair, self.machine.slots, request, now)
        load = None if decision is None else pair[decision.slot].load
        if decision is None or load is None:
            raise errors.NotReady("no model is loaded yet", reason="NOT_READY", retry_after_seconds=1.0)
        if load.loaded_at == 0.0 and pair.answering_slot() is None:
            raise errors.NotReady("the model is being loaded", reason="NOT_READY", retry_after_seconds=1.0)
        try:
            self.intake.admit(request, source.caller, self.machine.slots[decision.slot].dispatcher)
        except errors.HotslotError as error:
            self.stats.count_refusal(load.key, error)
            raise
        request.alone = deaths is not None
        request.on_done = self._on_done
        self._open[request.id] = request
        request.handover_at = decision.handover_at
        if decision.previous is not None:
            request.leases.append(self.machine.slots[decision.previous].lease())
        self._give(request, decision.slot)
        return request

    def probe(self, slot: str, payload: Payload, deadline: float) -> PendingRequest:
        """Send a probe or self-test to one slot, whatever its role. Admission and traffic counters do not apply.

        Raises:
            Conflict: the slot holds no loaded model.
        """
        if not self.pair[slot].is_loaded:
            raise errors.Conflict("the slot holds no loaded model", reason="NOT_LOADED")
        now = self.options.clock.monotonic()
        request = PendingRequest(payload, now, deadline, asyncio.get_running_loop().create_future(), internal=True)
        request.on_done = self._forget
        self._open[request.id] = request
        self._give(request, slot)
        return request

    def _send_copy(self, copy: KeptCopy, deadline: float) -> PendingRequest:
        """Queue a copy of an answered request on a second slot; its answer goes to no caller."""
        now, outcome = self.options.clock.monotonic(), asyncio.get_running_loop().create_future()
        request = PendingRequest(copy.payload, now, deadline, outcome, flow=COPY, internal=True, is_copy=True)
        request.on_done = self._on_copy_done
        self._open[request.id] = request
        self._give(request, copy.slot)
        return request

    def _on_copy_done(self, request: PendingRequest) -> None:
        self._forget(request)
        self.shadows.on_copy_done(request)

    def cancel(self, request: PendingRequest, *, has_expired: bool = False) -> None:
        """Cancel a request whose caller is gone; the runner skips it if it has not begun.

        Args:
            request: to cancel; nothing happens if it is done.
            has_expired: its caller is gone because its deadline has passed.
        """
        request.has_expired = has_expired
        request.outcome.cancel()
        for slot in self.machine.slots.values():
            slot.dispatcher.cancel(request)
        request.release()

    @property
    def waiting(self) -> int:
        """Accepted requests without an answer."""
        return self.intake.admission.requests

    def count_awaiting_previous(self, bundle_digest: str) -> int:
        """Requests that a bundle has failed on trial and that no other slot has answered yet."""
        failed = (request.attribution for request in self._open.values())
        return sum(row is not None and row.bundle_digest == bundle_digest for row in failed)

    def _give(self, request: PendingRequest, slot: str) -> None:
        """Queue a request on a slot, and record which revision has it."""
        pair = self.machine.pair
        load = pair[slot].load
        if load is not None:
            request.revision, request.device = load.bundle.revision, load.device
        if pair.shadow is not None and not request.internal:
            self.shadows.on_caller(slot)
        self.machine.slots[slot].submit(request)

    def make_dispatcher(self, slot: Slot) -> Dispatcher:
        """A queue for a slot's next process; its outcomes come back here."""
        return Dispatcher(
            _Outcomes(self, slot), self.options.clock, self.options.limits, self.options.interactive_share
        )

    # Answered.

    def on_answer(self, slot: str, request: PendingRequest, computed: Computed) -> None:
        """Finish a request with its prediction; during a trial the first slot to answer wins."""
        pair = self.machine.pair
        load = pair[slot].load
        if load is None or request.outcome.done():
            return
        now = self.options.clock.monotonic()
        seconds = now - request.accepted_at
        labels = list_labels(computed.outcome)
        prediction = Prediction(
            outcome=computed.outcome,
            labels=labels,
            texts=request.payload.texts,
            served_by=load.served_by(self.options.model, slot, self.options.node),
            queued_seconds=max(0.0, request.sent_at - request.accepted_at),
            prepared_seconds=computed.prepared_seconds,
            computed_seconds=computed.computed_seconds,
        )
        if not request.internal:
            self.poison.clear(request.payload)
            self.stats.get(load.key).count_answer(seconds, labels)
            if request.attribution is not None:
                self._count_against_trial(request.attribution)
        if not load.is_proven or slot == pair.fallback:
            self.machine.apply(m.Proven(slot))
            pair = self.machine.pair
        answering = pair.answering_slot()
        if answering is not None and slot == answering.name:
            self.last_good_at, self.last_good_seconds = now, seconds
        if pair.shadow is not None:
            self.shadows.on_answer(slot, request, computed.outcome)
        request.finish(prediction)

    def _count_against_trial(self, attribution: Attribution) -> None:
        """Count what a trial has failed, now that another slot has answered it."""
        self.stats.count_attribution(attribution)
        if attribution.reason == reasons.OUT_OF_MEMORY:
            self.machine.apply(m.TrialRanOut(StatsKey(attribution.bundle_digest, attribution.device)))

    # Failed.

    def on_failure(self, slot: str, request: PendingRequest, failure: Failure) -> None:
        """Hand a request that the trial failed to the previous slot; finish any other with its error."""
        if request.is_done or request.on_slot != slot:
            return
        if failure.is_input_error:
            request.finish(errors.InputRefused(failure.message, reason=failure.reason, field=failure.field))
            return
        if failure.reason in _CALLER_ENDED_REASONS and not request.can_hand_over:
            request.finish(errors.DeadlineMissed("the deadline passed before it was computed"))
            return
        load = self.pair[slot].load
        if load is not None and request is self._self_test:
            self.machine.apply(m.SelfTestFailed(slot, failure.reason))
        if failure.reason == reasons.OUT_OF_MEMORY and load is not None:
            self._run_out_of_memory(slot, request, load)
            return
        if request.can_hand_over:
            self._hand_over(
                slot, request, reasons.TOO_SLOW if failure.reason in _CALLER_ENDED_REASONS else failure.reason
            )
            return
        if not request.internal and request.attribution is None and load is not None:
            self.stats.get(load.key).count_failure(failure.reason)
        request.finish(errors.Failed(failure.message or "the model failed", reason=failure.reason))

    def _hand_over(self, slot: str, request: PendingRequest, reason: str) -> None:
        """Give a request that the trial failed to the previous slot; the failure counts once that slot has answered."""
        request.handover_at = None
        load, target = self.pair[slot].load, choose_handover_slot(self.pair, slot)
        if load is not None and target is None and reason == reasons.TOO_SLOW and slot == self.pair.active:
            self._give(request, slot)  # the trial was committed: the request has the time of its caller
            return
        if load is None or target is None:
            request.finish(errors.Failed("the model failed", reason=reason))
            return
        request.attribution = Attribution(load.bundle.bundle_digest, load.device, reason)
        self.options.emit(RequestHandedOver(self.options.model, load.bundle.revision, reason))
        self.machine.slots[slot].dispatcher.cancel(request)
        self._give(request, target.name)

    def expire(self, now: float) -> None:
        """Finish what is past its deadline; hand over what the trial has had for too long; end stuck runners."""
        for request in list(self._open.values()):
            if now >= request.deadline:
                request.finish(errors.DeadlineMissed("the deadline passed while it waited"))
            elif request.is_handover_due(now) and choose_handover_slot(self.pair, request.on_slot):
                self._hand_over(request.on_slot, request, reasons.TOO_SLOW)
        for slot in self.machine.slots.values():
            detail = self._find_hang(slot)
            if detail:
                self.machine.apply(m.Stuck(slot.name, detail))

    def update_load(self, now: float) -> None:
        """Judge the load, and send and read what is due."""
        self.intake.update([slot.dispatcher for slot in self.machine.slots.values()], now)

    def _find_answering_dispatcher(self) -> Dispatcher | None:
        record = self.pair.answering_slot() or self.pair.active_slot
        return None if record is None else self.machine.slots[record.name].dispatcher

    def _find_hang(self, slot: Slot, share: float = 1.0) -> str:
        load = self.pair[slot.name].load
        is_cpu = load is None or load.device == "cpu"
        return slot.dispatcher.find_hang(slot.heartbeat, is_cpu=is_cpu, share=share)

    @property
    def is_stalled(self) -> bool:
        """Whether the answering slot seems to hang: its runner is silent, or half of a time limit has passed.

        Beside a runner that is silent in a trial the previous slot answers.
        """
        record, previous = self.pair.answering_slot(), self.pair.previous_of_trial
        if record is None:
            return False
        slot = self.machine.slots[record.name]
        is_backed = previous is not None and previous is not record and previous.is_loaded and previous.is_proven
        if is_backed and self._is_silent(record) and not self._is_silent(previous):
            return False
        return self._is_silent(record) or bool(self._find_hang(slot, STALLED_SHARE))

    def _is_silent(self, record: SlotRecord | None) -> bool:
        process = None if record is None else self.machine.slots[record.name].process
        return process is not None and process.is_silent

    # Out of memory at a single item.

    def _run_out_of_memory(self, slot: str, request: PendingRequest, load: Load) -> None:
        """Hand the request to the other slot, keep it for the CPU fallback, or fail it."""
        request.out_of_memory_on += (load.placement,)
        pair = self.pair
        other = pair.other(slot)
        other_failed = other.load is not None and other.load.placement in request.out_of_memory_on
        action = after_item(
            pair,
            slot,
            self.options.clock.monotonic(),
            self.options.rules,
            is_probe=request.internal,
            other_failed=other_failed or request.attribution is not None,
        )
        self.machine.apply(m.OutOfMemory(slot, action, new_load_id=uuid.uuid4().hex[:12]))
        is_previous = self.pair.role_of(slot) is Role.PREVIOUS
        if action is ShortageAction.USE_OTHER_SLOT and not is_previous:
            self._hand_over(slot, request, reasons.OUT_OF_MEMORY)
            return
        is_void = action is ShortageAction.ROLL_BACK_TRIAL_AND_FALL_BACK
        if not request.internal and request.attribution is None and not is_void:
            self.stats.get(load.key).count_failure(reasons.OUT_OF_MEMORY)
        if action is ShortageAction.USE_OTHER_SLOT:
            request.handover_at = None
            self._give(request, other.name)
        elif action is ShortageAction.REFUSE or request.internal:
            request.finish(self._out_of_memory_error())
        else:
            request.attribution = None  # no slot had memory for it: not counted against the trial
            self._await_cpu(request)

    def _await_cpu(self, request: PendingRequest) -> None:
        """Keep a request until the CPU can answer it; fail it at once if its deadline is sooner."""
        now, pair = self.options.clock.monotonic(), self.machine.pair
        target = pair.fallback or (pair.active if pair.move.pending_load is None else None)
        is_ready = target is not None and pair[target].is_loaded
        expected = 0.0 if is_ready else max(0.0, pair.move.expected_seconds - (now - pair.move.begun_at))
        if request.deadline - now <= expected:
            request.finish(self._out_of_memory_error(expected))
            return
        request.release_leases()  # its lease would keep the slot that must be emptied first
        request.handover_at = None
        if target is None:
            self._awaiting_cpu.append(request)
        else:
            self._give(request, target)

    def submit_awaiting_cpu(self, effect: m.SubmitAwaitingCpu) -> None:
        """Queue the requests that await the CPU fallback."""
        requests, self._awaiting_cpu = self._awaiting_cpu, []
        for request in requests:
            if not request.is_done:
                self._give(request, effect.slot)

    def _out_of_memory_error(self, retry_seconds: float = 0.0) -> errors.Overloaded:
        pause = self.pair.move.not_before - self.options.clock.monotonic()
        return errors.Overloaded(
            "the device has no memory left for this request",
            reason=reasons.OUT_OF_MEMORY,
            retry_after_seconds=max(RETRY_SECONDS, retry_seconds, pause),
        )

    # Run again: the process has ended.

    def record_death(self, effect: m.RecordDeath) -> None:
        """Record the end of a process; it is counted when the requests that it held have been run again."""
        suspect_requests, key = self.machine.slots[effect.slot].in_flight_at_end, effect.key
        in_flight = {request.id for request in suspect_requests if not request.internal}
        self._deaths.add(RunnerDeath(self.stats.get(key), in_flight, failed=len(in_flight) if effect.is_trial else 0))
        abandoned, now = self.machine.slots[effect.slot].abandoned_at_end, self.options.clock.monotonic()
        is_alone = len(abandoned) + len(suspect_requests) == 1
        if is_alone and in_flight:
            self.poison.add(suspect_requests[0].payload.identify(), now)
        for payload in abandoned:
            self.poison.add(payload, now, deaths=int(is_alone))
        for request in suspect_requests:
            request.deaths += 1
            if effect.is_trial:
                request.attribution = Attribution(key.bundle_digest, key.device, reason="")
            if request.deaths >= MAX_DEATHS:
                self._deaths.mark_input_at_fault(request.id)

    def move_requests(self, effect: m.MoveRequests) -> None:
        """Run a slot's requests on the target; fail them if there is none.

        After the end of a process these are the requests that waited for it, then those that it computed, each alone.
        For a slot that is emptied without a process they are what its queue holds. A request that was handed over is
        in the other slot already.
        """
        suspect_requests, waiting = self.machine.slots[effect.slot].take_requests()
        for request in waiting:
            if request.on_slot == effect.slot:
                self._run_again(request, effect.target)
        for request in suspect_requests:
            if request.on_slot != effect.slot and request.deaths < MAX_DEATHS:
                continue
            if request.internal:
                request.finish(errors.Failed("the runner process ended", reason=reasons.RUNNER_DIED))
            elif request.deaths >= MAX_DEATHS:
                self.poison.add(request.payload.identify(), self.options.clock.monotonic(), request.deaths)
                request.finish(errors.Failed("this input ended two runner processes", reason="POISON_INPUT"))
            else:
                request.alone = True
                self._run_again(request, effect.target)

    def _run_again(self, request: PendingRequest, target: str | None) -> None:
        if request.is_done:
            request.release()
        elif target is None or self.pair[target].load is None or request.internal:
            request.finish(errors.Failed("the runner process ended", reason=reasons.RUNNER_DIED))
        else:
            request.handover_at = None
            self._give(request, target)

    # Self-tests take the way of a caller's request: after each load, and when nothing has succeeded for a while.

    def send_self_test(self, effect: m.SendSelfTest) -> None:
        """Send a self-test to a slot."""
        now = self._self_test_sent_at = self.options.clock.monotonic()
        limit = max(MIN_SELF_TEST_TIMEOUT_SECONDS, self.machine.slots[effect.slot].dispatcher.limit_of(1))
        self._self_test = self.probe(effect.slot, self.options.self_test, now + limit)

    def send_self_test_if_due(self, now: float) -> None:
        """Test the answering slot if no request has succeeded for `self_test_seconds`, or if it is not proven.

        Sooner if requests are refused because of a measured cost and nothing is computed that could correct it.
        """
        slot = self.pair.answering_slot()
        if slot is None or slot.load is None or (self._self_test is not None and not self._self_test.is_done):
            return
        since = max(self.last_good_at or 0.0, slot.load.loaded_at)
        is_due = now - since >= self.options.self_test_seconds or not slot.load.is_proven or self.intake.is_cost_doubted
        pause = max(SELF_TEST_PAUSE_SECONDS, SELF_TEST_PAUSE_FACTOR * self._self_test_seconds)
        if is_due and now - self._self_test_sent_at >= (pause if slot.load.is_proven else SELF_TEST_PAUSE_SECONDS):
            self.send_self_test(m.SendSelfTest(slot.name))

    # Done.

    def _on_done(self, request: PendingRequest) -> None:
        self.intake.release(request)
        self._forget(request)
        self._deaths.on_request_done(request.id)
        if request.device in UNRESOLVED_DEVICES:  # it was accepted before the load
            load = self.pair[request.on_slot].load
            request.device = "" if load is None or load.device in UNRESOLVED_DEVICES else load.device
        now = self.options.clock.monotonic()
        ended = describe_item(self.options.model, request, now)
        if ended.trace is not None:
            ended.trace.add_item(ended, now)
        self.options.emit(ended)

    def _forget(self, request: PendingRequest) -> None:
        self._open.pop(request.id, None)
        if request.on_slot:
            self.machine.slots[request.on_slot].dispatcher.forget(request)
        if request is self._self_test:
            self._self_test_seconds = self.options.clock.monotonic() - self._self_test_sent_at
        if request.internal and request.outcome.done() and not request.outcome.cancelled():
            request.outcome.exception()  # read it, or asyncio logs that it was never retrieved


class _Outcomes:
    """Receives what a slot's dispatcher reports."""

    def __init__(self, requests: Requests, slot: Slot) -> None:
        self._requests = requests
        self._slot = slot

    def on_sent(self, request: PendingRequest) -> None:
        """A request was sent: its stream may read on."""
        self._requests.intake.count_sent(request)

    def on_answer(self, request: PendingRequest, computed: Computed) -> None:
        """An item was answered."""
        self._requests.on_answer(self._slot.name, request, computed)

    def on_failure(self, request: PendingRequest, failure: Failure) -> None:
        """An item failed."""
        self._requests.on_failure(self._slot.name, request, failure)

    def on_busy(self) -> None:
        """The process gets its first item: it takes a lease."""
        self._slot.begin_computing()

    def on_call(self, call: runner_pb2.DeviceCall, *, is_of_copies: bool) -> None:
        """A device call has ended: count its cost, CPU seconds on a CPU, device seconds elsewhere.

        What copies cost at low priority says nothing about a revision.
        """
        self._requests.intake.is_cost_doubted = False
        options, load = self._requests.options, self._requests.machine.pair[self._slot.name].load
        if load is None:
            return
        seconds = call.cpu_seconds if load.device == "cpu" else call.computed_seconds
        if not is_of_copies:
            self._requests.stats.get(load.key).count_call(seconds, call.rows)
        if call.rows:
            revision, elapsed = load.bundle.revision, call.computed_seconds
            options.emit(DeviceCallEnded(options.model, revision, call.items, call.rows, elapsed))

    def on_idle(self) -> None:
        """The process holds no item any more."""
        self._slot.end_computing()
        if self._slot.dispatcher.is_idle:
            self._requests.intake.admission.overload.on_idle()
