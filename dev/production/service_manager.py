"""A systemd of its own, as the first process of fresh namespaces, with an installation of hotslot in /opt/hotslot.

It sees this machine's programs, but has its own /etc, /opt, /run, /srv, /tmp, /var/lib, control groups
and loopback network, so that nothing of a run stays on the machine, and no port of it is in use.
"""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dev.harness.process import ROOT
from dev.harness.waiting import eventually

SYSTEMD = Path("/lib/systemd/systemd")
INSTALLED = "/opt/hotslot"
FILES = "/srv/files"  # where a machine has what was put beside its installation
_PYTHON = "/usr/bin/python3"  # another user reaches it, unlike one in a home
_LIMIT_SECONDS = 300.0  # of a machine that is busy with other things
_GROUPS = Path("/sys/fs/cgroup")
_GONE_SECONDS = 10.0
_COMMON_OPTIONS = {"rw", "relatime", "noatime", "nosuid", "nodev", "noexec"}
_SPACES = ("--mount", "--pid", "--uts", "--ipc", "--cgroup", "--net")
_TARGETS = {
    "sysinit": "",
    "basic": "Requires=sysinit.target\nAfter=sysinit.target\n",
    "shutdown": "",
    "network-online": "",
    "multi-user": "Requires=basic.target\nAfter=basic.target\n",
}
# $1 is a folder with `opt`, `files` and an empty `scratch`; the rest are mounts of control groups.
_BOOT = """
folder=$1; shift
mount --make-rprivate /
mount -t proc proc /proc
ip link set lo up
mount -t tmpfs tmpfs "$folder/scratch"
mkdir "$folder/scratch/upper" "$folder/scratch/work"
mount -t overlay -o "lowerdir=/etc,upperdir=$folder/scratch/upper,workdir=$folder/scratch/work" overlay /etc
rm -rf /etc/hotslot /etc/systemd/system; mkdir -p /etc/systemd/system; cp "$folder"/units/* /etc/systemd/system/
for hidden in /opt /srv /run /var/lib; do mount -t tmpfs -o mode=755 tmpfs "$hidden"; done
mkdir /opt/hotslot /srv/files
mount --bind "$folder/opt" /opt/hotslot
mount --bind "$folder/files" /srv/files
mount -t tmpfs -o mode=1777 tmpfs /tmp
mount -t tmpfs tmpfs /sys/fs/cgroup
while [ $# -gt 0 ]; do
  mkdir -p "/sys/fs/cgroup/$1"; mount -t "$2" -o "$3" "$2" "/sys/fs/cgroup/$1"; shift 3
done
exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin container=other SYSTEMD_UNIT_PATH=/etc/systemd/system \
    SYSTEMD_LOG_TARGET=console /lib/systemd/systemd --system --unit=basic.target --show-status=false
"""


class NoServiceManager(Exception):
    """No systemd can be started here; the message says what is missing."""


@dataclass(frozen=True, slots=True)
class _Hierarchy:
    """A mount of control groups; of version 1 there is one for each controller."""

    name: str  # below /sys/fs/cgroup; empty for the only one
    kind: str
    options: str


@dataclass(frozen=True, slots=True)
class Machine:
    """What the systemd with this process id runs."""

    pid: int

    def run(self, *command: str, limit: float = _LIMIT_SECONDS) -> "subprocess.CompletedProcess[str]":
        """Run a command as root beside it, where no service's sandbox holds."""
        inside = ["nsenter", "--target", str(self.pid), *_SPACES, *command]
        environment = {
            "PATH": f"{INSTALLED}/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": "/tmp",  # noqa: S108  the machine's own
            "HOTSLOT_CONFIG": "/etc/hotslot/hotslot.toml",
            "LANG": "C.UTF-8",
            "COLUMNS": "140",
        }
        return subprocess.run(
            inside, env=environment, cwd="/", capture_output=True, text=True, timeout=limit, check=False
        )

    def do(self, *command: str) -> str:
        """Run a command that must succeed; returns its output."""
        done = self.run(*command)
        if done.returncode:
            raise AssertionError(f"{' '.join(command)}: {done.returncode}: {(done.stderr + done.stdout)[-2000:]}")
        return done.stdout.strip()

    def show(self, unit: str, name: str) -> str:
        """A property of a unit."""
        return self.do("systemctl", "show", "--property", name, "--value", unit)

    def read(self, path: str) -> str:
        """A file of the machine."""
        return Path(f"/proc/{self.pid}/root{path}").read_text(encoding="utf-8")

    def write(self, path: str, text: str) -> None:
        """Make a file that everybody may read, and its folder."""
        whole = Path(f"/proc/{self.pid}/root{path}")
        whole.parent.mkdir(parents=True, exist_ok=True)
        whole.write_text(text, encoding="utf-8")
        whole.chmod(0o644)


def install(folder: Path) -> None:
    """Install hotslot's wheel with its locked dependencies, for a machine that is made of this folder."""
    uv = str(ROOT / ".tools" / "uv" / "bin" / "uv")
    wheels = folder / "wheels"
    _do(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(wheels))
    locked = (ROOT / "dev/requirements/ci.txt").read_text(encoding="utf-8").splitlines()
    pins = [line.rstrip("\\ ") for line in locked if re.match(r"[a-z0-9].*==", line)]  # without their hashes
    (folder / "pins.txt").write_text("\n".join(pins), encoding="utf-8")
    _do(uv, "venv", "--quiet", "--no-config", "--relocatable", "--python", _PYTHON, str(folder / "opt"))
    python, wheel = str(folder / "opt" / "bin" / "python"), str(next(wheels.glob("*.whl")))
    _do(uv, "pip", "install", "--quiet", "--no-config", "--python", python, "-c", str(folder / "pins.txt"), wheel)
    # The modules' byte code, as pip writes it; of what is used alone.
    _do(python, "-c", "import inference.runner.main, inference.server.main, updater.daemon, hotslot_watchdog.stack")


