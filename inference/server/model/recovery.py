"""Recovery after the end of a runner: restarts, takeover by the standby process, retries of requests; self-tests."""

from collections.abc import Callable

from common.clock import Clock
from common.errors import Failed, Interrupted
from inference.server.events import SwapDone
from inference.server.model.cpu_fallback import CpuFallbackController
from inference.server.model.options import ModelOptions, pause_seconds
from inference.server.model.roles import Role, Roles
from inference.server.model.slot import Load, Slot
from inference.server.model.stats import DeathTracker, RunnerDeath, StatsTable
from inference.server.request import Attribution, Payload, PendingRequest
from inference.server.runner_client.protocol import EndReason, RunnerEnding

MAX_DEATHS = 2  # a request that ended two runners, the second time computed alone, is the cause
SELF_TEST_PAUSE_SECONDS = 1.0  # between two self-tests, at least
MIN_SELF_TEST_TIMEOUT_SECONDS = 10.0

ProbeSlot = Callable[[Slot, Payload, float], PendingRequest]


class Recovery:
    """Restarts a model's runners and retries their requests. Loop thread only."""

    def __init__(
        self,
        roles: Roles,
        stats: StatsTable,
        deaths: DeathTracker,
        cpu_fallback: CpuFallbackController,
        options: ModelOptions,
    ) -> None:
        self._roles = roles
        self._cpu_fallback = cpu_fallback
        self._stats = stats
        self._deaths = deaths
        self._options = options
        self._clock: Clock = options.clock

    @property
    def has_given_up(self) -> bool:
        """Whether the active slot's process has ended too often in a row."""
        active = self._roles.active
        return active is not None and active.deaths_in_row >= self._options.respawn.give_up

    def on_runner_ended(
        self, slot: Slot, ending: RunnerEnding, suspect_requests: list[PendingRequest], waiting: list[PendingRequest]
    ) -> None:
        """Count the death, choose the slot that continues, schedule a restart, and retry the requests."""
        role = self._roles.role_of(slot)
        load = slot.load
        if load is not None and role is not Role.CANDIDATE:
            self._record_death(slot, load, suspect_requests, is_trial=role is Role.TRIAL)
        target = self._choose_target(slot, role, load, ending)
        self._cpu_fallback.on_slot_emptied(slot)
        self._schedule_restart(slot)
        for request in waiting:
            self._requeue(request, target)
        for request in suspect_requests:
            self._retry(request, target)

    def start_due_processes(self, now: float) -> None:
        """Start the processes whose restart pause has passed."""
        for slot in self._roles.slots.values():
            if slot.respawn_at is None or now < slot.respawn_at:
                continue
            if slot.load is not None or self._options.standby:
                slot.spawn()
            else:
                slot.respawn_at = None

    def _choose_target(self, slot: Slot, role: Role, load: Load | None, ending: RunnerEnding) -> Slot | None:
        """Decide which slot continues after the end of a process; the load may move there.

        Returns:
            The slot that retries its requests; None if there is none.
        """
        roles, now = self._roles, self._clock.monotonic()
        if role is Role.FALLBACK:
            self._cpu_fallback.abandon(f"the process ended: {slot.last_failure}")
        if load is None or role in (Role.CANDIDATE, Role.FREE, Role.FALLBACK):
            self._drop_load(slot, load, ending)
            return roles.answering_slot() or roles.active
        if role is Role.PREVIOUS and (roles.trial is None or roles.trial.previous is not slot):
            roles.previous = None
            self._drop_load(slot, load, ending)
            return roles.active
        load.reset(now)
        if role is Role.TRIAL and roles.trial is not None:
            return roles.trial.previous or slot
        standby = roles.other_slot(slot)
        if role is Role.ACTIVE and roles.role_of(standby) is Role.FREE and self._is_starting_or_ready(standby):
            self._take_over(slot, standby, load)
            return standby
        return slot

    def _is_starting_or_ready(self, standby: Slot) -> bool:
        return standby.state.name in ("READY", "STARTING")

    def _take_over(self, slot: Slot, standby: Slot, load: Load) -> None:
        """Load in the standby process what the ended one held; its slot becomes active."""
        slot.load = None
        standby.deaths_in_row = slot.deaths_in_row
        self._roles.set_active(standby)
        if standby.process is not None:
            standby.process.set_serving(True)
        standby.assign(load)
        bundle = load.bundle
        self._options.emit(
            SwapDone(
                model=self._options.model,
                change="slot_took_over",
                slot=standby.name,
                revision=bundle.revision,
                digest=bundle.bundle_digest,
                previous_digest=bundle.bundle_digest,
                transaction_id="",
                generation=self._roles.generation,
            )
        )

    def _drop_load(self, slot: Slot, load: Load | None, ending: RunnerEnding) -> None:
        """Remove a load that no caller depends on."""
        slot.load = None
        if load is None:
            return
        if load.failure is None:
            reason = "LOAD_STALLED" if ending.reason is EndReason.LOAD_STALLED else "LOAD_FAILED"
            load.failure = Interrupted(f"the process ended: {slot.last_failure}", reason=reason)
        load.changed.notify()

    def _schedule_restart(self, slot: Slot) -> None:
        needs_process = slot.load is not None or self._options.standby
        if not needs_process or self._options.is_stopping():
            return
        pause = pause_seconds(slot.deaths_in_row, self._options.respawn) if slot.state.name == "FAILED" else 0.0
        slot.respawn_at = self._clock.monotonic() + pause
        if pause == 0.0:
            slot.spawn()

    def _record_death(self, slot: Slot, load: Load, suspect_requests: list[PendingRequest], *, is_trial: bool) -> None:
        """Record one death; it is counted when the suspect requests have been retried."""
        held = {request.id for request in suspect_requests if not request.internal}
        failed = len(held) if is_trial else 0
        for request in suspect_requests:
            request.deaths += 1
            if is_trial:
                request.attribution = Attribution(load.bundle.bundle_digest, load.device, reason="")
        death = RunnerDeath(self._stats.get(load.key), held, failed=failed)
        self._deaths.add(death)
        for request in suspect_requests:
            if request.deaths >= MAX_DEATHS:
                self._deaths.mark_input_at_fault(request.id)
                slot.deaths_in_row = 0  # a caller's input must not make the restart pauses grow

    def _retry(self, request: PendingRequest, target: Slot | None) -> None:
        if request.internal:
            request.finish(Failed("the runner process ended", reason="RUNNER_DIED"))
        elif request.deaths >= MAX_DEATHS:
            request.finish(Failed("this input ended two runner processes", reason="POISON_INPUT"))
        else:
            request.alone = True
            self._requeue(request, target)

    def _requeue(self, request: PendingRequest, target: Slot | None) -> None:
        if request.is_done:
            request.release()
            return
        if target is None or target.load is None or request.internal:
            request.finish(Failed("the runner process ended", reason="RUNNER_DIED"))
            return
        request.try_until = 0.0
        target.submit(request)


