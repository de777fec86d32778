"""One model: the way of its requests through its slots, and what ticks on the way."""

import asyncio
from collections.abc import Sequence

from common import errors
from common.bundle import Committed
from hotslot.runner.v1 import runner_pb2
from inference.server.events import BatchSent, HandedOver
from inference.server.model.dependencies import ManagerKit
from inference.server.model.fallbacks import Fallbacks
from inference.server.model.load import Load
from inference.server.model.recovery import Recovery
from inference.server.model.roles import Role, Roles
from inference.server.model.route import Route, route
from inference.server.model.self_test import SelfTest
from inference.server.model.shortage import OUT_OF_MEMORY, SHORTAGES, Step
from inference.server.model.slot import Slot, SlotParts
from inference.server.model.stats import DeathLedger, StatsBook
from inference.server.model.telling import load_error, slot_event
from inference.server.model.trials import Trials, is_answering
from inference.server.request import Answer, Charge, Failure, Payload, Ticket
from inference.server.runner_client.protocol import RunnerEnding
from inference.server.scheduling.admission import Ask, Entrance, draining_error
from inference.server.scheduling.dispatcher import Computed, Dispatcher

SLOT_NAMES = ("a", "b")
_BLAMELESS = ("CANCELLED", "DEADLINE_EXPIRED")  # nobody waited any more


