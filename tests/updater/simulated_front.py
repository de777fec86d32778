"""A front in memory: two slots, trials with a term, numbers by revision, lives that end."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from updater.actions import Failed, FaultKind
from updater.ports import DeviceSeen, EffectFailed, FrontState, RevisionSeen, SlotSeen, TrialEndSeen, TrialSeen
from updater.record import Counts


@dataclass(frozen=True, slots=True)
class Held:
    """What a slot holds."""

    load_id: str
    bundle_digest: str
    state: str = "LOADED"
    restarts: int = 0


@dataclass(slots=True)
class SimFront:
    """Implements the port Control. `boot_from` says what the committed pointer names."""

    boot_from: Callable[[], str]
    loads: Callable[[str], str]  # bundle digest → reason with which its load fails, empty if it does not
    is_up: bool = True
    is_draining: bool = False
    ended_orderly: bool = False
    lives: int = 0
    generation: int = 1
    slots: list[Held | None] = field(default_factory=lambda: [None, None])
    active: int = -1
    previous: int = -1
    is_on_trial: bool = False
    term_left: float = 0.0
    last_trial: TrialEndSeen | None = None
    counts: dict[str, Counts] = field(default_factory=dict)
    baseline: Counts = field(default_factory=Counts)
    lost: int = 0  # callers that met nothing
    activated: list[str] = field(default_factory=list)  # bundles whose trial began, in order
    _ids: int = 0

    # What happens to it.

    def start(self) -> None:
        """A new life: loads what the pointer names; nothing else is left."""
        digest = self.boot_from()
        self.is_up, self.is_draining, self.lives = True, False, self.lives + 1
        self.slots, self.active, self.previous, self.is_on_trial = [None, None], -1, -1, False
        self.counts, self.last_trial = {}, None
        if digest:
            state = "FAILED" if self.loads(digest) else "LOADED"
            self.slots[0], self.active = Held(self._new_id(), digest, state), 0

    def end(self, *, orderly: bool) -> None:
        """The process is gone."""
        self.is_up, self.ended_orderly = False, orderly

    def respawns(self) -> None:
        """The runner that should answer dies again."""
        held = self.slots[self.active]
        if held is not None:
            self.slots[self.active] = replace(held, restarts=held.restarts + 1)

    def yields(self) -> None:
        """The trial's slot is needed for something else."""
        self._back("YIELDED")

    def passes(self, seconds: float) -> None:
        """Time passes: a term may run out."""
        if self.is_up and self.is_on_trial:
            self.term_left -= seconds
            if self.term_left <= 0 and self.previous >= 0:
                self._back("TERM_EXPIRED")

    def answers(self, requests: int, fails: Callable[[str], str]) -> None:
        """Callers come; what a trial fails the previous slot answers."""
        held = self.slots[self.active] if self.is_up and self.active >= 0 else None
        if held is None or held.state != "LOADED":
            self.lost += requests
            return
        reason = fails(held.bundle_digest)
        if reason and not (self.is_on_trial and self.previous >= 0):
            self.lost += requests
        before = self.counts.get(held.bundle_digest, Counts())
        self.counts[held.bundle_digest] = _counted(before, requests, reason)

    def bundle_of(self, load_id: str) -> str | None:
        """What a load holds; None if it is gone."""
        number = self._find(load_id) if self.is_up else -1
        held = self.slots[number] if number >= 0 else None
        return None if held is None else held.bundle_digest

    @property
    def serving(self) -> str:
        """Bundle digest of what answers; empty if nothing does."""
        held = self.slots[self.active] if self.is_up and self.active >= 0 else None
        return "" if held is None or held.state != "LOADED" else held.bundle_digest

    # The port.

    def state(self, deadline_seconds: float) -> FrontState:
        self._reach()
        active = self.slots[self.active] if self.active >= 0 else None
        return FrontState(
            life=f"life {self.lives}",
            generation=self.generation,
            slots=tuple(self._seen(number) for number in (0, 1)),
            active_load_id="" if active is None else active.load_id,
            is_ready=bool(self.serving),
            is_draining=self.is_draining,
            last_ended_orderly=self.ended_orderly,
            trial=self._trial(),
            last_trial=self.last_trial,
            stats=tuple(RevisionSeen(digest, "cpu", counts) for digest, counts in self.counts.items()),
            devices=(DeviceSeen("cpu", "float32"),),
        )

    def load(
        self, bundle_digest: str, device: str, transaction_id: str, expected_generation: int, deadline_seconds: float
    ) -> str:
        self._reach()
        for held in self.slots:
            if held is not None and held.bundle_digest == bundle_digest:
                return held.load_id
        self._check(expected_generation)
        reason = self.loads(bundle_digest)
        if reason:
            raise EffectFailed(Failed(FaultKind.PERMANENT, reason, "it does not load"))
        free = next((n for n in (0, 1) if self.slots[n] is None and n != self.active), None)
        if free is None:
            raise EffectFailed(Failed(FaultKind.TRANSIENT, "NO_FREE_SLOT", "both slots hold a load"))
        self.slots[free] = Held(self._new_id(), bundle_digest)
        return self._held(free).load_id

    def activate(
        self, load_id: str, term_seconds: float, transaction_id: str, expected_generation: int, deadline_seconds: float
    ) -> FrontState:
        self._reach()
        self._check(expected_generation)
        number = self._known(load_id)
        if self.is_on_trial and number == self.previous:
            self._back("ROLLED_BACK")
        elif number == self.active:
            self.term_left = term_seconds
        elif self.is_on_trial:
            raise EffectFailed(Failed(FaultKind.TRANSIENT, "GENERATION_CONFLICT", "another revision is on trial"))
        else:
            held = self.slots[self.active] if self.active >= 0 else None
            self.baseline = Counts() if held is None else self.counts.get(held.bundle_digest, Counts())
            self.previous, self.active, self.is_on_trial = self.active, number, True
            self.term_left = term_seconds
            self.generation += 1
            self.activated.append(self._held(number).bundle_digest)
        return self.state(deadline_seconds)

    def commit(
        self, load_id: str, transaction_id: str, expected_generation: int, deadline_seconds: float
    ) -> FrontState:
        self._reach()
        self._check(expected_generation)
        if self._known(load_id) != self.active:
            raise EffectFailed(Failed(FaultKind.TRANSIENT, "NOT_ON_TRIAL", "this load does not answer callers"))
        if self.is_on_trial:
            self._close("COMMITTED")
        return self.state(deadline_seconds)

    def retire(
        self, load_id: str, transaction_id: str, expected_generation: int, deadline_seconds: float
    ) -> FrontState:
        self._reach()
        self._check(expected_generation)
        number = self._find(load_id)
        if number >= 0 and self.is_on_trial and number == self.active and self.previous < 0:
            self._close("ROLLED_BACK")
            self.active = -1
        elif number >= 0 and (number == self.active or (self.is_on_trial and number == self.previous)):
            raise EffectFailed(Failed(FaultKind.TRANSIENT, "SLOT_IN_USE", "callers need it"))
        if number >= 0:
            self.slots[number] = None
            self.previous = -1 if number == self.previous else self.previous
        return self.state(deadline_seconds)

    # Helpers.

    def _reach(self) -> None:
        if not self.is_up:
            raise EffectFailed(Failed(FaultKind.TRANSIENT, "FRONT_UNREACHABLE", "it does not answer"))

    def _check(self, expected_generation: int) -> None:
        if expected_generation not in (0, self.generation):
            raise EffectFailed(Failed(FaultKind.TRANSIENT, "GENERATION_CONFLICT", "the world has moved"))

    def _new_id(self) -> str:
        self._ids += 1
        return f"load {self._ids}"

    def _find(self, load_id: str) -> int:
        return next((n for n, held in enumerate(self.slots) if held is not None and held.load_id == load_id), -1)

    def _known(self, load_id: str) -> int:
        number = self._find(load_id)
        if number < 0:
            raise EffectFailed(Failed(FaultKind.TRANSIENT, "LOAD_UNKNOWN", "no slot holds this load"))
        return number

    def _held(self, number: int) -> Held:
        held = self.slots[number]
        assert held is not None
        return held

    def _close(self, outcome: str) -> None:
        self.last_trial = TrialEndSeen(self._held(self.active).bundle_digest, outcome)
        self.is_on_trial, self.generation = False, self.generation + 1

    def _back(self, outcome: str) -> None:
        if self.is_on_trial and self.previous >= 0:
            self._close(outcome)
            self.active, self.previous = self.previous, -1

    def _seen(self, number: int) -> SlotSeen:
        held = self.slots[number]
        if held is None:
            return SlotSeen("", "", "", "", "READY", "FREE")
        role = "PREVIOUS" if number == self.previous else "CANDIDATE"
        if number == self.active:
            role = "TRIAL" if self.is_on_trial else "ACTIVE"
        return SlotSeen(held.load_id, held.bundle_digest, "cpu", "float32", held.state, role, held.restarts)

    def _trial(self) -> TrialSeen | None:
        if not self.is_on_trial:
            return None
        held = self._held(self.active)
        previous = self.slots[self.previous] if self.previous >= 0 else None
        previous_id = "" if previous is None else previous.load_id
        return TrialSeen(held.load_id, held.bundle_digest, previous_id, self.term_left, self.baseline)


def _counted(before: Counts, requests: int, reason: str) -> Counts:
    if not reason:
        latency = tuple(a + b for a, b in zip(before.latency or (0,) * 13, (0, requests, *(0,) * 11), strict=True))
        return replace(before, answered=before.answered + requests, latency=latency)
    return replace(
        before,
        failed=before.failed + requests,
        not_finite=before.not_finite + (requests if reason == "NOT_FINITE" else 0),
        out_of_memory=before.out_of_memory + (requests if reason == "OUT_OF_MEMORY" else 0),
        restarts=before.restarts + (1 if reason == "RUNNER_DIED" else 0),
    )
