"""A hub that is wrong, a disk that is full, a file that is lost: at random, on a running stack under load.

The hub sends other bytes than it lists, lists no hashes, moves a tag; a pipe lies in the place of a manifest; the
journal is deleted or an older one is put back; the updater has no descriptors left; the disk is full. Each lasts a
moment. A lost journal is noticed and made anew from its witness, as docs/lost-journal.md says. At the end the seven
promises hold.
"""

import contextlib
import itertools
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import grpc
import psutil

from common.durable import AlreadyRunning, lock_instance
from common.paths import RUN_FOLDER, UPDATER_LOCK
from common.source import MANIFEST_NAME
from dev.chaos.catalog import Findings, Task
from dev.chaos.promises import Promises
from dev.chaos.steps.disk import fill
from dev.chaos.steps.storm import open_state
from dev.harness.hub import Hub, hub
from dev.harness.revisions import MODEL, publish_scripted
from dev.harness.settings import Sections
from dev.harness.supervised import ScriptedStack
from hotslot.updates.v1 import updates_pb2 as pb
from updater.settings import JOURNAL_NAME
from updater.store.restore import restore_from_witness
from updater.store.witness import rollback_path

SECONDS = 600.0
BAD_SHARE = 0.25
PAUSE_SECONDS = (0.5, 4.0)
MOMENT_SECONDS = 2.0
NOTICE_SECONDS = 20.0  # within which a lost journal is shown: one look, or a start of the updater
NEXT_SECONDS = 240.0  # a mismatch is waited for, and the breaker may be open
# What is done, and how often of a hundred.
ACTIONS = {
    "other bytes": 15,
    "no hashes": 15,
    "moved tag": 10,
    "pipe": 12,
    "deleted journal": 10,
    "older journal": 8,
    "no descriptors": 15,
    "full disk": 15,
}


@dataclass(slots=True)
class WrongHub:
    """The faults so far."""

    stack: ScriptedStack
    chance: random.Random
    hub: Hub
    findings: Findings
    is_small: bool = False  # the disk
    counts: dict[str, int] = field(default_factory=dict)
    published: list[str] = field(default_factory=list)
    bad: set[str] = field(default_factory=set)

    def publish(self, number: int) -> None:
        """Publish a revision; one of four is bad."""
        revision = f"v1.{number}.0"
        self.published.append(revision)
        if self.chance.random() < BAD_SHARE:
            self.bad.add(revision)
            self.stack.publish_bad(revision)
        else:
            self.stack.publish(revision)

    def inject(self) -> None:
        """Inject one fault."""
        name = self.chance.choices(list(ACTIONS), list(ACTIONS.values()))[0]
        actions: dict[str, Callable[[], bool]] = {
            "other bytes": lambda: self._spoil("file:model.safetensors flip"),
            "no hashes": lambda: self._spoil("files unhashed"),
            "moved tag": self._move_tag,
            "pipe": self._put_pipe,
            "deleted journal": self._delete_journal,
            "older journal": self._put_older_journal,
            "no descriptors": self._take_descriptors,
            "full disk": self._fill_disk,
        }
        self.counts[name] = self.counts.get(name, 0) + actions[name]()

    def _spoil(self, fault: str) -> bool:
        self.hub.arm(fault)
        time.sleep(MOMENT_SECONDS)
        self.hub.arm()
        return True

    def _move_tag(self) -> bool:
        """Publish other content under the newest name: it is listed anew, or an alarm if it was fetched before."""
        revision = self.published[-1]
        if revision in self.bad:
            return False
        place = self.stack.hub / MODEL / revision
        shutil.move(place, self.stack.folder / "bare" / f"moved-{len(self.counts)}-{time.monotonic_ns()}")
        publish_scripted(self.stack.hub, revision, self.stack.folder / "made")
        return True

    def _put_pipe(self) -> bool:
        manifest = self.stack.hub / MODEL / self.published[-1] / MANIFEST_NAME
        kept = manifest.with_name("kept")
        manifest.rename(kept)
        os.mkfifo(manifest)
        time.sleep(MOMENT_SECONDS)
        manifest.unlink()
        kept.rename(manifest)
        return True

    def _delete_journal(self) -> bool:
        self._keep_older()
        (self.stack.state / JOURNAL_NAME).unlink()
        rollback_path(self.stack.state / JOURNAL_NAME).unlink(missing_ok=True)
        self._recover("a deleted journal")
        return True

    def _put_older_journal(self) -> bool:
        """Put back what was kept when the journal was deleted for the last time."""
        older = self.stack.folder / "bare" / "older.db"
        if not older.exists():
            self._keep_older()
            return False
        before = self.stack.status().committed_revision
        self.stack.send_signal("updater", signal.SIGKILL)
        (self.stack.state / JOURNAL_NAME).unlink()
        rollback_path(self.stack.state / JOURNAL_NAME).unlink(missing_ok=True)
        shutil.copyfile(older, self.stack.state / JOURNAL_NAME)
        self._recover(f"an older journal, {before} being committed")
        return True

    def _keep_older(self) -> None:
        with contextlib.suppress(OSError):
            shutil.copyfile(self.stack.state / JOURNAL_NAME, self.stack.folder / "bare" / "older.db")

    def _recover(self, what: str) -> None:
        """Expect that the loss is shown and serving goes on; then do what the page says."""
        ends = time.monotonic() + NOTICE_SECONDS
        while "journal" not in self._fault():
            if time.monotonic() > ends:
                self.findings.troubles.append(f"{what} was not shown within {NOTICE_SECONDS:g} s")
                break
            time.sleep(0.1)
        self.findings.expect(so=bool(self.stack.serving()), otherwise=f"nothing serves after {what}")
        while not self._restore():
            time.sleep(0.01)
        self.stack.wait(self._resume, "the updater runs again")

    def _resume(self) -> bool:
        try:
            self.stack.operator.Resume(pb.ResumeRequest(), timeout=30)
        except grpc.RpcError:  # it has not started yet
            return False
        return True

    def _restore(self) -> bool:
        """Between the end of one updater and the start of the next, as after `supervisorctl stop updater`."""
        with contextlib.suppress(psutil.NoSuchProcess):
            pid = self.stack.pid("updater")
            if pid:
                psutil.Process(pid).kill()
                psutil.Process(pid).wait(5)
        try:
            with lock_instance(self.stack.state / RUN_FOLDER / UPDATER_LOCK):
                restore_from_witness(self.stack.state)
        except AlreadyRunning:
            return False
        return True

    def _fault(self) -> str:
        try:
            return self.stack.status().fault
        except grpc.RpcError:
            return "there is no answer"

    def _take_descriptors(self) -> bool:
        try:
            process = psutil.Process(self.stack.pid("updater"))
            limit = process.rlimit(psutil.RLIMIT_NOFILE)
            process.rlimit(psutil.RLIMIT_NOFILE, (process.num_fds(), limit[1]))
            time.sleep(MOMENT_SECONDS)
            process.rlimit(psutil.RLIMIT_NOFILE, limit)
        except psutil.Error:
            return False
        return True

    def _fill_disk(self) -> bool:
        if not self.is_small:
            return False
        ballast = self.stack.state / RUN_FOLDER / "ballast"
        fill(ballast)
        time.sleep(MOMENT_SECONDS)
        ballast.unlink()
        return True


