"""One whole update in one thread: `python -m dev.chaos.cycle FOLDER`. Real loop, store, journal and folder hub.

The conversion, the server and an operator are simulated; the server's state is kept in FOLDER/server.pickle across
processes. The operator pauses and resumes updates, and approves the update, which is held until then.
Each reading of the clock advances it by half a second, so that nothing waits.
"""

import pickle
import sys
import threading
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path

from common.bundle import BundleBroken, bundle_folder, read_bundle, read_committed
from common.sealing import ConvertLimits
from dev.harness.revisions import MODEL, convert_scripted
from dev.harness.scripted_updater import digest_of_scripted
from dev.harness.simulated_server import SimServer
from updater.commands import CommandQueue
from updater.core.comparison import GoldenAnswer
from updater.core.facts import CommandKind, GoldenFacts, OperatorCommand, ServerState
from updater.core.golden import GateAnswers, GoldenQuestion
from updater.core.ports import JournalUnusable
from updater.core.record import HeldFor, ModelRecord, Stage
from updater.core.rules import Mode, ObserveRules, Rules
from updater.hub.folder import DirectoryHub
from updater.loop import CrashPoints, LoopDependencies, ModelLoop, StepGuard
from updater.metrics import BroadcastObserver
from updater.perform import Ports
from updater.stages.commands import CommandResult
from updater.store.bundles import BundleStore, ChildConverter, StoreOptions
from updater.store.database import JournalNotWritten
from updater.store.garbage import References
from updater.store.journal import Journal
from updater.store.staging import StagingLimits

BAD = "bad"  # revisions that say so in their names fail on live traffic
MAX_STEPS = 400
_RULES = Rules(
    mode=Mode.APPROVE,
    observe=ObserveRules(window_seconds=2.0, max_seconds=60.0, min_answers=20, keep_warm_seconds=2.0),
    poll_seconds=1.0,
    retry_seconds=0.1,
    cap_bytes=0,
)


ANSWERS_A_LOOK = 40  # of callers between two looks at the server
_GOLDEN = GoldenFacts("sha256:" + "9" * 64, questions=20, expected=20)
_MEMORY = (
    "generation",
    "slots",
    "deaths",
    "active",
    "previous",
    "is_on_trial",
    "last_trial",
    "counts",
    "baseline",
    "lives",
    "_ids",
)


class PersistentServer(SimServer):
    """A simulated server whose state persists across updater processes.

    Its file is written in place and never synced, so that the sweep of system calls counts only the updater's.
    """

    def __init__(self, file: Path, state: Path) -> None:
        """Read the server's memory; without a file, start a server that loads the committed bundle."""

        def committed() -> str:
            row = read_committed(state).get(MODEL)
            return "" if row is None else row.bundle_digest

        super().__init__(committed, lambda _: "")
        self._file, self._state = file, state
        if file.exists():
            for name, value in pickle.loads(file.read_bytes()).items():  # noqa: S301  written by `_save`
                setattr(self, name, value)
        else:
            self.start()
            self._save()

    def state(self, deadline_seconds: float) -> ServerState:
        """The server's state, after requests since the last call; every call of the port ends with this."""
        bad = bad_bundles(self._state)
        self.answers(ANSWERS_A_LOOK, lambda digest: "NOT_FINITE" if digest in bad else "")
        state = super().state(deadline_seconds)
        self._save()
        return state

    def load(
        self, bundle_digest: str, device: str, transaction_id: str, expected_generation: int, deadline_seconds: float
    ) -> str:
        """Load at once."""
        load_id = super().load(bundle_digest, device, transaction_id, expected_generation, deadline_seconds)
        self._save()
        return load_id

    def _save(self) -> None:
        self._file.write_bytes(pickle.dumps({name: getattr(self, name) for name in _MEMORY}))


class PerfectGolden:
    """A golden set that every model answers as expected."""

    def facts(self) -> GoldenFacts:
        """Twenty questions."""
        return _GOLDEN

    def run(self, load_id: str, active_load_id: str, digest: str, deadline_seconds: float) -> GateAnswers:
        """Every answer is the expected one."""
        del load_id, active_load_id, deadline_seconds
        right = GoldenAnswer("yes")
        questions = tuple(
            GoldenQuestion(f"item-{number}", "is it so", "yes", right, right) for number in range(_GOLDEN.questions)
        )
        return GateAnswers(digest, "cpu", "float32", questions, candidate_seconds=1.0, active_seconds=1.0)

    def probe(self, load_id: str, previous_load_id: str, items: int, deadline_seconds: float) -> tuple[int, int, int]:
        """All are answered."""
        del load_id, previous_load_id, deadline_seconds
        return items, 0, 0