class ModelManager:
    """Routes, leases, retries and counts for one model. Loop thread only."""

    def __init__(self, kit: ManagerKit) -> None:
        self.kit = kit
        self.committed: Committed | None = None
        parts = SlotParts(kit.clock, kit.make_process, self._make_dispatcher, kit.load_request, kit.precision)
        self.roles = Roles(slots={name: Slot(name, self, parts) for name in SLOT_NAMES})
        self.book = StatsBook()
        self.entrance = Entrance(kit.capacity)
        self._ledger = DeathLedger()
        self.trials = Trials(self.roles, self.book, kit)
        self.fallbacks = Fallbacks(self.roles, self.trials, kit)
        self.recovery = Recovery(self.roles, self.book, self._ledger, self.fallbacks, kit)
        self._self_test = SelfTest(self.roles, kit, self.ask_slot)
        self._open: dict[int, Ticket] = {}
        self.last_good_at: float | None = None  # clock.monotonic()
        self.last_good_seconds = 0.0

    # The way of a request.

    def predict(self, payload: Payload, deadline: float) -> Ticket:
        """Accept a request and send it on its way.

        Args:
            payload: checked input of the model's task.
            deadline: clock.monotonic() after which nobody waits.

        Returns:
            A ticket whose `outcome` is set once: to the answer or to a HotslotError.

        Raises:
            HotslotError: it is refused; nothing was kept.
        """
        if self.kit.drain.is_draining:
            raise draining_error()
        now = self.kit.clock.monotonic()
        way = route(self.roles, payload.rows, now, deadline)
        if way is None or way.slot.load is None:
            raise errors.NotReady("no model is loaded yet", reason="NOT_READY", retry_after_seconds=1.0)
        if not way.slot.is_loaded and way.slot.load.loaded_at == 0.0 and self.roles.answering() is None:
            raise errors.NotReady("the model is being loaded", reason="NOT_READY", retry_after_seconds=1.0)
        expected = way.slot.dispatcher.cost.at_best(payload.rows)
        self.entrance.admit(Ask(payload.size_bytes, deadline - now, expected))
        ticket = Ticket(payload, now, deadline, asyncio.get_running_loop().create_future())
        ticket.on_settled = self._left
        self._open[ticket.id] = ticket
        self._send(ticket, way)
        return ticket

    def abandon(self, ticket: Ticket) -> None:
        """The caller is gone: what has not begun is spared."""
        ticket.outcome.cancel()
        for slot in self.roles.slots.values():
            slot.dispatcher.cancel(ticket)
        ticket.let_go()

    def ask_slot(self, slot: Slot, payload: Payload, deadline: float) -> Ticket:
        """Ask one slot directly, whatever its role: for probes and self-tests, past the entrance.

        Raises:
            Conflict: it holds no loaded model.
        """
        if not slot.is_loaded:
            raise errors.Conflict("the slot holds no loaded model", reason="NOT_LOADED")
        ticket = Ticket(
            payload, self.kit.clock.monotonic(), deadline, asyncio.get_running_loop().create_future(), internal=True
        )
        ticket.on_settled = self._forget
        self._open[ticket.id] = ticket
        slot.submit(ticket)
        return ticket

    def tick(self) -> None:
        """Look after everything that time does; called about every 50 ms."""
        now = self.kit.clock.monotonic()
        self._expire(now)
        for slot in self.roles.slots.values():
            over = slot.dispatcher.overdue_seconds(now)
            if over > 0:
                slot.kill(f"no progress within its limit, {over:.2f} s over")
            load = slot.load
            if load is not None and load.is_loaded and now - load.loaded_at >= self.kit.respawn.steady_seconds:
                slot.deaths_in_row = 0
        self.trials.check_lease(now)
        if not self.kit.is_stopping():
            self.recovery.start_due(now)
            self._self_test.ask_if_due(now, self.last_good_at)

    @property
    def waiting(self) -> int:
        """Accepted requests without an answer."""
        return self.entrance.requests

    # What the slots say.

    def slot_changed(self, slot: Slot, change: str, detail: str = "") -> None:
        """For the log and the metrics."""
        self.kit.emit(slot_event(self.kit.model, self.roles, slot, change, detail))

    def slot_ready(self, slot: Slot) -> None:
        """A process stands."""
        self.slot_changed(slot, "runner_ready")
        self.fallbacks.devices_seen(slot)

    def slot_started(self, slot: Slot) -> None:
        """A process was started: one that callers wait for imports and loads at full priority."""
        self._set_priority(slot)
        self.slot_changed(slot, "runner_started")

    def slot_loaded(self, slot: Slot) -> None:
        """Its load answers from now on; it is tested by the real way at once."""
        self._set_priority(slot)
        self._self_test.ask(slot)

    def slot_refused(self, slot: Slot, outcome: runner_pb2.LoadOutcome) -> None:
        """A load failed: a candidate is given up, what should answer is tried again with growing pauses."""
        failure, load = outcome.failure, slot.load
        told = f"{failure.reason}: {failure.message}"
        self.kit.emit(slot_event(self.kit.model, self.roles, slot, "load_failed", told, failure.reason))
        if failure.reason in SHORTAGES:
            self.fallbacks.after_load(slot, failure.reason)
        if slot.state.name == "RETIRING":
            return
        if load is not None and self.roles.role_of(slot) is Role.CANDIDATE:
            load.failure = load_error(outcome)
            load.changed.notify()
            slot.retire(f"load failed: {failure.reason}")
        else:
            slot.kill(f"load failed: {told}")

    def slot_ended(self, slot: Slot, ending: RunnerEnding, suspects: list[Ticket], waiting: list[Ticket]) -> None:
        """A process is gone."""
        was_asked = slot.state.name == "EMPTY"
        self.slot_changed(slot, "runner_retired" if was_asked else "runner_died", f"{ending.reason}: {ending.detail}")
        self.recovery.ended(slot, ending, suspects, waiting)

    def answered(self, slot: Slot, ticket: Ticket, computed: Computed) -> None:
        """A request has its answer; during a trial, from whichever slot was first."""
        load = slot.load
        if load is None or ticket.is_settled:
            return
        now = self.kit.clock.monotonic()
        seconds = now - ticket.accepted_at
        answer = Answer(
            outcome=computed.outcome,
            served_by=load.served_by(self.kit.model, slot.name, self.kit.node),
            queued_seconds=max(0.0, ticket.sent_at - ticket.accepted_at),
            prepared_seconds=computed.prepared_seconds,
            computed_seconds=computed.computed_seconds,
        )
        load.is_proven = True
        if not ticket.internal:
            stats = self.book.of(load.key)
            stats.count_answer(seconds)
            if ticket.charge is not None:
                self.book.settle_charge(ticket.charge)
                self.trials.settled(ticket.charge)
        self.fallbacks.proven(slot)
        if slot is self.roles.answering():
            self.last_good_at, self.last_good_seconds = now, seconds
        ticket.settle(answer)

    def failed(self, slot: Slot, ticket: Ticket, failure: Failure) -> None:
        """A request has no answer: a trial's goes to the previous slot, any other to its caller."""
        if ticket.is_settled or ticket.on_slot != slot.name:
            return
        if failure.blames_caller:
            ticket.settle(errors.InputRefused(failure.message, reason=failure.reason, field=failure.field))
            return
        if failure.reason in _BLAMELESS and not ticket.try_until:
            ticket.settle(errors.DeadlineMissed("the deadline passed before it was computed"))
            return
        if slot.load is not None and self._self_test.is_mine(ticket):
            slot.load.is_proven = False
            self.fallbacks.disproven(slot, failure.reason)
        if failure.reason == OUT_OF_MEMORY and slot.load is not None:
            self._ran_out(slot, ticket, slot.load)
            return
        if ticket.try_until:
            self._hand_over(slot, ticket, "TOO_SLOW" if failure.reason in _BLAMELESS else failure.reason)
            return
        if not ticket.internal and ticket.charge is None and slot.load is not None:
            self.book.of(slot.load.key).count_failure(failure.reason)
        ticket.settle(errors.Failed(failure.message or "the model failed", reason=failure.reason))

    def batch_begun(self, slot: Slot, tickets: Sequence[Ticket]) -> None:
        """For the metrics."""
        revision = "" if slot.load is None else slot.load.bundle.revision
        rows = sum(ticket.payload.rows for ticket in tickets)
        self.kit.emit(BatchSent(self.kit.model, revision, len(tickets), rows))

    def batch_done(self, slot: Slot, reply: runner_pb2.BatchReply) -> None:
        """Count what a batch cost: CPU seconds on a CPU, the device's otherwise."""
        if slot.load is None:
            return
        seconds = reply.cpu_seconds if slot.load.device == "cpu" else reply.computed_seconds
        self.book.of(slot.load.key).count_batch(seconds, reply.rows)

    # Helpers.

    def _send(self, ticket: Ticket, way: Route) -> None:
        ticket.try_until = way.try_until
        if way.previous is not None:
            ticket.leases.append(way.previous.lease())
        way.slot.submit(ticket)

    def _ran_out(self, slot: Slot, ticket: Ticket, load: Load) -> None:
        """No memory for a single item: another slot answers, or the fallback device, or the caller is told."""
        ticket.ran_out += (load.place,)
        step = self.fallbacks.after_item(slot, ticket)
        is_previous = self.roles.role_of(slot) is Role.PREVIOUS
        if step is Step.OTHER_ANSWERS and not is_previous:
            self._hand_over(slot, ticket, OUT_OF_MEMORY)
            return
        if not ticket.internal and ticket.charge is None and step is not Step.END_TRIAL_AND_FALL_BACK:
            self.book.of(load.key).count_failure(OUT_OF_MEMORY)
        if step is Step.OTHER_ANSWERS:
            ticket.try_until = 0.0
            self.roles.other(slot).submit(ticket)
        elif step is Step.REFUSE or ticket.internal:
            ticket.settle(self.fallbacks.refusal())
        else:
            ticket.charge = None  # what nobody has room for is nobody's fault
            self.fallbacks.wait(ticket)

    def _hand_over(self, slot: Slot, ticket: Ticket, reason: str) -> None:
        """The trial failed a request: the previous slot answers it, and it counts when that has answered."""
        ticket.try_until = 0.0
        target = self._taker_over(slot)
        if slot.load is None or target is None:
            ticket.settle(errors.Failed("the model failed", reason=reason))
            return
        ticket.charge = Charge(slot.load.bundle.bundle_digest, slot.load.device, reason)
        self.kit.emit(HandedOver(self.kit.model, slot.load.bundle.revision, reason))
        slot.dispatcher.cancel(ticket)
        target.submit(ticket)

    def _taker_over(self, slot: Slot) -> Slot | None:
        """Who answers what a slot fails: the one behind a trial, or after a rollback the active one."""
        target = self.roles.active if self.roles.active is not slot else self.roles.previous
        return target if target is not None and target.load is not None else None

    def _expire(self, now: float) -> None:
        for ticket in list(self._open.values()):
            if now >= ticket.deadline:
                ticket.settle(errors.DeadlineMissed("the deadline passed while it waited"))
            elif ticket.try_until and now >= ticket.try_until:
                slot = self.roles.slots[ticket.on_slot]
                if self._taker_over(slot) is not None:
                    self._hand_over(slot, ticket, "TOO_SLOW")

    def _set_priority(self, slot: Slot) -> None:
        if slot.process is not None and is_answering(self.roles.role_of(slot)):
            slot.process.set_serving(True)

    def _left(self, ticket: Ticket) -> None:
        self.entrance.leave(ticket.payload.size_bytes)
        self._forget(ticket)
        self._ledger.settled(ticket.id)

    def _forget(self, ticket: Ticket) -> None:
        self._open.pop(ticket.id, None)
        if ticket.internal and ticket.outcome.done() and not ticket.outcome.cancelled():
            ticket.outcome.exception()  # looked at: nobody else may

    def _make_dispatcher(self, slot: Slot) -> Dispatcher:
        return Dispatcher(slot, self.kit.clock, self.kit.budget, self.kit.limits)
