"""One model: accepts requests, routes them to slots, retries them, and runs the periodic checks."""

import asyncio
from collections.abc import Sequence

from common import errors
from common.bundle import Committed
from hotslot.runner.v1 import runner_pb2
from inference.server.events import BatchSent, RequestHandedOver
from inference.server.model.cpu_fallback import CpuFallbackController
from inference.server.model.options import ModelOptions
from inference.server.model.recovery import Recovery, SelfTest
from inference.server.model.roles import Role, Roles, RouteDecision, choose_route, slot_event
from inference.server.model.shortage import ShortageAction
from inference.server.model.slot import OUT_OF_MEMORY, SHORTAGES, Load, Slot, SlotDependencies
from inference.server.model.stats import DeathTracker, StatsTable
from inference.server.model.trials import Trials, is_answering
from inference.server.request import Attribution, Failure, Payload, PendingRequest, Prediction
from inference.server.runner_client.protocol import RunnerEnding
from inference.server.scheduling.admission import AdmissionController, AdmissionRequest, draining_error
from inference.server.scheduling.dispatcher import Computed, Dispatcher

SLOT_NAMES = ("a", "b")
_NOT_FAILURES = ("CANCELLED", "DEADLINE_EXPIRED")  # reasons that are not counted against a model


class ModelManager:
    """Accepts, routes, retries and counts the requests of one model. Loop thread only."""

    def __init__(self, options: ModelOptions) -> None:
        self.options = options
        self.committed: Committed | None = None
        dependencies = SlotDependencies(
            options.clock, options.make_process, self._make_dispatcher, options.make_load_request, options.precision
        )
        self.roles = Roles(slots={name: Slot(name, self, dependencies) for name in SLOT_NAMES})
        self.stats = StatsTable()
        self.admission = AdmissionController(options.capacity)
        self._deaths = DeathTracker()
        self.trials = Trials(self.roles, self.stats, options)
        self.cpu_fallback = CpuFallbackController(self.roles, self.trials, options)
        self.recovery = Recovery(self.roles, self.stats, self._deaths, self.cpu_fallback, options)
        self._self_test = SelfTest(self.roles, options, self.probe_slot)
        self._open: dict[int, PendingRequest] = {}
        self.last_good_at: float | None = None  # clock.monotonic()
        self.last_good_seconds = 0.0

    def predict(self, payload: Payload, deadline: float) -> PendingRequest:
        """Accept a request and queue it on a slot.

        Args:
            payload: checked input of the model's task.
            deadline: clock.monotonic() at which the request fails.

        Returns:
            The pending request; its `outcome` is set once, to a Prediction or a HotslotError.

        Raises:
            HotslotError: refused; no state has changed.
        """
        if self.options.drain.is_draining:
            raise draining_error()
        now = self.options.clock.monotonic()
        decision = choose_route(self.roles, payload.rows, now, deadline)
        if decision is None or decision.slot.load is None:
            raise errors.NotReady("no model is loaded yet", reason="NOT_READY", retry_after_seconds=1.0)
        if not decision.slot.is_loaded and decision.slot.load.loaded_at == 0.0 and self.roles.answering_slot() is None:
            raise errors.NotReady("the model is being loaded", reason="NOT_READY", retry_after_seconds=1.0)
        expected = decision.slot.dispatcher.cost.at_best(payload.rows)
        self.admission.admit(AdmissionRequest(payload.size_bytes, deadline - now, expected))
        request = PendingRequest(payload, now, deadline, asyncio.get_running_loop().create_future())
        request.on_done = self._on_request_done
        self._open[request.id] = request
        self._send(request, decision)
        return request

    def cancel_request(self, request: PendingRequest) -> None:
        """Cancel a request whose caller is gone; the runner skips it if it has not begun."""
        request.outcome.cancel()
        for slot in self.roles.slots.values():
            slot.dispatcher.cancel(request)
        request.release()

    def probe_slot(self, slot: Slot, payload: Payload, deadline: float) -> PendingRequest:
        """Send a probe or self-test to one slot, whatever its role. Admission and traffic counters do not apply.

        Raises:
            Conflict: the slot holds no loaded model.
        """
        if not slot.is_loaded:
            raise errors.Conflict("the slot holds no loaded model", reason="NOT_LOADED")
        request = PendingRequest(
            payload, self.options.clock.monotonic(), deadline, asyncio.get_running_loop().create_future(), internal=True
        )
        request.on_done = self._forget
        self._open[request.id] = request
        slot.submit(request)
        return request

    def tick(self) -> None:
        """Check deadlines, stuck runners, the trial lease, restarts and the self-test; called about every 50 ms."""
        now = self.options.clock.monotonic()
        self._expire(now)
        for slot in self.roles.slots.values():
            over = slot.dispatcher.overdue_seconds(now)
            if over > 0:
                slot.kill(f"no progress within its limit, {over:.2f} s over")
            load = slot.load
            if load is not None and load.is_loaded and now - load.loaded_at >= self.options.respawn.steady_seconds:
                slot.deaths_in_row = 0
        self.trials.end_expired_trial(now)
        if not self.options.is_stopping():
            self.recovery.start_due_processes(now)
            self._self_test.send_if_due(now, self.last_good_at)

    @property
    def waiting(self) -> int:
        """Accepted requests without an answer."""
        return self.admission.requests

    # Events of the slots.

    def on_slot_changed(self, slot: Slot, change: str, detail: str = "") -> None:
        """Emit the change."""
        self.options.emit(slot_event(self.options.model, self.roles, slot, change, detail))

    def on_runner_ready(self, slot: Slot) -> None:
        """The process is idle: its devices are known."""
        self.on_slot_changed(slot, "runner_ready")
        self.cpu_fallback.on_devices_known(slot)

    def on_runner_started(self, slot: Slot) -> None:
        """A process was started; it gets full priority if requests may be routed to its slot."""
        self._set_priority(slot)
        self.on_slot_changed(slot, "runner_started")

    def on_loaded(self, slot: Slot) -> None:
        """Send a self-test to the slot."""
        self._set_priority(slot)
        self._self_test.send(slot)

    def on_load_failed(self, slot: Slot, outcome: runner_pb2.LoadOutcome) -> None:
        """Give up a candidate; any other load is retried in a new process, after growing pauses."""
        failure, load = outcome.failure, slot.load
        detail = f"{failure.reason}: {failure.message}"
        self.options.emit(slot_event(self.options.model, self.roles, slot, "load_failed", detail, failure.reason))
        if failure.reason in SHORTAGES:
            self.cpu_fallback.handle_load_shortage(slot, failure.reason)
        if slot.state.name == "RETIRING":
            return
        if load is not None and self.roles.role_of(slot) is Role.CANDIDATE:
            load.failure = _load_error(outcome)
            load.changed.notify()
            slot.retire(f"load failed: {failure.reason}")
        else:
            slot.kill(f"load failed: {detail}")

    def on_runner_ended(
        self, slot: Slot, ending: RunnerEnding, suspect_requests: list[PendingRequest], waiting: list[PendingRequest]
    ) -> None:
        """Emit the end of the process and recover from it."""
        was_requested = slot.state.name == "EMPTY"
        self.on_slot_changed(
            slot, "runner_retired" if was_requested else "runner_died", f"{ending.reason}: {ending.detail}"
        )
        self.recovery.on_runner_ended(slot, ending, suspect_requests, waiting)

    def on_request_answered(self, slot: Slot, request: PendingRequest, computed: Computed) -> None:
        """Finish a request with its prediction; during a trial the first slot to answer wins."""
        load = slot.load
        if load is None or request.is_done:
            return
        now = self.options.clock.monotonic()
        seconds = now - request.accepted_at
        prediction = Prediction(
            outcome=computed.outcome,
            served_by=load.served_by(self.options.model, slot.name, self.options.node),
            queued_seconds=max(0.0, request.sent_at - request.accepted_at),
            prepared_seconds=computed.prepared_seconds,
            computed_seconds=computed.computed_seconds,
        )
        load.is_proven = True
        if not request.internal:
            stats = self.stats.get(load.key)
            stats.count_answer(seconds)
            if request.attribution is not None:
                self.stats.count_attribution(request.attribution)
                self.trials.apply_attribution(request.attribution)
        self.cpu_fallback.on_slot_answered(slot)
        if slot is self.roles.answering_slot():
            self.last_good_at, self.last_good_seconds = now, seconds
        request.finish(prediction)

    def on_request_failed(self, slot: Slot, request: PendingRequest, failure: Failure) -> None:
        """Hand a request that the trial failed to the previous slot; finish any other with its error."""
        if request.is_done or request.on_slot != slot.name:
            return
        if failure.is_input_error:
            request.finish(errors.InputRefused(failure.message, reason=failure.reason, field=failure.field))
            return
        if failure.reason in _NOT_FAILURES and not request.try_until:
            request.finish(errors.DeadlineMissed("the deadline passed before it was computed"))
            return
        if slot.load is not None and self._self_test.is_self_test(request):
            slot.load.is_proven = False
            self.cpu_fallback.on_self_test_failed(slot, failure.reason)
        if failure.reason == OUT_OF_MEMORY and slot.load is not None:
            self._handle_out_of_memory(slot, request, slot.load)
            return
        if request.try_until:
            self._hand_over(slot, request, "TOO_SLOW" if failure.reason in _NOT_FAILURES else failure.reason)
            return
        if not request.internal and request.attribution is None and slot.load is not None:
            self.stats.get(slot.load.key).count_failure(failure.reason)
        request.finish(errors.Failed(failure.message or "the model failed", reason=failure.reason))

    def on_batch_sent(self, slot: Slot, requests: Sequence[PendingRequest]) -> None:
        """Emit the batch size."""
        revision = "" if slot.load is None else slot.load.bundle.revision
        rows = sum(request.payload.rows for request in requests)
        self.options.emit(BatchSent(self.options.model, revision, len(requests), rows))

    def on_batch_computed(self, slot: Slot, reply: runner_pb2.BatchReply) -> None:
        """Count the cost of a batch: CPU seconds on a CPU, device seconds elsewhere."""
        if slot.load is None:
            return
        seconds = reply.cpu_seconds if slot.load.device == "cpu" else reply.computed_seconds
        self.stats.get(slot.load.key).count_batch(seconds, reply.rows)

    # Helpers.

    def _send(self, request: PendingRequest, decision: RouteDecision) -> None:
        request.try_until = decision.try_until
        if decision.previous is not None:
            request.leases.append(decision.previous.lease())
        decision.slot.submit(request)

    def _handle_out_of_memory(self, slot: Slot, request: PendingRequest, load: Load) -> None:
        """Hand the request to the other slot, hold it for the CPU fallback, or fail it."""
        request.out_of_memory_on += (load.placement,)
        action = self.cpu_fallback.handle_item_shortage(slot, request)
        is_previous = self.roles.role_of(slot) is Role.PREVIOUS
        if action is ShortageAction.USE_OTHER_SLOT and not is_previous:
            self._hand_over(slot, request, OUT_OF_MEMORY)
            return
        if (
            not request.internal
            and request.attribution is None
            and action is not ShortageAction.ROLL_BACK_TRIAL_AND_FALL_BACK
        ):
            self.stats.get(load.key).count_failure(OUT_OF_MEMORY)
        if action is ShortageAction.USE_OTHER_SLOT:
            request.try_until = 0.0
            self.roles.other_slot(slot).submit(request)
        elif action is ShortageAction.REFUSE or request.internal:
            request.finish(self.cpu_fallback.out_of_memory_error())
        else:
            request.attribution = None  # no slot had memory for it: not counted against the trial
            self.cpu_fallback.hold_request(request)

    def _hand_over(self, slot: Slot, request: PendingRequest, reason: str) -> None:
        """Give a request that the trial failed to the previous slot; the failure counts once that slot has answered."""
        request.try_until = 0.0
        target = self._takeover_slot(slot)
        if slot.load is None or target is None:
            request.finish(errors.Failed("the model failed", reason=reason))
            return
        request.attribution = Attribution(slot.load.bundle.bundle_digest, slot.load.device, reason)
        self.options.emit(RequestHandedOver(self.options.model, slot.load.bundle.revision, reason))
        slot.dispatcher.cancel(request)
        target.submit(request)

    def _takeover_slot(self, slot: Slot) -> Slot | None:
        """The slot for requests that `slot` fails: the previous one during a trial, after a rollback the active one."""
        target = self.roles.active if self.roles.active is not slot else self.roles.previous
        return target if target is not None and target.load is not None else None

    def _expire(self, now: float) -> None:
        for request in list(self._open.values()):
            if now >= request.deadline:
                request.finish(errors.DeadlineMissed("the deadline passed while it waited"))
            elif request.try_until and now >= request.try_until:
                slot = self.roles.slots[request.on_slot]
                if self._takeover_slot(slot) is not None:
                    self._hand_over(slot, request, "TOO_SLOW")

    def _set_priority(self, slot: Slot) -> None:
        if slot.process is not None and is_answering(self.roles.role_of(slot)):
            slot.process.set_serving(True)

    def _on_request_done(self, request: PendingRequest) -> None:
        self.admission.release(request.payload.size_bytes)
        self._forget(request)
        self._deaths.on_request_done(request.id)

    def _forget(self, request: PendingRequest) -> None:
        self._open.pop(request.id, None)
        if request.internal and request.outcome.done() and not request.outcome.cancelled():
            request.outcome.exception()  # read it, or asyncio logs that it was never retrieved

    def _make_dispatcher(self, slot: Slot) -> Dispatcher:
        return Dispatcher(slot, self.options.clock, self.options.budget, self.options.limits)


def _load_error(outcome: runner_pb2.LoadOutcome) -> errors.HotslotError:
    """Convert the failure of a load to the error that LoadSlot returns."""
    failure = outcome.failure
    if failure.reason in SHORTAGES:
        numbers = {"needed_bytes": outcome.needed_bytes, "free_bytes": outcome.free_bytes}
        metadata = {"device": outcome.device, **{name: str(number) for name, number in numbers.items() if number}}
        return errors.Overloaded(failure.message, reason=failure.reason, metadata=metadata)
    if failure.reason in ("BUNDLE_BROKEN", "BUNDLE_FOREIGN"):
        return errors.Conflict(failure.message, reason=failure.reason)
    return errors.Interrupted(failure.message, reason=failure.reason or "LOAD_FAILED")