class Operator(CommandQueue):
    """An operator in the loop's own thread, so that every run gives the same commands at the same steps.

    Pauses updates once while the updater is idle, resumes them whenever they are paused, and approves an update that is
    held for approval. After a fault, a new operator finds the record as it is, and does the same.
    """

    def __init__(self, wake: threading.Event) -> None:
        """Give commands for the record that the loop has."""
        super().__init__(wake)
        self._has_paused = False
        self._command: OperatorCommand | None = None  # given, not answered yet

    def oldest(self, record: ModelRecord) -> OperatorCommand | None:
        """The next command; the same one until it is answered."""
        if self._command is None:
            self._command = self._choose(record)
        return self._command

    def take(self, command: OperatorCommand) -> bool:
        """Its caller never gives up."""
        return command is self._command

    def give_back(self, command: OperatorCommand, trouble: str) -> None:
        """It is given again."""
        del command, trouble

    def answer(self, result: CommandResult) -> None:
        """Continue with the next command."""
        self._has_paused |= result.command.kind is CommandKind.PAUSE
        self._command = None

    def _choose(self, record: ModelRecord) -> OperatorCommand | None:
        if record.paused:
            return OperatorCommand(CommandKind.RESUME)
        ending = None if record.update is None else record.update.ending
        if record.stage is Stage.HELD and ending is not None and ending.held_for is HeldFor.APPROVAL:
            return OperatorCommand(CommandKind.APPROVE, record.under_way.source_digest)
        if record.stage is Stage.IDLE and not self._has_paused:
            return OperatorCommand(CommandKind.PAUSE, "maintenance")
        return None


class RunningClock:
    """A clock that advances by half a second at each reading."""

    def __init__(self) -> None:
        """Start at a fixed time."""
        self._begun = datetime(2026, 1, 1, tzinfo=UTC)
        self._looks = count()

    def monotonic(self) -> float:
        """Advance by half a second; returns the seconds."""
        return 0.5 * next(self._looks)

    def now(self) -> datetime:
        """The same, as a wall clock."""
        return self._begun + timedelta(seconds=self.monotonic())


def bad_bundles(state: Path) -> frozenset[str]:
    """Digests of the sealed bundles that fail on live traffic."""
    found = set()
    for folder in (state / "bundles").glob("sha256-*"):
        digest = folder.name.replace("-", ":", 1)
        try:
            revision = read_bundle(bundle_folder(state, digest)).revision
        except BundleBroken:
            continue
        if BAD in revision:
            found.add(digest)
    return frozenset(found)


class Cycle:
    """One run of the updater process."""

    def __init__(self, folder: Path) -> None:
        """Open everything.

        Raises:
            JournalUnusable: the journal is damaged, which is a violation.
            OSError: the journal cannot be created.
        """
        self.state = folder / "state"
        self.state.mkdir(parents=True, exist_ok=True)
        self.journal = Journal(self.state / "journal.db")
        clock, wake, stopping = RunningClock(), threading.Event(), threading.Event()
        commands = Operator(wake)
        shared = StoreOptions(self.state, StagingLimits(reserve_bytes=0))
        self._server = PersistentServer(folder / "server.pickle", self.state)
        names = count(1)
        seed = len(self.journal.history("", 1000, 0))
        self._ports = Ports(
            hub=DirectoryHub(folder / "hub", MODEL, clock),
            control=self._server,
            golden=PerfectGolden(),
            store=BundleStore(shared, MODEL, clock, lambda: None, References, digest_of_scripted),
            converter=ChildConverter(self.state, ConvertLimits(), lambda: None, convert_scripted),
            clock=clock,
        )
        parts = LoopDependencies(
            model=MODEL,
            ports=self._ports,
            journal=self.journal,
            rules=_RULES,
            clock=clock,
            observer=BroadcastObserver(),
            crash=CrashPoints(),
            commands=commands,
            guard=StepGuard(commands, stopping),
            wake=wake,
            stopping=stopping,
            fresh_id=lambda: f"u-{seed}-{next(names)}",
            jitter=lambda: 0.5,
        )
        self.loop = ModelLoop(parts)

    def run(self) -> ModelRecord:
        """Step until the updater is at rest.

        Raises:
            RuntimeError: it does not come to rest.
        """
        rests = 0
        for _ in range(MAX_STEPS):
            before = self.record
            self.loop.step()
            is_rest = self.record.stage in (Stage.IDLE, Stage.HELD) and self.record.watch.polls > before.watch.polls
            rests += is_rest and not self.record.warm_seconds_left
            if rests >= 2:  # noqa: PLR2004  once may have been the look that begins something
                return self.record
        raise RuntimeError(f"no rest after {MAX_STEPS} steps, in {self.record.stage}")

    @property
    def record(self) -> ModelRecord:
        """The record as it is."""
        return self.loop.publisher.snapshot.record

    @property
    def serving(self) -> str:
        """Bundle digest that answers callers."""
        return self._server.serving


def main() -> int:
    """Run one updater in the given folder."""
    folder = Path(sys.argv[1])
    for _ in range(3):  # a supervisor starts it again
        try:
            Cycle(folder).run()
        except JournalNotWritten:
            continue
        except JournalUnusable as error:
            sys.stderr.write(f"{error}\n")
            return 1
        return 0
    return 1


if __name__ == "__main__":
    sys.exit(main())