@contextlib.contextmanager
def running_systemd(folder: Path) -> Iterator[Machine]:
    """A machine with what `install` put into the folder; `folder/files` is its /srv/files.

    Raises:
        NoServiceManager: this machine lets none be started.
    """
    if os.geteuid() != 0:
        raise NoServiceManager("a systemd of its own needs root")
    if not SYSTEMD.exists() or not Path(_PYTHON).exists():
        raise NoServiceManager(f"{SYSTEMD} and {_PYTHON} are needed")
    for name in ("opt", "files", "scratch", "units"):
        (folder / name).mkdir(exist_ok=True)
    for name, needs in _TARGETS.items():
        (folder / "units" / f"{name}.target").write_text(f"[Unit]\nDefaultDependencies=no\n{needs}", encoding="utf-8")
    hierarchies = _list_hierarchies()
    with _own_groups(hierarchies) as join:
        mounts = [part for row in hierarchies for part in (row.name, row.kind, row.options)]
        spaces = ["unshare", "--cgroup", "--net", "--mount", "--pid", "--fork", "--uts", "--ipc", "--kill-child"]
        boot = [*spaces, "sh", "-ceu", _BOOT, "sh", str(folder), *mounts]
        # It ends with this process, however that ends.
        command = ["setpriv", "--pdeathsig=KILL", "sh", "-ceu", f'{join}exec "$@"', "sh", *boot]
        with (folder / "systemd.log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as outer:
            try:
                yield Machine(_wait_for_systemd(outer, folder))
            finally:
                for pid in _children(outer.pid):
                    os.kill(pid, signal.SIGKILL)  # the first process of its namespace: all others end with it
                outer.kill()


def _wait_for_systemd(outer: "subprocess.Popen[bytes]", folder: Path) -> int:
    """Its process id, once it takes commands."""

    def find() -> int:
        if outer.poll() is not None:
            said = (folder / "systemd.log").read_text(errors="replace").strip()[-400:]
            raise NoServiceManager(f"no systemd of its own starts in new namespaces: {said}")
        for pid in _children(outer.pid):
            if Path(f"/proc/{pid}/comm").read_text().strip() == "systemd":
                done = Machine(pid).run("systemctl", "is-active", "basic.target")
                return pid if done.stdout.strip() == "active" else 0
        return 0

    return eventually(find, 30.0, "systemd takes commands", 0.2)


def _children(pid: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _list_hierarchies() -> list[_Hierarchy]:
    found = []
    for line in Path("/proc/mounts").read_text(encoding="utf-8").splitlines():
        _, place, kind, options, *_ = line.split(" ")
        if kind not in ("cgroup", "cgroup2") or not (place + "/").startswith(f"{_GROUPS}/"):
            continue
        # Of version 2 all options are the default.
        own = [word for word in options.split(",") if word not in _COMMON_OPTIONS] if kind == "cgroup" else []
        if any(word.startswith("name=") for word in own):
            own.insert(0, "none")  # a hierarchy without a controller
        found.append(_Hierarchy(place[len(str(_GROUPS)) :].strip("/"), kind, ",".join(own) or "rw"))
    return found


@contextlib.contextmanager
def _own_groups(hierarchies: list[_Hierarchy]) -> Iterator[str]:
    """A group in each hierarchy; yields the shell's lines that join them. A cgroup namespace begins at them."""
    made = [_GROUPS / row.name / f"hotslot-systemd-{os.getpid()}" for row in hierarchies]
    try:
        for group in made:
            group.mkdir()
            for name in ("cpuset.cpus", "cpuset.mems"):  # of version 1: empty ones take no process
                if (group / name).exists() and not (group / name).read_text().strip():
                    (group / name).write_text((group.parent / name).read_text())
    except OSError as error:
        raise NoServiceManager(f"no control group can be made: {error}") from error
    try:
        yield "".join(f"echo $$ > {group}/cgroup.procs; " for group in made)
    finally:
        ends = time.monotonic() + _GONE_SECONDS
        while any(group.exists() for group in made) and time.monotonic() < ends:
            for group in made:
                _remove_tree(group)
            time.sleep(0.1)


def _remove_tree(group: Path) -> None:
    for folder, _, _ in os.walk(group, topdown=False):
        with contextlib.suppress(OSError):  # its last process has not ended yet
            Path(folder).rmdir()


def _do(*command: str) -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**environment, "UV_SYSTEM_CERTS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    if done.returncode:
        raise AssertionError(f"{command[0]} {command[1]}: {done.stderr[-2000:]}")


@contextlib.contextmanager
def installed_machine() -> Iterator[Machine]:
    """A machine with hotslot installed and the demo model, its golden set and pictures in /srv/files."""
    with tempfile.TemporaryDirectory(prefix="hotslot-machine-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        install(folder)
        (folder / "files").mkdir()
        for part in ("v1.0.0", "v1.1.0", "golden", "pictures"):
            shutil.copytree(ROOT / "examples" / "shapes" / part, folder / "files" / part)
        with running_systemd(folder) as machine:
            yield machine
