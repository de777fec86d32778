"""What the stack reads of `hotslot.toml`, and what it tells the processes that it starts."""

import os
import sys
from pathlib import Path
from typing import Annotated

from pydantic import ConfigDict, Field

from common.settings import DEFAULT_HOST, DEFAULT_PORT, Section, SettingsFile, local_address, settings_path


class WatchdogSection(Section):
    """`[watchdog]`: how the processes are kept."""

    stop_seconds: Annotated[
        int,
        Field(
            ge=1,
            le=1800,
            description="a server that is still ending after so long is killed; more than server.drain_delay_seconds + "
            "server.grace_seconds + runner.retire_seconds",
        ),
    ] = 60
    grace_seconds: Annotated[
        float, Field(ge=0, le=3600, description="a process that has just begun to run is not asked for so long")
    ] = 20.0
    answer_seconds: Annotated[
        float, Field(gt=0, le=4, description="the server must say within this that it lives; asked every five seconds")
    ] = 3.0
    misses: Annotated[int, Field(ge=1, le=100, description="asked in vain so often in a row, it is started anew")] = 3
    restarts: Annotated[int, Field(ge=0, le=100, description="so often in a row; then it is given up")] = 5


class ServerEndpoint(Section):
    """Of `[server]`, where it listens; the server itself checks the rest."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    host: str = DEFAULT_HOST
    port: int = DEFAULT_PORT

    @property
    def address(self) -> str | None:
        """Where it can be asked; None if it takes a free port, which nobody else knows."""
        return local_address(self.host, self.port) if self.port else None


class StackSettings(SettingsFile):
    """The whole file, as the stack reads it."""

    server: ServerEndpoint = ServerEndpoint()
    watchdog: WatchdogSection = WatchdogSection()


def environment_of_children(settings: StackSettings) -> dict[str, str]:
    """This process's environment and what supervisor.conf names; all paths absolute."""
    return {
        **os.environ,
        "HOTSLOT_CONFIG": str(settings_path().absolute()),
        "HOTSLOT_PYTHON": sys.executable,
        "HOTSLOT_STATE_DIR": str(Path(settings.state_dir).absolute()),
        "HOTSLOT_STOP_SECONDS": str(settings.watchdog.stop_seconds),
    }
