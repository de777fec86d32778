"""One whole update in one thread: `python -m dev.chaos.cycle FOLDER`. Real loop, store, journal and folder hub.

The conversion and the server are simulated; the server's memory lies in FOLDER/server.json and outlives this process.
The clock is one that is read: every look at it is a little later, so that nothing is waited for.
"""

import sys
import threading
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path

from common.bundle import BundleBroken, bundle_folder, read_bundle
from common.sealing import ConvertLimits
from dev.chaos.simulated_server import SimulatedGolden, SimulatedServer
from dev.harness.revisions import MODEL, convert_scripted
from dev.harness.scripted_updater import digest_of_scripted
from updater.commands import CommandQueue
from updater.core.ports import JournalUnusable
from updater.core.record import ModelRecord, Stage
from updater.core.rules import ObserveRules, Rules
from updater.hub.folder import DirectoryHub
from updater.loop import CrashPoints, LoopParts, ModelLoop, StepGuard
from updater.metrics import ToAll
from updater.perform import Ports
from updater.store.bundles import BundleStore, ChildConverter, Shared
from updater.store.database import JournalNotWritten
from updater.store.garbage import Keep
from updater.store.journal import Journal
from updater.store.staging import StagingLimits

BAD = "bad"  # revisions that say so in their names fail on live traffic
MAX_STEPS = 400
_RULES = Rules(
    observe=ObserveRules(window_seconds=2.0, max_seconds=60.0, min_answers=20, keep_warm_seconds=2.0),
    poll_seconds=1.0,
    retry_seconds=0.1,
    cap_bytes=0,
)


class RunningClock:
    """Every look is half a second later."""

    def __init__(self) -> None:
        """Begin at some moment."""
        self._begun = datetime(2026, 1, 1, tzinfo=UTC)
        self._looks = count()

    def monotonic(self) -> float:
        """Half a second later."""
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
    """One life of the updater."""

    def __init__(self, folder: Path) -> None:
        """Open everything.

        Raises:
            JournalUnusable: the journal is damaged; that must never be.
            OSError: the journal cannot be made now.
        """
        self.state = folder / "state"
        self.state.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self.journal = Journal(self.state / "journal.db")
        clock, wake, stopping = RunningClock(), threading.Event(), threading.Event()
        commands = CommandQueue(wake)
        shared = Shared(self.state, StagingLimits(reserve_bytes=0))
        self._server = self.server()
        names = count(1)
        seed = len(self.journal.history("", 1000, 0))
        self._ports = Ports(
            hub=DirectoryHub(folder / "hub", MODEL, clock),
            control=self._server,
            golden=SimulatedGolden(),
            store=BundleStore(shared, MODEL, clock, lambda: None, Keep, digest_of_scripted),
            converter=ChildConverter(self.state, ConvertLimits(), convert_scripted),
            clock=clock,
        )
        parts = LoopParts(
            model=MODEL,
            ports=self._ports,
            journal=self.journal,
            rules=_RULES,
            clock=clock,
            observer=ToAll(),
            crash=CrashPoints(),
            commands=commands,
            guard=StepGuard(commands, stopping),
            wake=wake,
            stopping=stopping,
            fresh_id=lambda: f"u-{seed}-{next(names)}",
            jitter=lambda: 0.5,
        )
        self.loop = ModelLoop(parts)

    def server(self) -> SimulatedServer:
        """The server as it is now; what is sealed meanwhile may be bad, too."""
        return SimulatedServer(self._folder / "server.json", self.state, MODEL, bad_bundles(self.state))

    def run(self) -> ModelRecord:
        """Step until everything rests.

        Raises:
            RuntimeError: it never does.
        """
        rests = 0
        for _ in range(MAX_STEPS):
            self._server.__dict__["_bad"] = bad_bundles(self.state)
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
    """Run one life in the folder that is named."""
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