class SelfTest:
    """Sends the self-test request and recognises its result. Loop thread only.

    The request takes the same path as a caller's: after each load, and when no request has succeeded for a while.
    """

    def __init__(self, roles: Roles, options: ModelOptions, probe_slot: ProbeSlot) -> None:
        self._roles = roles
        self._options = options
        self._probe_slot = probe_slot
        self._request: PendingRequest | None = None
        self._sent_at = 0.0

    def is_self_test(self, request: PendingRequest) -> bool:
        """Whether a request is the latest self-test."""
        return request is self._request

    def send(self, slot: Slot) -> None:
        """Send a self-test to a slot."""
        now = self._sent_at = self._options.clock.monotonic()
        limit = max(MIN_SELF_TEST_TIMEOUT_SECONDS, slot.dispatcher.limit_of(1))
        self._request = self._probe_slot(slot, self._options.self_test, now + limit)

    def send_if_due(self, now: float, last_good_at: float | None) -> None:
        """Test the answering slot if no request has succeeded for `self_test_seconds`, or if it is not proven."""
        slot = self._roles.answering_slot()
        if slot is None or slot.load is None or (self._request is not None and not self._request.is_done):
            return
        since = max(last_good_at or 0.0, slot.load.loaded_at)
        is_due = now - since >= self._options.self_test_seconds or not slot.load.is_proven
        if is_due and now - self._sent_at >= SELF_TEST_PAUSE_SECONDS:
            self.send(slot)
