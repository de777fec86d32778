"""What follows when a runner is gone: who takes over, who is run again, who starts when."""

from common.clock import Clock
from common.errors import Failed, Interrupted
from inference.server.events import SwapDone
from inference.server.model.dependencies import ManagerKit, pause_seconds
from inference.server.model.fallbacks import Fallbacks
from inference.server.model.load import Load
from inference.server.model.roles import Role, Roles
from inference.server.model.slot import Slot
from inference.server.model.stats import Death, DeathLedger, StatsBook
from inference.server.request import Charge, Ticket
from inference.server.runner_client.protocol import EndReason, RunnerEnding

MAX_DEATHS = 2  # a request that two runners died with, the second time alone, is the cause


class Recovery:
    """Keeps a model's runners alive. Loop thread only."""

    def __init__(
        self, roles: Roles, book: StatsBook, ledger: DeathLedger, fallbacks: Fallbacks, kit: ManagerKit
    ) -> None:
        self._roles = roles
        self._fallbacks = fallbacks
        self._book = book
        self._ledger = ledger
        self._kit = kit
        self._clock: Clock = kit.clock

    @property
    def has_given_up(self) -> bool:
        """Whether the slot that should answer has died too often in a row."""
        active = self._roles.active
        return active is not None and active.deaths_in_row >= self._kit.respawn.give_up

    def ended(self, slot: Slot, ending: RunnerEnding, suspects: list[Ticket], waiting: list[Ticket]) -> None:
        """A process is gone: find out who takes its place, then run again what it held."""
        role = self._roles.role_of(slot)
        load = slot.load
        if load is not None and role is not Role.CANDIDATE:
            self._judge(slot, load, suspects, is_trial=role is Role.TRIAL)
        target = self._place(slot, role, load, ending)
        self._fallbacks.emptied(slot)
        self._start_again(slot)
        for ticket in waiting:
            self._requeue(ticket, target)
        for ticket in suspects:
            self._run_again(ticket, target)

    def start_due(self, now: float) -> None:
        """Start the processes whose pause is over."""
        for slot in self._roles.slots.values():
            if slot.respawn_at is None or now < slot.respawn_at:
                continue
            if slot.load is not None or self._kit.standby:
                slot.spawn()
            else:
                slot.respawn_at = None

    def _place(self, slot: Slot, role: Role, load: Load | None, ending: RunnerEnding) -> Slot | None:
        """Decide where a dead slot's load goes on.

        Returns:
            The slot that answers what it held; None if nothing does.
        """
        roles, now = self._roles, self._clock.monotonic()
        if role is Role.FALLBACK:
            self._fallbacks.give_up(f"its process ended: {slot.last_failure}")
        if load is None or role in (Role.CANDIDATE, Role.FREE, Role.FALLBACK):
            self._lose(slot, load, ending)
            return roles.answering() or roles.active
        if role is Role.PREVIOUS and (roles.trial is None or roles.trial.previous is not slot):
            roles.previous = None
            self._lose(slot, load, ending)
            return roles.active
        load.restart(now)
        if role is Role.TRIAL and roles.trial is not None:
            return roles.trial.previous or slot
        standby = roles.other(slot)
        if role is Role.ACTIVE and roles.role_of(standby) is Role.FREE and self._is_sooner(standby):
            self._take_over(slot, standby, load)
            return standby
        return slot

    def _is_sooner(self, standby: Slot) -> bool:
        return standby.state.name in ("READY", "STARTING")

    def _take_over(self, slot: Slot, standby: Slot, load: Load) -> None:
        """The process that stands ready in the free slot loads what the dead one held."""
        slot.load = None
        standby.deaths_in_row = slot.deaths_in_row
        self._roles.swap(standby)
        if standby.process is not None:
            standby.process.set_serving(True)
        standby.begin(load)
        bundle = load.bundle
        self._kit.emit(
            SwapDone(
                model=self._kit.model,
                change="slot_took_over",
                slot=standby.name,
                revision=bundle.revision,
                digest=bundle.bundle_digest,
                previous_digest=bundle.bundle_digest,
                transaction_id="",
                generation=self._roles.generation,
            )
        )

    def _lose(self, slot: Slot, load: Load | None, ending: RunnerEnding) -> None:
        """A load that nobody depends on is gone with its process."""
        slot.load = None
        if load is None:
            return
        if load.failure is None:
            reason = "LOAD_STALLED" if ending.reason is EndReason.LOAD_STALLED else "LOAD_FAILED"
            load.failure = Interrupted(f"its process ended: {slot.last_failure}", reason=reason)
        load.changed.notify()

    def _start_again(self, slot: Slot) -> None:
        needs_process = slot.load is not None or self._kit.standby
        if not needs_process or self._kit.is_stopping():
            return
        pause = pause_seconds(slot.deaths_in_row, self._kit.respawn) if slot.state.name == "FAILED" else 0.0
        slot.respawn_at = self._clock.monotonic() + pause
        if pause == 0.0:
            slot.spawn()

    def _judge(self, slot: Slot, load: Load, suspects: list[Ticket], *, is_trial: bool) -> None:
        """One death is one event; whose fault it was shows when the suspects have been run again."""
        held = {ticket.id for ticket in suspects if not ticket.internal}
        failed = len(held) if is_trial else 0
        for ticket in suspects:
            ticket.deaths += 1
            if is_trial:
                ticket.charge = Charge(load.bundle.bundle_digest, load.device, reason="")
        death = Death(self._book.of(load.key), held, failed=failed)
        self._ledger.add(death)
        for ticket in suspects:
            if ticket.deaths >= MAX_DEATHS:
                self._ledger.blame_input(ticket.id)
                slot.deaths_in_row = 0  # callers' inputs must not make the pauses grow

    def _run_again(self, ticket: Ticket, target: Slot | None) -> None:
        if ticket.internal:
            ticket.settle(Failed("its runner ended", reason="RUNNER_DIED"))
        elif ticket.deaths >= MAX_DEATHS:
            ticket.settle(Failed("this input ended the process that computed it, twice", reason="POISON_INPUT"))
        else:
            ticket.alone = True
            self._requeue(ticket, target)

    def _requeue(self, ticket: Ticket, target: Slot | None) -> None:
        if ticket.is_settled:
            ticket.let_go()
            return
        if target is None or target.load is None or ticket.internal:
            ticket.settle(Failed("its runner ended", reason="RUNNER_DIED"))
            return
        ticket.try_until = 0.0
        target.submit(ticket)
