"""The settings of the stack, and the environment of the processes that it starts."""

import os
import resource
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field

from common.console_settings import ConsoleSection
from common.paths import run_folder
from common.settings import STOP_SECONDS_VARIABLE, Section, SettingsFile, settings_path

DESCRIPTORS = 4096  # enough for supervisord; the server raises its own limit further


class WatchdogSection(Section):
    """`[watchdog]`: how processes are stopped, checked and restarted."""

    stop_seconds: Annotated[
        int,
        Field(
            ge=1,
            le=1800,
            description="longest time to stop; then the server is killed. More than server.drain_delay_seconds + "
            "server.grace_seconds + runner.retire_seconds",
        ),
    ] = 60
    max_failed_starts: Annotated[
        int,
        Field(
            ge=1,
            le=1000,
            description="starts of the server in a row that end before it listens, after which the stack ends with 70",
        ),
    ] = 4
    initial_delay_seconds: Annotated[
        float, Field(ge=0, le=3600, description="from a process's start to its first liveness check")
    ] = 20.0
    probe_timeout_seconds: Annotated[
        float, Field(gt=0, le=4, description="timeout of a liveness check of the server; one every five seconds")
    ] = 3.0
    failure_threshold: Annotated[
        int, Field(ge=1, le=100, description="consecutive failed liveness checks before a restart")
    ] = 3
    max_restarts: Annotated[
        int, Field(ge=0, le=100, description="consecutive restarts before the process is given up")
    ] = 5


class StackSettings(SettingsFile):
    """The whole file, as the stack reads it."""

    watchdog: WatchdogSection = WatchdogSection()
    console: ConsoleSection = ConsoleSection()


def choose_descriptors(hard: int) -> int:
    """The limit of open files that supervisord asks for: it does not start if the hard limit is lower."""
    return DESCRIPTORS if hard == resource.RLIM_INFINITY else min(DESCRIPTORS, hard)


def temporary_folder(
    environment: Mapping[str, str],
    folder: Path,
    usual: Sequence[str] = ("/tmp", "/var/tmp"),  # noqa: S108
) -> dict[str, str]:
    """TMPDIR in the run folder if the environment names none and the usual ones cannot be written: a read-only root."""
    if environment.get("TMPDIR") or any(os.access(place, os.W_OK) for place in usual):
        return {}
    place = folder / "tmp"
    place.mkdir(mode=0o700, exist_ok=True)
    return {"TMPDIR": str(place)}


def make_child_environment(settings: StackSettings) -> dict[str, str]:
    """This process's environment plus the variables that supervisor.conf uses; all paths are absolute."""
    return {
        **os.environ,
        **temporary_folder(os.environ, run_folder(settings.state_dir)),
        "PYTHONUTF8": "1",
        "HOTSLOT_CONFIG": str(settings_path().absolute()),
        "HOTSLOT_START_CONSOLE": str(settings.console.enabled).lower(),
        "HOTSLOT_DESCRIPTORS": str(choose_descriptors(resource.getrlimit(resource.RLIMIT_NOFILE)[1])),
        "HOTSLOT_PYTHON": sys.executable,
        "HOTSLOT_STATE_DIR": str(Path(settings.state_dir).absolute()),
        STOP_SECONDS_VARIABLE: str(settings.watchdog.stop_seconds),
    }
