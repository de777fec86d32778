"""What the stack reads of `hotslot.toml`, and what it tells the processes that it starts."""

import os
import sys
from pathlib import Path
from typing import Annotated

from pydantic import Field

from common.settings import Section, SettingsFile, settings_path


class WatchdogSection(Section):
    """`[watchdog]`: how the processes are kept."""

    stop_seconds: Annotated[
        int,
        Field(
            ge=1,
            le=1800,
            description="a front that is still ending after so long is killed; more than front.drain_delay_seconds + "
            "front.grace_seconds + runner.retire_seconds",
        ),
    ] = 60


class StackSettings(SettingsFile):
    """The whole file, as the stack reads it."""

    watchdog: WatchdogSection = WatchdogSection()


def environment_of_children(settings: StackSettings) -> dict[str, str]:
    """This process's environment and what supervisor.conf names; all paths absolute, since children change folder."""
    return {
        **os.environ,
        "HOTSLOT_CONFIG": str(settings_path().absolute()),
        "HOTSLOT_PYTHON": sys.executable,
        "HOTSLOT_STATE_DIR": str(Path(settings.state_dir).absolute()),
        "HOTSLOT_STOP_SECONDS": str(settings.watchdog.stop_seconds),
    }
