"""One story's world: the shipped loop, journal, store and folder hub on a disk that fails; a server in memory.

The folder lies on a memory file system where there is one. Whatever is written down is looked at through the journal's
own connection, at the very moment an effect begins.
"""

import contextlib
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from random import Random
from typing import Any

from cli.hub import publish
from common.bundle import POINTER_NAME, BundleBroken, bundle_folder, read_bundle, read_committed
from common.sealing import Convert, ConvertLimits
from dev.harness.revisions import MODEL, convert_scripted, model_folder
from dev.harness.scripted_updater import digest_of_scripted
from dev.harness.simulated_card import Card
from dev.harness.simulated_server import SimServer
from tests.updater.core.world import RULES as COMMON_RULES
from tests.updater.core.world import ManualClock, Operators
from tests.updater.simulators import Quality, SimGolden
from tests.updater.stories.failing_disk import FailingDisk, Killed
from updater.core.breaker import BreakerState
from updater.core.effects import EffectFailure, ShadowCopies
from updater.core.facts import CommandKind, GoldenFacts, OperatorCommand, Release
from updater.core.ports import EffectFailed, JournalUnusable
from updater.core.record import Event, ModelRecord, Outcome, Stage, UpdateKind
from updater.core.rules import Rules
from updater.core.witness import ProtectedState, protect
from updater.hub.folder import DirectoryHub
from updater.loop import CrashPoints, Interrupted, LoopDependencies, ModelLoop, StepGuard
from updater.perform import Ports
from updater.store.bundles import BundleStore, ChildConverter, StoreOptions
from updater.store.garbage import References
from updater.store.journal import Journal
from updater.store.restore import restore_from_witness
from updater.store.staging import StagingLimits
from updater.store.witness import rollback_path

MEMORY = Path("/dev/shm")  # noqa: S108  only if it is there; a folder of a random name in it
WEIGHTS = "model.safetensors"
MAX_ADOPTING_STEPS = 30  # until an updater with a new journal has found what is committed
RULES = replace(
    COMMON_RULES,
    observe=replace(COMMON_RULES.observe, look_seconds=4.0),
    look_seconds=4.0,  # few steps without news
    cap_bytes=0,  # unreferenced files are deleted at once
)


