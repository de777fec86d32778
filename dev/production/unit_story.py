"""The shipped unit under a real systemd: start, update, reload, kill, wrong settings, stop; its sandbox is tried."""

import time

import psutil

from dev.harness.waiting import eventually
from dev.production.service_manager import FILES, INSTALLED, Machine

_PORT = 50077
_SETTINGS = f"""
state_dir = "/var/lib/hotslot"

[[models]]
name = "shapes"

[server]
port = {_PORT}
metrics_port = -1
drain_delay_seconds = 1

[updater]
metrics_port = -1

[updater.models.shapes]
hub_folder = "/srv/hub"
poll_seconds = 1
golden = "/etc/hotslot/golden"
observe = {{ window_seconds = 1, max_seconds = 60, min_answers = 5, keep_warm_seconds = 1 }}
"""
_MEMORY, _NEARLY = 0.8, 0.02  # MemoryMax of the unit
_NAME, _LOG = "hotslot.service", "/run/hotslot.log"
# What the runner, which reads what a hub gave, may not do. A program of the unit's own sandbox, run by systemd itself.
_ATTEMPTS = {
    "write to /opt/hotslot": "touch /opt/hotslot/x",
    "write to /etc": "touch /etc/hotslot/x",
    "read /root": "ls /root",
    "make a namespace": "unshare --user true",
    "mount": "mount -t tmpfs none /tmp",
    "set the clock": "date -s @0",
    "see processes of others": "test -d /proc/1",
    "trace a process": "python -c 'import ctypes; raise SystemExit(ctypes.CDLL(None).ptrace(0, 0, 0, 0) != 0)'",
}


