"""L20: the root is read-only, nothing names a temporary folder, and the state folder has an odd name.

The stack runs in a mount namespace of its own, in which only the state folder can be written. An update is committed,
the operator's commands reach it, a killed server comes back, and temporary files are in the state folder.
"""

import os
import shutil
import signal
import subprocess
import time

from common.settings import inherit_environment
from dev.chaos.catalog import Findings, Skipped, Task
from dev.harness.process import ROOT
from dev.harness.supervised import ScriptedStack

NAMES = ("odd # name %41", "Zustand-ä")
BACK_SECONDS = 30.0
_MOUNTS = 'mount --bind "$0" "$0" && mount -o remount,bind,ro / && exec "$@"'


def run(task: Task) -> Findings:
    """Run one stack for each name."""
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        raise Skipped("there is no permission to make a mount namespace")
    findings = Findings(count=len(NAMES))
    for number, name in enumerate(NAMES):
        _run(task, f"stack-{number}", name, findings)
        task.say(f"{name!r}: an update, a command, a killed server")
    return findings


def _run(task: Task, folder: str, name: str, findings: Findings) -> None:
    place = task.folder / folder
    place.mkdir()
    stack = ScriptedStack(place, place / name, {"TMPDIR": ""})
    stack.prefix = ("unshare", "--mount", "sh", "-c", _MOUNTS, str(stack.state))
    with stack:
        stack.publish("v1.1.0")
        stack.wait_committed("v1.1.0")
        command = [str(ROOT / ".venv/bin/hotslot"), "updates", "check"]
        environment = {**inherit_environment(), "HOTSLOT_CONFIG": str(stack.config)}
        told = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
        killed = time.monotonic()
        old = stack.send_signal("server", signal.SIGKILL)
        stack.wait(lambda: stack.pid("server") not in (0, old) and stack.is_serving(), "the server is back")
        back = time.monotonic() - killed
        is_written = _can_write(stack.pid("server"))
        code = stack.end()
    findings.numbers[f"back_seconds_{folder}"] = round(back, 2)
    findings.expect(so=told.returncode == 0, otherwise=f"{name!r}: the command failed: {told.stderr[-300:]}")
    findings.expect(so=(stack.state / "run" / "tmp").is_dir(), otherwise=f"{name!r}: there is no temporary folder")
    findings.expect(so=not is_written, otherwise=f"{name!r}: the root could be written")
    findings.expect(so=code == 0, otherwise=f"{name!r}: the stack ended with {code}")
    findings.expect(so=back < BACK_SECONDS, otherwise=f"{name!r}: the killed server was back after {back:.1f} s")


def _can_write(pid: int) -> bool:
    """Whether a file can be made in the /tmp that a process sees."""
    command = ["nsenter", "--mount", "--target", str(pid), "sh", "-c", "touch /tmp/hotslot-written"]
    return subprocess.run(command, stderr=subprocess.DEVNULL, check=False).returncode == 0
