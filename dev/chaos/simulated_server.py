"""A server in a file: what it holds outlives the updater that is killed, as the real one does.

It writes in place and syncs nothing, so that the sweep meets only the updater's own system calls.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from common.bundle import read_committed
from updater.core.facts import (
    DeviceSnapshot,
    RevisionSnapshot,
    ServerState,
    SlotSnapshot,
    TrialEndSnapshot,
    TrialSnapshot,
)
from updater.core.golden import Answer, Asked, GateAnswers
from updater.core.ports import EffectFailed, GoldenFacts
from updater.core.record import Counts
from updater.core.results import Failed, FaultKind

ANSWERS_A_LOOK = 40
GOLDEN = GoldenFacts("sha256:" + "9" * 64, questions=20, expected=20)


@dataclass
class Held:
    """All that the server has in memory."""

    generation: int = 1
    loads: dict[str, str] = field(default_factory=dict)  # load id → bundle digest
    active: str = ""
    trial: str = ""
    previous: str = ""
    last: list[str] = field(default_factory=list)  # digest and outcome of the last trial
    answered: dict[str, int] = field(default_factory=dict)  # by bundle digest


class SimulatedServer:
    """The control port of one model."""

    def __init__(self, file: Path, state: Path, model: str, bad: frozenset[str] = frozenset()) -> None:
        """Go on with what the file holds; a new one boots what is committed.

        Args:
            file: its memory.
            state: hotslot's folder.
            model: name of the model.
            bad: bundles that answer NaN to callers.
        """
        self._file = file
        self._bad = bad
        self._held = Held()
        if file.exists():
            self._held = Held(**json.loads(file.read_text(encoding="utf-8")))
            return
        committed = read_committed(state).get(model)
        if committed is not None:
            self._held.active = self._new(committed.bundle_digest)
        self._keep()

    @property
    def serving(self) -> str:
        """Bundle digest that answers callers."""
        return self._held.loads.get(self._held.active, "")

    def state(self, deadline_seconds: float) -> ServerState:
        """Callers have asked since the last look."""
        del deadline_seconds
        held = self._held
        if self.serving:
            held.answered[self.serving] = held.answered.get(self.serving, 0) + ANSWERS_A_LOOK
            self._keep()
        return self._seen()

    def load(
        self, bundle_digest: str, device: str, transaction_id: str, expected_generation: int, deadline_seconds: float
    ) -> str:
        """Load at once."""
        del device, transaction_id, deadline_seconds
        for load_id, digest in self._held.loads.items():
            if digest == bundle_digest:
                return load_id
        self._check(expected_generation)
        if len(self._held.loads) > 1:
            raise _refused("NO_FREE_SLOT")
        load_id = self._new(bundle_digest)
        self._keep()
        return load_id

    def activate(
        self,
        load_id: str,
        trial_lease_seconds: float,
        transaction_id: str,
        expected_generation: int,
        deadline_seconds: float,
    ) -> ServerState:
        """Begin a trial, extend it, or go back."""
        del transaction_id, trial_lease_seconds, deadline_seconds
        self._check(expected_generation)
        held = self._held
        if load_id not in held.loads:
            raise _refused("LOAD_UNKNOWN")
        if held.trial and load_id == held.previous:
            held.last = [self.serving, "ROLLED_BACK"]
            held.active, held.trial, held.previous = load_id, "", ""
            held.generation += 2
        elif load_id != held.active:
            held.previous, held.active, held.trial = held.active, load_id, load_id
            held.generation += 1
        self._keep()
        return self._seen()

    def commit(
        self, load_id: str, transaction_id: str, expected_generation: int, deadline_seconds: float
    ) -> ServerState:
        """End a trial for good."""
        del transaction_id, deadline_seconds
        self._check(expected_generation)
        held = self._held
        if load_id != held.active:
            raise _refused("NOT_ON_TRIAL")
        if held.trial:
            held.last, held.trial = [self.serving, "COMMITTED"], ""
            held.generation += 1
        self._keep()
        return self._seen()

    def retire(
        self, load_id: str, transaction_id: str, expected_generation: int, deadline_seconds: float
    ) -> ServerState:
        """Empty a slot."""
        del transaction_id, deadline_seconds
        self._check(expected_generation)
        held = self._held
        is_first_install = load_id == held.trial and not held.previous
        if load_id in (held.active, held.previous if held.trial else "") and not is_first_install:
            raise _refused("SLOT_IN_USE")
        if is_first_install:
            held.last, held.active, held.trial = [self.serving, "ROLLED_BACK"], "", ""
        held.loads.pop(load_id, None)
        held.previous = "" if held.previous == load_id else held.previous
        self._keep()
        return self._seen()

    def _seen(self) -> ServerState:
        held = self._held
        slots = tuple(self._slot(load_id, digest) for load_id, digest in held.loads.items())
        free = SlotSnapshot("", "", "", "", "READY", "FREE")
        trial = TrialSnapshot(held.trial, held.loads[held.trial], held.previous, 60.0, Counts()) if held.trial else None
        return ServerState(
            incarnation="one",
            generation=held.generation,
            slots=(*slots, free, free)[:2],
            active_load_id=held.active,
            is_ready=bool(held.active),
            trial=trial,
            last_trial=TrialEndSnapshot(*held.last) if held.last else None,
            stats=tuple(RevisionSnapshot(digest, "cpu", self._counts(digest)) for digest in held.answered),
            devices=(DeviceSnapshot("cpu", "float32"),),
        )

    def _slot(self, load_id: str, digest: str) -> SlotSnapshot:
        held = self._held
        role = "TRIAL" if load_id == held.trial else "ACTIVE" if load_id == held.active else "CANDIDATE"
        role = "PREVIOUS" if load_id == held.previous else role
        return SlotSnapshot(load_id, digest, "cpu", "float32", "LOADED", role)

    def _counts(self, digest: str) -> Counts:
        count = self._held.answered[digest]
        if digest in self._bad:
            return Counts(failed=count, not_finite=count)
        return Counts(answered=count, latency=(count,) + (0,) * 12)

    def _new(self, digest: str) -> str:
        self._held.generation += 0
        load_id = f"load-{len(self._held.answered) + len(self._held.loads)}-{digest[7:15]}"
        self._held.loads[load_id] = digest
        return load_id

    def _check(self, expected_generation: int) -> None:
        if expected_generation not in (0, self._held.generation):
            raise _refused("GENERATION_CONFLICT")

    def _keep(self) -> None:
        self._file.write_text(json.dumps(asdict(self._held)), encoding="utf-8")


class SimulatedGolden:
    """A golden set on which every model is right."""

    def facts(self) -> GoldenFacts:
        """Twenty questions."""
        return GOLDEN

    def run(self, load_id: str, active_load_id: str, digest: str, deadline_seconds: float) -> GateAnswers:
        """Everything is as expected."""
        del load_id, active_load_id, deadline_seconds
        right = Answer("yes")
        asked = tuple(Asked(f"item-{number}", "is it so", "yes", right, right) for number in range(GOLDEN.questions))
        return GateAnswers(digest, "cpu", "float32", asked, candidate_seconds=1.0, active_seconds=1.0)

    def probe(self, load_id: str, items: int, deadline_seconds: float) -> tuple[int, int, int]:
        """All are answered."""
        del load_id, deadline_seconds
        return items, 0, 0


def _refused(reason: str) -> EffectFailed:
    return EffectFailed(Failed(FaultKind.TRANSIENT, reason, "the world has moved"))