class UnitStory:
    """Plays it on one machine with the text of the unit; `rows` has what was seen, `problems` what was wrong."""

    def __init__(self, machine: Machine, unit: str) -> None:
        self._machine, self._unit = machine, unit
        self.rows: dict[str, str] = {}
        self.problems: list[str] = []

    def play(self) -> None:
        """All steps, in order."""
        self._install()
        self._check_limits()
        self._try_sandbox()
        self._update()
        self._reload()
        self._kill()
        self._repair()
        self._break_settings()
        self._stop()

    def _install(self) -> None:
        """As the how-to shows it: settings, model, unit."""
        machine = self._machine
        machine.write("/etc/hotslot/hotslot.toml", _SETTINGS)
        machine.do("cp", "-r", f"{FILES}/golden", "/etc/hotslot/golden")
        machine.do("mkdir", "-p", "/srv/hub")
        machine.do("hotslot", "bundle", "import", f"{FILES}/v1.0.0", "--model", "shapes")
        machine.write("/etc/systemd/system/hotslot.service", self._unit)
        # There is no journal here.
        log = f"[Service]\nStandardOutput=append:{_LOG}\nStandardError=append:{_LOG}\n"
        machine.write("/etc/systemd/system/hotslot.service.d/log.conf", log)
        begun = time.monotonic()
        machine.do("systemctl", "daemon-reload")
        machine.do("systemctl", "enable", "--now", "hotslot")
        self._wait_for("v1.0.0")
        self.rows["`systemctl enable --now`: seconds to the first answer"] = f"{time.monotonic() - begun:.1f}"

    def _check_limits(self) -> None:
        machine, pid = self._machine, self._main_pid()
        status = dict(line.split(":\t", 1) for line in machine.do("cat", f"/proc/{pid}/status").splitlines())
        self.rows["user"] = "of its own" if status["Uid"].split()[0] != "0" else "root"
        self._expect(self.rows["user"] == "of its own", "the service runs as root")
        processes = machine.do("systemctl", "show", "--property=ControlGroup", "--value", "hotslot")
        self.rows["control group"] = processes
        limit = int(self._read_group("memory", "memory.limit_in_bytes", "memory.max"))
        usable = psutil.virtual_memory().total
        self.rows["memory limit of the group"] = f"{limit / usable:.0%} of the machine"
        self._expect(abs(limit / usable - _MEMORY) < _NEARLY, f"the group's limit is {limit} bytes")
        tasks = self._read_group("pids", "pids.max", "pids.max")
        self.rows["tasks"] = tasks
        self._expect(tasks == "512", f"pids.max is {tasks}")
        for field, expected in (("CapBnd", "0000000000000000"), ("CapEff", "0000000000000000"), ("NoNewPrivs", "1")):
            self._expect(status[field] == expected, f"{field} is {status[field]}")
        found = [self._seccomp_of(member) for member in self._members()]
        modes = [mode for mode in found if mode]
        are_all = bool(modes) and set(modes) == {"2"}
        self.rows["processes with the call filter"] = f"all {len(modes)}" if are_all else str(found)
        self._expect(are_all, f"processes with seccomp modes {found}")

    def _try_sandbox(self) -> None:
        """Run each attempt as a unit of the same section [Service]; it must fail, and pass outside."""
        done = {}
        for number, (name, command) in enumerate({**_ATTEMPTS, "nothing": "true"}.items()):
            lines = []
            for line in self._unit.splitlines():
                if line.startswith("ExecStart="):
                    self._machine.write(f"{FILES}/try-{number}", command)
                    lines.append(f"ExecStart=/bin/sh -ceu 'PATH={INSTALLED}/bin:$PATH . {FILES}/try-{number}'")
                elif not line.startswith(("ExecReload", "Restart", "StateDirectory=", "WorkingDirectory", "Type")):
                    lines.append(line)
            unit = f"attempt-{number}.service"
            self._machine.write(
                f"/etc/systemd/system/{unit}", "\n".join(lines).replace("[Service]", "[Service]\nType=oneshot")
            )
            self._machine.do("systemctl", "daemon-reload")
            done[name] = self._machine.run("systemctl", "start", unit).returncode
        self._expect(done.pop("nothing") == 0, "a unit of the sandbox that does nothing fails")
        possible = [name for name, code in done.items() if code == 0]
        self.rows["refused in its sandbox"] = ", ".join(name for name in done if name not in possible)
        self._expect(not possible, f"possible in the sandbox: {', '.join(possible)}")

    def _update(self) -> None:
        begun = time.monotonic()
        self._machine.do("hotslot", "hub", "add", f"{FILES}/v1.1.0", "v1.1.0")
        self._wait_for("v1.1.0", 240.0)
        self.rows["seconds from publishing to the new revision's answer"] = f"{time.monotonic() - begun:.1f}"

        def is_committed() -> bool:
            self._ask()  # a trial needs calls
            return "committed" in self._machine.run("hotslot", "updates", "history").stdout

        eventually(is_committed, 120.0, "the update is committed", 0.3)

    def _reload(self) -> None:
        before = self._main_pid()
        done = self._machine.run("systemctl", "reload", "hotslot")
        self.rows["`systemctl reload`"] = "takes the settings over" if done.returncode == 0 else done.stderr.strip()
        self._expect(done.returncode == 0 and self._main_pid() == before, f"reload: {done.stderr.strip()}")

    def _kill(self) -> None:
        """The first process, with a signal that it cannot handle: systemd ends the rest and starts again."""
        before, members = self._main_pid(), set(self._members())
        begun = time.monotonic()
        self._machine.do("kill", "-9", before)
        eventually(lambda: self._main_pid() not in ("0", before), 60.0, "systemd starts it again", 0.1)
        self._wait_for("v1.1.0")
        self.rows["killed: seconds to the next answer"] = f"{time.monotonic() - begun:.1f}"
        self._expect(not members & set(self._members()), "processes of before the kill live on")
        restarts = self._machine.show(_NAME, "NRestarts")
        self._expect(restarts == "1", f"{restarts} restarts after one kill")

    def _repair(self) -> None:
        """A damaged bundle, restored by root from a backup by root: the service can read it, and owns it."""
        machine = self._machine
        machine.do("hotslot", "state", "backup", "/srv/backup")
        machine.do("systemctl", "stop", "hotslot")
        machine.do("sh", "-c", "for file in /var/lib/hotslot/bundles/*/*; do : > $file; done")
        self._expect(machine.run("hotslot", "state", "verify").returncode, "a damaged state is called good")
        machine.do("hotslot", "state", "restore", "/srv/backup")
        machine.do("systemctl", "start", "hotslot")
        self._wait_for("v1.1.0")
        self.rows["a damaged bundle, restored by root from its backup"] = "v1.1.0 answers after the next start"
        foreign = machine.do("find", "/var/lib/private/hotslot", "-user", "root")
        self._expect(not foreign, f"files of root in the service's state: {foreign}")

    def _break_settings(self) -> None:
        machine = self._machine
        machine.write("/etc/hotslot/hotslot.toml", _SETTINGS + "\n[sever]\nport = 1\n")
        machine.run("systemctl", "restart", "hotslot")
        eventually(lambda: machine.show(_NAME, "ActiveState") == "failed", 60.0, "the unit fails", 0.2)
        code, restarts = machine.show(_NAME, "ExecMainStatus"), machine.show(_NAME, "NRestarts")
        self.rows["wrong settings"] = f"exit code {code}, {restarts} restarts"
        self._expect((code, restarts) == ("2", "0"), f"wrong settings: exit code {code}, {restarts} restarts")
        machine.write("/etc/hotslot/hotslot.toml", _SETTINGS)
        machine.do("systemctl", "start", "hotslot")
        self._wait_for("v1.1.0")

    def _stop(self) -> None:
        begun = time.monotonic()
        self._machine.do("systemctl", "stop", "hotslot")
        seconds = time.monotonic() - begun
        result = self._machine.show(_NAME, "Result")
        code = self._machine.show(_NAME, "ExecMainStatus")
        self.rows["`systemctl stop`"] = f"{result}, exit code {code}, after {seconds:.1f} s"
        self._expect((result, code) == ("success", "0"), f"stop: {result}, exit code {code}")

    def _ask(self) -> str:
        """The revision that answers; empty if none does."""
        picture = f"{FILES}/pictures/two-red-circles.png"
        done = self._machine.run("hotslot", "predict", picture, "there are two red circles")
        return done.stdout.rpartition("shapes ")[2].split(" ")[0] if done.returncode == 0 else ""

    def _wait_for(self, revision: str, limit: float = 120.0) -> None:
        def ask() -> bool:
            if self._machine.show(_NAME, "ActiveState") == "failed":
                raise AssertionError(f"the unit failed: {self._machine.read(_LOG)[-3000:]}")
            return self._ask() == revision

        eventually(ask, limit, f"{revision} answers", 0.1)

    def _main_pid(self) -> str:
        return self._machine.show(_NAME, "MainPID")

    def _members(self) -> list[str]:
        """Process ids of its control group."""
        return self._read_group("systemd", "cgroup.procs", "cgroup.procs").split()

    def _seccomp_of(self, pid: str) -> str:
        """Empty for a process that has ended meanwhile."""
        return self._machine.run("sed", "-n", "s/^Seccomp:\\t//p", f"/proc/{pid}/status").stdout.strip()

    def _read_group(self, controller: str, name: str, name_v2: str) -> str:
        group = self._machine.show(_NAME, "ControlGroup")
        shell = f"cat /sys/fs/cgroup/{controller}{group}/{name} 2>/dev/null || cat /sys/fs/cgroup{group}/{name_v2}"
        return self._machine.do("sh", "-c", shell)

    def _expect(self, holds: object, problem: str) -> None:
        if not holds:
            self.problems.append(problem)