class StoryHub(DirectoryHub):
    """A folder hub with faults on command."""

    faults: list[EffectFailure]
    mangles: list[str]  # what befalls the next reads of weights: "short", "flipped", "long"

    def revisions(self, deadline_seconds: float) -> tuple[str, ...]:
        """As published, unless a fault is due."""
        self._may_fail()
        return super().revisions(deadline_seconds)

    def release(self, revision: str, deadline_seconds: float) -> Release:
        """As published, unless a fault is due."""
        self._may_fail()
        return super().release(revision, deadline_seconds)

    def read(self, revision: str, name: str, offset: int, deadline_seconds: float) -> Iterator[bytes]:
        """As published, unless a fault is due or the content is changed."""
        self._may_fail()
        how = self.mangles.pop(0) if name == WEIGHTS and self.mangles else ""
        for piece in super().read(revision, name, offset, deadline_seconds):
            if how == "short":
                yield piece[: len(piece) // 2]
                return
            yield bytes((piece[0] ^ 1,)) + piece[1:] if how == "flipped" else piece
        if how == "long":
            yield b"more"

    def _may_fail(self) -> None:
        if self.faults:
            raise EffectFailed(self.faults.pop(0))


class Book:
    """Follows by events which contents have failed; keeps the names of all events."""

    def __init__(self) -> None:
        """Start empty."""
        self.condemned: set[str] = set()  # source digests that failed and were not let out since
        self.events: list[str] = []

    def record_written(self, record: ModelRecord, events: Sequence[Event]) -> None:
        """Events are durable."""
        self.events += [event.name for event in events]
        for event in events:
            update = event.update
            if update is None or update.kind is UpdateKind.FAILBACK:  # then the device has failed, not what was on it
                continue
            if event.outcome in (Outcome.REFUSED, Outcome.ROLLED_BACK):
                self.condemned.add(update.source_digest)
        self.condemned -= set(record.unquarantined)

    def report_error(self, model: str, error: str, message: str) -> None:
        """Ignored: no content is to blame."""

    def report_crash(self, model: str, error: Exception, failures: int, retry_in_seconds: float) -> None:
        """Ignored: no content is to blame."""


class StoryJournal(Journal):
    """Check after an interrupted write that either all of it or nothing was written."""

    possible: list[tuple[ModelRecord | None, int]]  # the record, and how many events there are

    def write(self, record: ModelRecord, events: Sequence[Event]) -> None:
        """Write, and remember the records that may be on the disk now."""
        whole = [(record, number + len(events)) for _, number in self.possible]
        self.possible[:] = dict.fromkeys([*self.possible, *whole])  # a retried write is no other possibility
        super().write(record, events)
        self.possible[:] = whole

    def found(self) -> tuple[ModelRecord | None, int]:
        """The record, which must be one of those that may be there."""
        (row,) = self._database.rows("SELECT count(*) FROM events")
        return self.load(MODEL), int(str(row[0]))


class StoryServer(SimServer):
    """Checks that the journal says so before it begins a trial."""

    world: "StoryWorld"

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
        """Begin a trial, extend it, or go back."""
        began, change = len(self.activated), (transaction_id, expected_generation, deadline_seconds)
        super().activate(load_id, trial_lease_seconds, *change, percent=percent, copies=copies)
        for bundle in self.activated[began:]:
            self.world.check_intent(bundle)


class StoryWorld:
    """An updater with its restarts; must be closed."""

    def __init__(self, rules: Rules = RULES) -> None:
        self.rules = rules
        self.folder = Path(tempfile.mkdtemp(prefix="story-", dir=MEMORY if MEMORY.is_dir() else None))
        self.state = self.folder / "state"
        self.state.mkdir()
        self.clock = ManualClock()
        self.clock.wall = datetime(2020, 1, 1, tzinfo=UTC)  # files are newer, until the clock is set
        self.disk = FailingDisk(self.journal_file)
        self.hub = StoryHub(self.folder / "hub", MODEL, self.clock)
        self.hub.faults, self.hub.mangles = [], []
        self.qualities: dict[str, Quality] = {}  # by bundle digest
        self.sources: dict[str, str] = {}  # source digest by bundle digest
        self.card = Card()
        self.server = StoryServer(self._boots_from, lambda bundle: self.qualities[bundle].loads, card=self.card)
        self.server.world = self
        self.golden = SimGolden(self.server, self.qualities)
        self.golden.set_facts = GoldenFacts("golden", questions=40, expected=20, min_accuracy=0.5)
        self.convert: Convert = convert_scripted  # of an updater that is started from now on
        self.book = Book()
        self.violations: list[str] = []
        self.starts = 0  # lives of the updater
        self._ids = count(1)
        self._random = Random(7)
        self._journal: StoryJournal | None = None
        self._older = self.folder / "older.db"  # a copy of the journal
        self._possible: list[tuple[ModelRecord | None, int]] = [(None, 0)]  # empty: the journal was lost
        self._committed_before: set[str] = set()  # in journals that were lost
        self._loop: ModelLoop | None = None
        self._commands = Operators(threading.Event())
        self._stopping = threading.Event()
        self._last = ModelRecord(MODEL)
        self.hub_folder.mkdir(parents=True)
        self.server.start()

    # What happens in it.

    def publish(
        self, revision: str, quality: Quality, configuration: dict[str, Any] | None = None, **script: str
    ) -> str:
        """Put a revision on the hub, or other content under a name that is there; returns its bundle digest."""
        place = self.hub_folder / revision
        shutil.rmtree(place, ignore_errors=True)
        made = model_folder(self.folder / "made", revision, configuration, 64, story=str(next(self._ids)), **script)
        publish(made, self.folder / "hub", MODEL, revision)
        source = DirectoryHub(self.folder / "hub", MODEL, self.clock).release(revision, 10.0).source_digest
        bundle = digest_of_scripted(made, source, "float32")
        self.qualities[bundle], self.sources[bundle] = quality, source
        if not quality.verifies:
            weights = place / WEIGHTS
            weights.write_bytes(b"?" + weights.read_bytes()[1:])
        return bundle

    @property
    def journal_file(self) -> Path:
        """The updater's journal."""
        return self.state / "journal.db"

    @property
    def hub_folder(self) -> Path:
        """Folder of the model's revisions."""
        return self.folder / "hub" / MODEL

    def leave(self, command: OperatorCommand) -> None:
        """Put an operator's command into the queue."""
        self._commands.leave(command)

    def step(self) -> None:
        """One step of the updater, and the time that it takes; an updater that has died is started."""
        if self._loop is None and not self._begin():
            self.passes(5.0)
            return
        assert self._loop is not None
        pause = 0.0
        try:
            with self.disk.mounted():
                pause = self._loop.step()
        except Interrupted:
            pass
        except (Killed, JournalUnusable):
            self.end_updater()
        self.passes(pause or 0.01)

    def request_stop(self) -> None:
        """Ask the updater to stop, as a signal does, in the middle of a step."""
        self._stopping.set()

    def end_updater(self, *, orderly: bool = False) -> None:
        """End the updater; if it is asked to stop, it records that."""
        if orderly and self._loop is not None:
            self._stopping.set()
            with contextlib.suppress(Killed, JournalUnusable), self.disk.mounted():
                self._loop.run()
        self._last = self.record
        self._loop = self._journal = None
        self.disk.forget_life()

    def keep_journal(self) -> None:
        """Somebody copies the journal; `lose_journal` may put the copy back."""
        self.end_updater()
        if self.journal_file.exists():
            self._open_cleanly()
            shutil.copyfile(self.journal_file, self._older)

    def lose_journal(self, how: str) -> None:
        """The journal is lost while no updater runs; then a person makes it anew from its witness, and goes on.

        Args:
            how: "deleted", "emptied", or "older", which puts a copy back where there is one.
        """
        self.end_updater()
        if not self.journal_file.exists():
            return
        before = self._open_cleanly()
        rollback_path(self.journal_file).unlink(missing_ok=True)
        if how == "older" and self._older.exists():
            shutil.copyfile(self._older, self.journal_file)
        elif how == "emptied":
            self.journal_file.write_bytes(b"")
        else:
            self.journal_file.unlink()
        self._possible[:] = []
        served, is_begun = self.server.serving, self._begin()
        if is_begun and how != "older":
            self.violations.append("a lost journal was a first start")
        if not is_begun:
            self.end_updater()
            restore_from_witness(self.state)
        if self._open_cleanly() != before:
            self.violations.append("the minimal version or the quarantine was lost with the journal")
        for _ in range(MAX_ADOPTING_STEPS):
            self.step()
            if self._loop is not None and (self.record.committed is not None or not self.pointer()):
                break
        if served and not self.server.serving:
            self.violations.append("nothing serves after the journal was lost")
        self._commands.leave(OperatorCommand(CommandKind.RESUME))

    def _open_cleanly(self) -> ProtectedState:
        """A start after which journal and witness agree; returns what must never be forgotten."""
        self.disk.heals()
        with contextlib.closing(Journal(self.journal_file, self.rules)) as journal:
            record = journal.load(MODEL) or ModelRecord(MODEL)
            past = [row for _, row in journal.history(MODEL, 1000, 0)]
        self._committed_before |= {row.update.revision for row in past if row.outcome is Outcome.COMMITTED}
        # A commit whose end the lost journal had not told yet is one, too: the minimal version rose with it.
        if record.committed is not None:
            self._committed_before.add(record.committed.revision)
        if record.stage is Stage.COMMITTING:
            self._committed_before.add(record.under_way.revision)
        return protect(record)

    def passes(self, seconds: float) -> None:
        """Time passes and callers send requests."""
        self.clock.passes(seconds)
        self.server.passes(seconds)
        requests = round(2.0 * seconds)
        if requests:
            self.server.answers(requests, lambda bundle: self.qualities[bundle].fails_callers)

    def settle(self, seconds: float) -> None:
        """Step until nothing is under way, and has not been for two polls of the hub."""
        ends, looks = self.clock.seconds + seconds, -1
        while self.clock.seconds < ends:
            self.step()
            record = self.record
            if record.stage not in (Stage.IDLE, Stage.HELD) or record.hub.state is not BreakerState.CLOSED:
                looks = -1
            elif looks < 0:
                looks = record.watch.polls
            elif record.watch.polls >= looks + 3 and self._loop is not None and self._loop.rest.seconds:
                return
        raise AssertionError(f"it does not settle: {self.record.stage} {self.record.update}, {self.record.watch}")

    # What can be seen.

    @property
    def record(self) -> ModelRecord:
        """The updater's latest record."""
        return self._last if self._loop is None else self._loop.publisher.snapshot.record

    def shown_fault(self) -> str:
        """Why the updater makes no progress, as the status says."""
        return "" if self._loop is None else self._loop.publisher.snapshot.fault

    def pointer(self) -> str:
        """Bundle digest that a restart would load; empty if there is none, or it cannot be read."""
        with contextlib.suppress(BundleBroken):
            row = read_committed(self.state).get(MODEL)
            return "" if row is None else row.bundle_digest
        return ""

    def has_whole_pointer(self) -> bool:
        """Whether the pointer can be read, or nothing was committed yet."""
        return bool(self.pointer()) or not (self.state / POINTER_NAME).exists()

    def committed_revisions(self) -> set[str]:
        """Revisions that were ever committed, by the history."""
        assert self._journal is not None
        past = [row for _, row in self._journal.history(MODEL, 1000, 0)]
        found = {row.update.revision for row in past if row.outcome is Outcome.COMMITTED}
        return found | self._committed_before

    def updates_of(self, revision: str) -> list[tuple[str, Outcome | None]]:
        """Id and outcome of every update to a revision, newest first."""
        assert self._journal is not None
        past = [row for _, row in self._journal.history(MODEL, 1000, 0)]
        return [(row.update.update_id, row.outcome) for row in past if row.update.revision == revision]

    def is_whole(self, bundle: str) -> bool:
        """Whether a bundle is sealed."""
        with contextlib.suppress(BundleBroken):
            return bundle == read_bundle(bundle_folder(self.state, bundle)).bundle_digest
        return False

    def outside(self) -> dict[str, tuple[int, int]]:
        """Size and time of change of everything beside the state folder."""
        found: dict[str, tuple[int, int]] = {}
        state, folders = str(self.state), [str(self.folder)]
        while folders:
            with os.scandir(folders.pop()) as entries:
                for entry in entries:
                    if entry.path == state:
                        continue
                    seen = entry.stat(follow_symlinks=False)
                    found[entry.path] = (seen.st_size, seen.st_mtime_ns)
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
        return found

    def check_intent(self, bundle: str) -> None:
        """Fail unless the journal on the disk says that a trial begins."""
        assert self._journal is not None
        with self.disk.overlooked():
            record = self._journal.load(MODEL) or ModelRecord(MODEL)
        if record.is_quarantined(self.sources[bundle]) or self.sources[bundle] in self.book.condemned:
            self.violations.append("what had failed was activated again")
        is_committed = record.committed is not None and record.committed.bundle_digest == bundle
        is_update = record.stage is Stage.ACTIVATING and record.under_way.bundle_digest == bundle
        if not is_committed and not is_update:
            self.violations.append(f"a trial began while the journal said {record.stage}")

    def close(self) -> None:
        """Remove the story's folder."""
        self.end_updater()
        shutil.rmtree(self.folder)

    def _begin(self) -> bool:
        """Start the updater; False if its journal cannot be used now."""
        self.starts += 1
        self._commands, self._stopping = Operators(threading.Event()), threading.Event()
        try:
            with self.disk.mounted():
                self._journal = StoryJournal(self.journal_file, self.rules)
                self._look_whether_whole(self._journal)
                self._loop = ModelLoop(self._parts(self._journal))
        except (Killed, JournalUnusable, OSError):
            self._journal = None
            self.disk.forget_life()
            return False
        return True

    def _look_whether_whole(self, journal: StoryJournal) -> None:
        with self.disk.overlooked():
            found = journal.found()
        if self._possible and found not in self._possible:
            self.violations.append("the journal holds what was never written so, or lost what was")
        self._possible[:] = [found]
        journal.possible = self._possible

    def _parts(self, journal: Journal) -> LoopDependencies:
        guard = StepGuard(self._commands, self._stopping)
        shared = StoreOptions(self.state, StagingLimits(reserve_bytes=0))
        ports = Ports(
            hub=self.hub,
            control=self.server,
            golden=self.golden,
            store=BundleStore(shared, MODEL, self.clock, guard, References, digest_of_scripted),
            converter=ChildConverter(self.state, ConvertLimits(), guard, self.convert),
            clock=self.clock,
        )
        return LoopDependencies(
            model=MODEL,
            ports=ports,
            journal=journal,
            rules=self.rules,
            clock=self.clock,
            observer=self.book,
            crash=CrashPoints(),
            commands=self._commands,
            guard=guard,
            wake=threading.Event(),
            stopping=self._stopping,
            fresh_id=lambda: f"update-{next(self._ids)}",
            jitter=self._random.random,
        )

    def _boots_from(self) -> str:
        bundle = self.pointer()
        return bundle if bundle and self.is_whole(bundle) else ""