def run(task: Task) -> Findings:
    """Inject faults, then check the promises."""
    findings = Findings()
    with hub(task.folder) as served, open_state(task) as (state, is_small):
        sections: Sections = {"model": {"hub_model": f"any/{MODEL}"}, "updater": {"hub_endpoint": served.url}}
        with (
            ScriptedStack(task.folder, state, {}, sections) as stack,
            Promises(stack) as promises,
            stack.load() as load,
        ):
            faults = WrongHub(stack, random.Random(task.seed), served, findings, is_small)
            _inject(faults, task.seconds or SECONDS)
            task.say(f"{len(faults.published)} published, {len(faults.bad)} of them bad; {faults.counts}")
            findings.troubles += promises.kept(f"v1.{len(faults.published) + 1}.0", load, limit=NEXT_SECONDS)
            report = load.report()
    shown = [name for name in promises.committed if name in faults.bad]
    findings.expect(so=not shown, otherwise=f"bad revisions were committed: {shown}")
    findings.count = sum(faults.counts.values())
    findings.numbers = {name.replace(" ", "_"): count for name, count in sorted(faults.counts.items())}
    findings.numbers |= {
        "published": len(faults.published),
        "of_them_bad": len(faults.bad),
        "committed": len(promises.committed),
        "attempts": report.attempts,
        "lost": len(report.refusals),
    }
    return findings


def _inject(faults: WrongHub, seconds: float) -> None:
    """Publish revisions and inject faults until the time is over."""
    ends, numbers = time.monotonic() + seconds, itertools.count(1)
    newest_since = 0.0
    while time.monotonic() < ends:
        if not faults.published or time.monotonic() - newest_since > 3 * PAUSE_SECONDS[1]:
            faults.publish(next(numbers))
            newest_since = time.monotonic()
        time.sleep(faults.chance.uniform(*PAUSE_SECONDS))
        faults.inject()
