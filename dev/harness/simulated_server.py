"""A server in memory: two slots, trials, counters by revision, restarts, a GPU whose memory can run out."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from dev.harness.simulated_card import CARD, CPU, Card, Held
from dev.harness.simulated_counts import SimShadow, count_batches, count_requests
from updater.core.counts import Counts
from updater.core.effects import LATE_REASONS, EffectFailure, FailureKind, ShadowCopies
from updater.core.facts import (
    DeviceSnapshot,
    RevisionSnapshot,
    ServerState,
    SlotSnapshot,
    TrialEndSnapshot,
    TrialSnapshot,
)
from updater.core.label_mix import LabelCount
from updater.core.ports import EffectFailed
from updater.core.record import CpuFallback


@dataclass(slots=True)
class SimGap:
    """The active bundle was unloaded by command."""

    bundle_digest: str
    device: str
    seconds: float  # of the lease
    left: float


@dataclass(slots=True)
class SimServer:
    """Implements the port Control. `boot_from` returns the committed bundle."""

    boot_from: Callable[[], str]
    loads: Callable[[str], str]  # bundle digest → reason with which its load fails, empty if it does not
    is_up: bool = True
    is_draining: bool = False
    ended_orderly: bool = False
    lives: int = 0
    generation: int = 1
    slots: list[Held | None] = field(default_factory=lambda: [None, None])
    deaths: list[int] = field(default_factory=lambda: [0, 0])  # of each slot's runners, whatever they held
    active: int = -1
    previous: int = -1
    is_on_trial: bool = False
    lease_left: float = 0.0
    last_trial: TrialEndSnapshot | None = None
    counts: dict[tuple[str, str], Counts] = field(default_factory=dict)  # by bundle and device
    baseline: Counts = field(default_factory=Counts)
    lost: int = 0  # callers that met nothing
    activated: list[str] = field(default_factory=list)  # bundles whose trial began, in order
    card: Card | None = None  # if there is one, it is the configured device
    fallback: CpuFallback | None = None  # in a file of its own: it outlives the server
    frugal: str = ""  # a bundle whose items always fit
    row_seconds: Callable[[str], float] = lambda _: 0.01  # bundle digest → device seconds a row
    changes: Callable[[str], float] = lambda _: 0.0  # bundle digest → share of answers that it changes
    fails: Callable[[str], str] = lambda _: ""  # bundle digest → reason with which it fails copies
    labels: dict[str, tuple[LabelCount, ...]] = field(default_factory=dict)  # in the answers of a bundle
    shadow: SimShadow | None = None
    percent: float = 100.0  # of the requests that the trial gets
    gap: SimGap | None = None
    load_faults: list[EffectFailure] = field(default_factory=list)  # for the next loads
    tried: list[str] = field(default_factory=list)  # devices of all loads that were asked for
    _ids: int = 0
    _falls: int = 0

    # What happens to it.

    def start(self) -> None:
        """Start a new incarnation, which loads the committed bundle."""
        digest = self.boot_from()
        self.is_up, self.is_draining, self.lives = True, False, self.lives + 1
        self.slots, self.active, self.previous, self.is_on_trial = [None, None], -1, -1, False
        self.deaths = [0, 0]
        self.shadow, self.percent, self.gap = None, 100.0, None
        self.counts, self.last_trial = {}, None
        if digest:
            state = "FAILED" if self.loads(digest) else "LOADED"
            self.slots[0], self.active = Held(self._new_id(), digest, state, device=self._default_device()), 0
            if self._shortage(digest, self._held(0).device):
                self._fall_back("DOES_NOT_FIT")

    def end(self, *, orderly: bool) -> None:
        """End the process."""
        self.is_up, self.ended_orderly = False, orderly

    def respawns(self) -> None:
        """The active runner crashes again."""
        self.deaths[self.active] += 1

    def loses_spare(self) -> None:
        """The runner beside the active one dies: a candidate is gone, a standby process is replaced."""
        assert not self.is_on_trial
        spare = 1 - self.active
        self.deaths[spare] += 1
        self.slots[spare], self.previous, self.shadow = None, -1, None

    def yields(self) -> None:
        """The trial's slot is needed for the CPU fallback."""
        self._back("YIELDED")

    def passes(self, seconds: float) -> None:
        """Advance the time; a trial lease may expire."""
        if self.is_up and self.is_on_trial:
            self.lease_left -= seconds
            if self.lease_left <= 0 and self.previous >= 0:
                self._back("LEASE_EXPIRED")
        if self.is_up and self.gap is not None:
            self.gap.left -= seconds
            if self.gap.left <= 0 and not self.serving:
                self._return_from_gap(self.gap)

    def answers(self, requests: int, fails: Callable[[str], str]) -> None:
        """Serve requests; the previous slot answers those that a trial fails."""
        held = self.slots[self.active] if self.is_up and self.active >= 0 else None
        if held is None or held.state != "LOADED":
            self.lost += requests
            return
        reason = "OUT_OF_MEMORY" if self.overflows(held.load_id) else fails(held.bundle_digest)
        if reason == "OUT_OF_MEMORY" and held.device == CARD:
            self._runs_out(held)
            return
        if reason and not (self.is_on_trial and self.previous >= 0):
            self.lost += requests
        if self.is_on_trial and self.previous >= 0 and self.percent < 100:
            given = round(requests * self.percent / 100)
            self._count(self._held(self.previous), requests - given, "")
            requests = given
        if self.shadow is not None:
            bundle = self.bundle_of(self.shadow.load_id) or ""
            failure = self.fails(bundle)
            if failure not in LATE_REASONS:
                self.shadow.compare(requests, self.changes(bundle), failure)
            if failure == "RUNNER_DIED" and not self.is_on_trial:
                self.loses_spare()
        self._count(held, requests, reason)
        self.deaths[self.active] += reason == "RUNNER_DIED"

    def bundle_of(self, load_id: str) -> str | None:
        """The bundle digest of a load; None if it is gone."""
        number = self._find(load_id) if self.is_up else -1
        held = self.slots[number] if number >= 0 else None
        return None if held is None else held.bundle_digest

    def device_of(self, load_id: str) -> str:
        """The device of a load; empty if it is gone."""
        number = self._find(load_id)
        return "" if number < 0 else self._held(number).device

    def overflows(self, load_id: str) -> bool:
        """Whether a single item exceeds the memory of a load's device."""
        if self.card is None or self.device_of(load_id) != CARD or self.bundle_of(load_id) == self.frugal:
            return False
        return self.card.working > self.card.free_bytes(self.slots)

    @property
    def serving_on(self) -> str:
        """Device of the active slot; empty if there is none."""
        return self._held(self.active).device if self.serving else ""

    @property
    def serving(self) -> str:
        """Bundle digest of the active slot; empty if there is none."""
        held = self.slots[self.active] if self.is_up and self.active >= 0 else None
        return "" if held is None or held.state != "LOADED" else held.bundle_digest

    # The port.

    def state(self, deadline_seconds: float) -> ServerState:
        self._reach()
        active = self.slots[self.active] if self.active >= 0 else None
        return ServerState(
            incarnation=f"life {self.lives}",
            generation=self.generation,
            slots=tuple(self._seen(number) for number in (0, 1)),
            active_load_id="" if active is None else active.load_id,
            is_ready=bool(self.serving),
            is_draining=self.is_draining,
            last_ended_orderly=self.ended_orderly,
            trial=self._trial(),
            shadow=None if self.shadow is None else self.shadow.seen,
            last_trial=self.last_trial,
            stats=tuple(
                RevisionSnapshot(*key, counts, self.labels.get(key[0], ())) for key, counts in self.counts.items()
            ),
            devices=tuple(DeviceSnapshot(name, "float32") for name in ((CPU,) if self.card is None else (CPU, CARD))),
            cpu_fallback=self.fallback,
        )

    def load(
        self, bundle_digest: str, device: str, transaction_id: str, expected_generation: int, deadline_seconds: float
    ) -> str:
        self._reach()
        device = device or (self._held(self.active).device if self.active >= 0 else self._default_device())
        for held in self.slots:
            if held is not None and (held.bundle_digest, held.device) == (bundle_digest, device):
                return held.load_id
        self._check(expected_generation)
        self.tried.append(device)
        shortage = self.load_faults.pop(0) if self.load_faults else self._shortage(bundle_digest, device)
        if shortage is not None:
            raise EffectFailed(shortage)
        reason = self.loads(bundle_digest)
        if reason:
            raise EffectFailed(EffectFailure(FailureKind.PERMANENT, reason, "it does not load"))
        free = next((n for n in (0, 1) if self.slots[n] is None and n != self.active), None)
        if free is None:
            raise EffectFailed(EffectFailure(FailureKind.TRANSIENT, "NO_FREE_SLOT", "both slots hold a load"))
        self.slots[free] = Held(self._new_id(), bundle_digest, device=device)
        return self._held(free).load_id

    def activate(
        self,
        load_id: str,
        trial_lease_seconds: float,
        transaction_id: str,
        expected_generation: int,
        deadline_seconds: float,
        *,
        percent: float | None = None,
        copies: ShadowCopies | None = None,
    ) -> None:
        self._reach()
        self._check(expected_generation)
        number = self._known(load_id)
        if self.is_on_trial and number == self.previous:
            self._back("ROLLED_BACK")
        elif number == self.active:
            self.lease_left = trial_lease_seconds
        elif self.is_on_trial:
            raise EffectFailed(EffectFailure(FailureKind.TRANSIENT, "GENERATION_CONFLICT", "another is on trial"))
        else:
            held = self.slots[self.active] if self.active >= 0 else None
            key = ("", "") if held is None else (held.bundle_digest, held.device)
            self.baseline = self.counts.get(key, Counts())
            self.previous, self.active, self.is_on_trial = self.active, number, True
            self.lease_left = trial_lease_seconds
            self.percent = 100.0 if percent is None else percent
            self.shadow = None if copies is None else SimShadow(load_id, copies)
            self.generation += 1
            self.activated.append(self._held(number).bundle_digest)

    def copy_requests(
        self,
        load_id: str,
        copies: ShadowCopies,
        transaction_id: str,
        expected_generation: int,
        deadline_seconds: float,
    ) -> None:
        self._reach()
        self._check(expected_generation)
        if self._known(load_id) == self.active:
            raise EffectFailed(EffectFailure(FailureKind.TRANSIENT, "SLOT_IN_USE", "it answers callers"))
        self.shadow = SimShadow(load_id, copies)

    def set_percent(
        self, load_id: str, percent: float, transaction_id: str, expected_generation: int, deadline_seconds: float
    ) -> None:
        self._reach()
        self._check(expected_generation)
        if not self.is_on_trial or self._known(load_id) != self.active:
            raise EffectFailed(EffectFailure(FailureKind.TRANSIENT, "NOT_ON_TRIAL", "this load is not on trial"))
        self.percent = percent

    def commit(self, load_id: str, transaction_id: str, expected_generation: int, deadline_seconds: float) -> None:
        self._reach()
        self._check(expected_generation)
        if self._known(load_id) != self.active:
            raise EffectFailed(EffectFailure(FailureKind.TRANSIENT, "NOT_ON_TRIAL", "this load is not on trial"))
        self.gap = None
        if self.is_on_trial:
            self._close("COMMITTED")
        if self.fallback is not None and self._held(self.active).device != self.fallback.fallback_device:
            self.fallback = None

    def retire(
        self,
        load_id: str,
        transaction_id: str,
        expected_generation: int,
        deadline_seconds: float,
        *,
        gap_lease_seconds: float | None = None,
    ) -> None:
        self._reach()
        self._check(expected_generation)
        number = self._find(load_id)
        if number >= 0 and self.is_on_trial and number == self.active and self.previous < 0:
            self._close("ROLLED_BACK")
            self.active = -1
        elif gap_lease_seconds and number == self.active and self._may_leave_gap:
            held = self._held(number)
            self.gap = SimGap(held.bundle_digest, held.device, gap_lease_seconds, gap_lease_seconds)
            self.active, self.generation = -1, self.generation + 1
        elif number >= 0 and (number == self.active or (self.is_on_trial and number == self.previous)):
            raise EffectFailed(EffectFailure(FailureKind.TRANSIENT, "SLOT_IN_USE", "callers need it"))
        if number >= 0:
            self.shadow = None
            self.slots[number] = None
            self.previous = -1 if number == self.previous else self.previous

    # Helpers.

    def _reach(self) -> None:
        if not self.is_up:
            raise EffectFailed(EffectFailure(FailureKind.TRANSIENT, "SERVER_UNREACHABLE", "it does not answer"))

    @property
    def _may_leave_gap(self) -> bool:
        """Whether the active load answers, and nothing else is under way."""
        is_alone = not self.is_on_trial and self.slots[1 - self.active] is None
        return bool(self.serving) and is_alone and self.fallback is None

    def _return_from_gap(self, gap: "SimGap") -> None:
        """The lease of a gap has run out: the unloaded bundle is loaded again."""
        if self.is_on_trial:
            self._close("LEASE_EXPIRED")
        self.slots, self.active, self.gap = [Held(self._new_id(), gap.bundle_digest, device=gap.device), None], 0, None
        self.generation += 1

    def _check(self, expected_generation: int) -> None:
        if self.gap is not None:  # a command begins the lease anew
            self.gap.left = self.gap.seconds
        if expected_generation not in (0, self.generation):
            raise EffectFailed(EffectFailure(FailureKind.TRANSIENT, "GENERATION_CONFLICT", "the world has moved"))

    def _new_id(self) -> str:
        self._ids += 1
        return f"load {self._ids}"

    def _find(self, load_id: str) -> int:
        return next((n for n, held in enumerate(self.slots) if held is not None and held.load_id == load_id), -1)

    def _known(self, load_id: str) -> int:
        number = self._find(load_id)
        if number < 0:
            raise EffectFailed(EffectFailure(FailureKind.TRANSIENT, "LOAD_UNKNOWN", "no slot holds this load"))
        return number

    def _held(self, number: int) -> Held:
        held = self.slots[number]
        assert held is not None
        return held

    def _close(self, outcome: str, reason: str = "") -> None:
        self.last_trial = TrialEndSnapshot(self._held(self.active).bundle_digest, outcome, reason)
        self.is_on_trial, self.generation, self.shadow = False, self.generation + 1, None

    def _back(self, outcome: str, reason: str = "") -> None:
        if self.is_on_trial and self.previous >= 0:
            self._close(outcome, reason)
            self.active, self.previous = self.previous, -1

    def _count(self, held: Held, requests: int, reason: str) -> None:
        key = (held.bundle_digest, held.device)
        self.counts[key] = count_requests(self.counts.get(key, Counts()), requests, reason)
        if not reason:
            self.counts[key] = count_batches(
                self.counts[key], held.device, requests, self.row_seconds(held.bundle_digest)
            )

    # Memory.

    def _default_device(self) -> str:
        if self.fallback is not None:
            return self.fallback.fallback_device
        return CPU if self.card is None else CARD

    def _shortage(self, bundle_digest: str, device: str) -> EffectFailure | None:
        """The failure of a load that does not fit; None if it fits."""
        return None if self.card is None or device != CARD else self.card.shortage(bundle_digest, self.slots)

    def _runs_out(self, held: Held) -> None:
        """Apply an out-of-memory error of the active slot: the previous slot answers the item, or the CPU does."""
        if not (self.is_on_trial and self.previous >= 0):
            self._fall_back("OUT_OF_MEMORY")
            return
        self._count(held, 1, "OUT_OF_MEMORY")
        if self.overflows(self._held(self.previous).load_id):
            self._back("YIELDED", "OUT_OF_MEMORY")
            self._fall_back("OUT_OF_MEMORY")
        else:
            self._back("ROLLED_BACK", "OUT_OF_MEMORY")

    def _fall_back(self, reason: str) -> None:
        """Move the bundle to the CPU in the other slot, which is emptied first."""
        held, other = self._held(self.active), 1 - self.active
        beside = self.slots[other]
        if beside is None or (beside.bundle_digest, beside.device) != (held.bundle_digest, CPU):
            self.slots[other] = Held(self._new_id(), held.bundle_digest, device=CPU)
        self.slots[self.active], self.active, self.previous = None, other, -1
        self._falls, self.generation = self._falls + 1, self.generation + 1
        since = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self._falls)
        self.fallback = CpuFallback(CARD, CPU, held.bundle_digest, since, reason)

    def _seen(self, number: int) -> SlotSnapshot:
        held = self.slots[number]
        if held is None:
            return SlotSnapshot("", "", "", "", "READY", "FREE", self.deaths[number])
        role = "PREVIOUS" if number == self.previous else "CANDIDATE"
        if number == self.active:
            role = "TRIAL" if self.is_on_trial else "ACTIVE"
        deaths = self.deaths[number]
        return SlotSnapshot(held.load_id, held.bundle_digest, held.device, "float32", held.state, role, deaths)

    def _trial(self) -> TrialSnapshot | None:
        if not self.is_on_trial:
            return None
        held = self._held(self.active)
        previous = self.slots[self.previous] if self.previous >= 0 else None
        previous_id = "" if previous is None else previous.load_id
        return TrialSnapshot(
            held.load_id, held.bundle_digest, previous_id, self.lease_left, self.baseline, percent=self.percent
        )
