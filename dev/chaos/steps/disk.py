"""D1: the disk of the state folder is full: at the first byte, mid-file, at seal, record and pointer.

The state folder is a separate file system of a few MB, and a ballast file fills it completely. While it is full,
callers are answered and nothing is committed; when there is space again, the update continues without an operator.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from common.paths import RUN_FOLDER
from dev.chaos.catalog import Findings, Skipped, Task
from dev.chaos.promises import Promises
from dev.harness.load import Load
from dev.harness.supervised import ScriptedStack

DISK_MB, REVISION_BYTES = 24, 4 << 20
FULL_SECONDS = 3.0  # two tries of an effect; after three the update waits for ten minutes
CHUNK = 1 << 12
# Points at which the updater is stopped while the disk is filled.
PLACES = {
    "first byte": "before:StageRevision",
    "seal": "before:VerifyAndSeal",
    "record": "stop:GATING",
    "record of a trial": "stop:OBSERVING",
    "pointer": "before:WritePointer",
    "collection": "before:CollectGarbage",
}
MID_FILE, AFTER_COMMIT = "mid-file", "collection"


def run(task: Task) -> Findings:
    """Fill the disk at one point after the other."""
    findings = Findings()
    with small_disk(task.folder / "state") as state:
        whole = ScriptedStack(task.folder, state=state)
        with whole as stack, Promises(stack) as promises, stack.load() as load:
            for number, place in enumerate([*PLACES, MID_FILE], 1):
                fill_at(stack, place, f"v1.{number}.0", findings, load)
                task.say(f"full at the {place}: {findings.numbers.get(place.replace(' ', '_'))}")
            findings.troubles += promises.kept("v1.99.0", load)
            report = load.report()
    findings.numbers |= {"attempts": report.attempts, "failed": len(report.failed), "disk_mb": DISK_MB}
    return findings


@contextlib.contextmanager
def small_disk(place: Path) -> Iterator[Path]:
    """A file system of a few MB.

    Raises:
        Skipped: mounting is not permitted.
    """
    place.mkdir()
    mount = shutil.which("mount")
    command = [str(mount), "-t", "tmpfs", "-o", f"size={DISK_MB}m,mode=0700", "hotslot-chaos", str(place)]
    done = subprocess.run(command, capture_output=True, text=True, check=False) if mount else None
    if done is None or done.returncode:
        why = "there is no mount" if done is None else done.stderr.strip()
        raise Skipped(f"a small file system cannot be mounted here (needs root): {why}")
    try:
        yield place
    finally:
        subprocess.run(["/usr/bin/env", "umount", "--lazy", str(place)], check=False)


def fill_at(stack: ScriptedStack, place: str, revision: str, findings: Findings, load: Load) -> None:
    """Fill the disk at a point for a while, then wait for the end of the update."""
    before = stack.committed()
    if place == MID_FILE:
        stack.publish(revision, weights_bytes=REVISION_BYTES)
        freeze_in_transfer(stack, revision)
    else:
        point = PLACES[place]
        stack.arm(point if point.startswith("stop:") else f"stop:{point}")
        old = stack.send_signal("updater", signal.SIGKILL)
        stack.wait(lambda: stack.pid("updater") not in (0, old), "another updater runs")
        stack.publish(revision, weights_bytes=REVISION_BYTES)
        stack.wait(lambda: is_frozen(stack), f"the updater is stopped at {point}")
    ballast = stack.state / RUN_FOLDER / "ballast"
    fill(ballast)
    answers, told = load.answers, len(stack.log_path.read_bytes())
    stack.send_signal("updater", signal.SIGCONT)
    time.sleep(FULL_SECONDS)
    after = stack.committed()
    row = "nothing" if after is None else after.revision
    is_kept = after == before or place == AFTER_COMMIT
    findings.expect(so=is_kept, otherwise=f"{place}: {row} was committed on a full disk")
    findings.expect(so=load.answers > answers, otherwise=f"{place}: no request was answered while the disk was full")
    began = time.monotonic()
    ballast.unlink()
    stack.wait_committed(revision)
    stack.wait_alone()
    lines = stack.log_path.read_bytes()[told:].splitlines()
    complaints = sum(b"No space left" in line or b"DISK_FULL" in line or b"is full" in line for line in lines)
    findings.numbers[place.replace(" ", "_")] = (
        f"told {complaints} times, at rest {time.monotonic() - began:.1f} s after there was room"
    )
    findings.count += 1


def freeze_in_transfer(stack: ScriptedStack, revision: str) -> None:
    """Stop the updater while a file of this revision is partly downloaded."""
    updater = stack.pid("updater")
    ends = time.monotonic() + 60
    while time.monotonic() < ends:
        for path in (stack.state / "incoming").glob("*/files/model.safetensors*"):
            with contextlib.suppress(FileNotFoundError):
                if 0 < path.stat().st_size < REVISION_BYTES:
                    os.kill(updater, signal.SIGSTOP)
                    if path.exists() and path.stat().st_size < REVISION_BYTES:
                        return
                    os.kill(updater, signal.SIGCONT)
    raise AssertionError(f"{revision} was never seen half there")


def fill(ballast: Path) -> None:
    """Write until the disk is full."""
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"\0" * CHUNK)


def is_frozen(stack: ScriptedStack) -> bool:
    """Whether a process of the stack is stopped."""
    return any(process.status() == "stopped" for process in stack.living())
