"""The systemd unit: verified, rated, run by a systemd of its own; where none starts, its command line in its limits."""

import configparser
import os
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dev.harness.memory_group import NoMemoryGroup, memory_group
from dev.harness.pointer import commit_bundle
from dev.harness.process import ROOT, free_port, stack_environment
from dev.harness.scripted_engine import ENGINES, make_scripted_bundle
from dev.harness.settings import write_settings
from dev.harness.waiting import eventually
from dev.production.service_manager import NoServiceManager, installed_machine
from dev.production.unit_story import UnitStory

UNIT = ROOT / "deploy" / "systemd" / "hotslot.service"
MAX_EXPOSURE = 2.0
_GIB = 1 << 30
_EXPOSURE = re.compile(r"Overall exposure level for \S+: ([0-9.]+)")


@dataclass(slots=True)
class UnitReport:
    """What was found."""

    systemd: str = ""
    exposure: float = 0.0  # 0: none, 10: all
    ran: list[str] = field(default_factory=list)  # what the command line ran under
    exit_code: int | None = None
    stop_seconds: float = 0.0
    rows: dict[str, str] = field(default_factory=dict)  # what a real systemd showed
    left_out: str = ""  # why there was none
    problems: list[str] = field(default_factory=list)


def check_unit(folder: Path) -> UnitReport:
    """Verify, rate and run it."""
    report = UnitReport()
    if shutil.which("systemd-analyze") is None:
        report.problems.append("systemd-analyze is not installed; dev/scripts/tools-deploy installs it")
        return report
    report.systemd = _run("systemd-analyze", "--version").stdout.split("\n")[0]
    # The unit's programs are where an installation has them; here they are links to this environment's.
    text = UNIT.read_text(encoding="utf-8")
    here = folder / "hotslot.service"
    here.write_text(text.replace("/opt/hotslot/bin/", f"{Path(sys.executable).parent}/"), encoding="utf-8")
    verified = _run("systemd-analyze", "verify", str(here))
    # Units of the machine are loaded too; what is said of them is theirs.
    ours = [line for line in verified.stderr.splitlines() if "hotslot.service" in line]
    report.problems += ours
    rated = _run("systemd-analyze", "security", "--offline=true", str(here))
    found = _EXPOSURE.search(rated.stdout)
    report.exposure = float(found[1]) if found else 10.0
    if report.exposure > MAX_EXPOSURE:
        report.problems.append(f"the exposure is {report.exposure}, allowed is {MAX_EXPOSURE}")
    try:
        with installed_machine() as machine:
            story = UnitStory(machine, text)
            story.play()
            report.rows, report.problems = story.rows, [*report.problems, *story.problems]
    except NoServiceManager as error:
        report.left_out = str(error)
        _run_command_line(report, read_unit(text), folder)
    return report


def read_unit(text: str) -> Mapping[str, str]:
    """The section [Service]; of repeated keys the last."""
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(text)
    return parser["Service"]


def _run_command_line(report: UnitReport, service: Mapping[str, str], folder: Path) -> None:
    """As its user, limits, umask and no-new-privileges say; namespaces and call filters are systemd's own."""
    state = Path(tempfile.mkdtemp(prefix="hotslot-unit-"))
    port = free_port()
    settings = folder / "hotslot.toml"
    sections: dict[str, dict[str, object]] = {
        "server": {"port": port, "metrics_port": -1, "drain_delay_seconds": 1},
        "runner": {"extra_engines": ENGINES},
    }
    write_settings(settings, {}, ("shapes",), {**sections, "updater": {"metrics_port": -1}})
    commit_bundle(state, make_scripted_bundle(state, "r1"), "shapes")
    command = [sys.executable, *shlex.split(service["ExecStart"])[1:]]
    limits = ["prlimit", f"--nofile={min(int(service['LimitNOFILE']), _hard_files())}"]
    drops = ["setpriv", "--no-new-privs", "--bounding-set=-all", "--inh-caps=-all"]
    if os.geteuid() == 0 and _others_reach(Path(sys.executable).resolve()):
        drops += ["--reuid=65534", "--regid=65534", "--clear-groups"]
        for path in [state, *state.rglob("*")]:
            os.chown(path, 65534, 65534)
    environment = {
        **stack_environment("hotslot-unit"),
        "HOTSLOT_CONFIG": str(settings),
        "HOTSLOT_STATE_DIR": str(state),
        "PYTHONDONTWRITEBYTECODE": "1",
        "HOME": str(state),
    }
    try:
        with memory_group("hotslot-unit") as group:
            group.limit(2 * _GIB)
            report.ran = ["control group of 2 GiB", *limits, *drops, f"umask {service['UMask']}"]
            whole = group.wrap([*limits, *drops, "sh", "-c", f'umask {service["UMask"]}; exec "$@"', "sh", *command])
            _serve_and_stop(report, whole, environment, port, state)
    except NoMemoryGroup as error:
        report.problems.append(f"no control group: {error}")
    finally:
        shutil.rmtree(state)


def _serve_and_stop(
    report: UnitReport, command: list[str], environment: dict[str, str], port: int, state: Path
) -> None:
    log_path = state / "stack.log"
    with (
        log_path.open("wb") as log,
        subprocess.Popen(command, env=environment, cwd=state, stdout=log, stderr=log) as stack,
    ):
        try:
            check = [str(Path(sys.executable).parent / "hotslot"), "healthcheck", f"-addr=127.0.0.1:{port}"]

            def is_serving() -> bool:
                if stack.poll() is not None:
                    raise AssertionError(f"the stack ended with {stack.returncode}: {log_path.read_text()[-2000:]}")
                return subprocess.run(check, capture_output=True, check=False).returncode == 0

            eventually(is_serving, 90.0, "the unit's command line serves", 0.5)
            begun = time.monotonic()
            stack.send_signal(signal.SIGTERM)
            report.exit_code = stack.wait(75)
            report.stop_seconds = round(time.monotonic() - begun, 1)
        finally:
            stack.kill()
    if report.exit_code:
        report.problems.append(f"the stack ended with {report.exit_code}")


def _others_reach(path: Path) -> bool:
    return all(folder.stat().st_mode & 0o001 for folder in path.parents)


def _hard_files() -> int:
    return resource.getrlimit(resource.RLIMIT_NOFILE)[1]


def _run(*command: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
