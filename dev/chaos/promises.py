"""The seven promises, which must hold after every fault; checked while a step runs and at its end."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from common.bundle import BundleBroken, bundle_folder, read_bundle, read_committed
from common.paths import RUN_FOLDER
from dev.chaos.history import Moment, steps_back, strange_answers
from dev.harness.load import Load, LoadReport, Refused
from dev.harness.revisions import MODEL
from dev.harness.settings import TRIAL_LEASE_SECONDS
from dev.harness.supervised import ScriptedStack
from dev.harness.waiting import eventually
from updater.core.rules import ReleasePolicy
from updater.core.versions import is_after
from updater.store.journal import Journal, PastEvent, PastUpdate
from updater.store.state_folder import STATE_ENTRIES

LOOK_SECONDS = 0.1
NEXT_SECONDS = 90.0  # of a healthy update, on a busy machine
_POLICY = ReleasePolicy()
_OURS = ("hub/", "made/", "bare/", "secured/", "arm", "clock")  # what a step itself writes
_IN_STATE = STATE_ENTRIES | {RUN_FOLDER}


@dataclass(slots=True)
class Promises:
    """Watches the committed pointer during a step; `kept` checks the other promises at its end."""

    stack: ScriptedStack
    pointer: list[Moment] = field(default_factory=list)  # committed revisions, in their order
    broken: list[str] = field(default_factory=list)
    _outside: dict[str, tuple[int, int]] = field(default_factory=dict)
    _ends: threading.Event = field(default_factory=threading.Event)
    _watching: threading.Thread | None = None

    @property
    def committed(self) -> list[str]:
        """Revisions that were committed, in their order."""
        return [moment.revision for moment in self.pointer]

    def __enter__(self) -> Self:
        """Start watching."""
        self._outside = _files(self.stack.folder, self.stack.state)
        self._watching = threading.Thread(target=self._watch, daemon=True)
        self._watching.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop watching."""
        self._ends.set()
        if self._watching is not None:
            self._watching.join(10)

    def kept(
        self,
        next_revision: str,
        load: Load,
        is_excused: Callable[[Refused], bool] = lambda _: False,
        limit: float = NEXT_SECONDS,
    ) -> list[str]:
        """Publish a healthy revision, wait for its commit, stop the stack, and check all promises.

        Args:
            next_revision: newer than all before.
            load: the callers; they continue during the healthy update, and are stopped then.
            is_excused: whether a call without an answer is excused because its server was killed.
            limit: of the healthy update, seconds.

        Returns:
            The promises that are broken, each with its number.
        """
        self._new_files_by_us(next_revision)
        with self._noting("6: the next healthy update did not succeed by itself"):
            self.stack.wait_committed(next_revision, limit)
            self.stack.wait_alone()
        with self._noting("7: the disk is not given back"):
            eventually(self._is_small, NEXT_SECONDS, f"{self._stored_bytes()} bytes are stored")
        load.stop()
        self._look_at_calls(load.report(), is_excused)
        self._look_at_serving()
        code = self.stack.end()
        self._note(so=code == 0, otherwise=f"1: the stack ended with {code}")
        left = [process.pid for process in self.stack.living()]
        self._note(so=not left, otherwise=f"1: processes are left: {left}")
        self._look_outside()
        self._look_at_journal()
        return self.broken

    def _watch(self) -> None:
        while not self._ends.wait(LOOK_SECONDS):
            with contextlib.suppress(OSError):
                try:
                    row = read_committed(self.stack.state).get(MODEL)
                    if row is not None and row.revision not in self.committed[-1:]:
                        self.pointer.append(Moment(time.monotonic(), row.revision))
                        read_bundle(bundle_folder(self.stack.state, row.bundle_digest))
                except BundleBroken as error:
                    self.broken.append(f"1: what a start would load is broken: {error}")

    def _look_at_calls(self, report: LoadReport, is_excused: Callable[[Refused], bool]) -> None:
        lost = [one.sentence for one in report.refusals if not is_excused(one)]
        self._note(so=not lost, otherwise=f"2: {len(lost)} of {report.attempts} calls lost, first: {lost[:3]}")
        wrong = report.wrong
        self._note(so=not wrong, otherwise=f"2: {len(wrong)} answers of no revision's own, first: {wrong[:3]}")
        strange = strange_answers(report.answers, self.pointer, _is_newer, TRIAL_LEASE_SECONDS)
        self._note(so=not strange, otherwise=f"3: {len(strange)} answers that nothing explains, first: {strange[:3]}")
        back = steps_back(self.pointer, _is_newer)
        self._note(so=not back, otherwise=f"3: the committed revision went back: {back}")

    def _look_at_serving(self) -> None:
        row, state = self.stack.committed(), self.stack.model_state()
        if row is None or state is None:
            self.broken.append("1: nothing is committed, or no server answers")
            return
        active = [slot for slot in state.slots if slot.load_id == state.active_load_id]
        digests = [slot.bundle_digest for slot in active]
        self._note(
            so=digests == [row.bundle_digest], otherwise=f"1: {digests} serves, {row.bundle_digest} is committed"
        )

    def _look_outside(self) -> None:
        after = _files(self.stack.folder, self.stack.state)
        changed = sorted(name for name in {*after, *self._outside} if after.get(name) != self._outside.get(name))
        self._note(so=not changed, otherwise=f"4: changed outside the state folder: {changed[:5]}")
        strays = {path.name for path in self.stack.state.iterdir()} - _IN_STATE
        self._note(so=not strays, otherwise=f"7: left in the state folder: {sorted(strays)}")

    def _look_at_journal(self) -> None:
        journal = Journal(self.stack.state / "journal.db")
        try:
            record = journal.load(MODEL)
            past = [(update, journal.events(update.update.update_id)) for _, update in journal.history(MODEL, 1000, 0)]
        finally:
            journal.close()
        if record is None:
            self.broken.append("3: the journal has no record")
            return
        above = [name for name in self.committed if is_after(name, record.min_version, _POLICY)]
        self._note(
            so=not above, otherwise=f"3: the minimal version is {record.min_version}, and {above} were committed"
        )
        again = _activated_again(past)
        self._note(so=not again, otherwise=f"5: activated in quarantine: {again}")

    def _new_files_by_us(self, revision: str) -> None:
        """Publish a revision; changes that this makes outside of the state folder are expected."""
        before = _files(self.stack.folder, self.stack.state)
        changed = sorted(name for name in {*before, *self._outside} if before.get(name) != self._outside.get(name))
        strange = [name for name in changed if not name.startswith(_OURS)]
        self._note(so=not strange, otherwise=f"4: changed outside the state folder: {strange[:5]}")
        self.stack.publish(revision)
        self._outside = _files(self.stack.folder, self.stack.state)

    def _is_small(self) -> bool:
        """Whether the folder contains only two committed bundles with their sources."""
        rows = [*(self.stack.state / "bundles").glob("sha256-*"), *(self.stack.state / "sources").glob("sha256-*")]
        return len(rows) <= 2 * 2 and not any((self.stack.state / "incoming").glob("*"))

    def _stored_bytes(self) -> int:
        return sum(size for size, _ in _files(self.stack.state, self.stack.state / RUN_FOLDER).values())

    @contextlib.contextmanager
    def _noting(self, what: str) -> Iterator[None]:
        try:
            yield
        except AssertionError as error:
            self.broken.append(f"{what}: {error}")

    def _note(self, *, so: bool, otherwise: str) -> None:
        if not so:
            self.broken.append(otherwise)


def _is_newer(one: str, other: str) -> bool:
    return is_after(one, other, _POLICY)


def _activated_again(past: list[tuple[PastUpdate, list[PastEvent]]]) -> list[str]:
    """Revisions whose trial began after their content was quarantined; by order of events, since clocks jump."""
    quarantined: set[str] = set()
    again = []
    for update, events in reversed(past):  # the oldest first
        for event in events:
            if event.name == "trial_began" and update.update.source_digest in quarantined:
                again.append(update.update.revision)
            if event.name == "revision_quarantined":
                quarantined.add(update.update.source_digest)
    return again


def _files(folder: Path, but: Path) -> dict[str, tuple[int, int]]:
    """Size and modification time of every file below a folder, except those below another; the stack's log grows."""
    found = {}
    for path in folder.rglob("*"):
        if path.is_relative_to(but) or path.name == "stack.log" or not path.is_file():
            continue
        with contextlib.suppress(FileNotFoundError):
            seen = path.stat()
            found[str(path.relative_to(folder))] = (seen.st_size, seen.st_mtime_ns)
    return found
