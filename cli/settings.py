"""The settings and options that all commands share."""

from pathlib import Path
from typing import Annotated

import typer

from common.address import parse_address
from common.console_settings import ConsoleSection
from common.settings import load_settings, use_settings_file
from hotslot_watchdog.settings import WatchdogSection
from inference.server.settings import ServerSettings
from updater.settings import UpdaterSection

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.", show_default=False)]
Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        metavar="FILE",
        help="Settings file. Default: HOTSLOT_CONFIG, else ./hotslot.toml.",
        show_default=False,
    ),
]
StateDir = Annotated[
    Path | None,
    typer.Option(
        "--state-dir",
        metavar="DIR",
        help="State folder. Default: from hotslot.toml, else ./state.",
        show_default=False,
    ),
]


MAX_WAIT_SECONDS = 86_400.0  # of a --timeout: more is a slip
PROJECT_FOLDER = Path(__file__).resolve().parent.parent


class Settings(ServerSettings):
    """The whole file: the sections of every process."""

    updater: UpdaterSection = UpdaterSection()
    watchdog: WatchdogSection = WatchdogSection()
    console: ConsoleSection = ConsoleSection()


def read_settings(config: Path | None = None) -> Settings:
    """Read and check the settings file; `config` overrides its usual path.

    Raises:
        SettingsInvalid: has all mistakes.
    """
    if config is not None:
        use_settings_file(config.absolute())
    return load_settings(Settings)


def listening_address(settings: Settings) -> str:
    """The address at which a client on this machine reaches the server of these settings."""
    return parse_address(settings.server.host, settings.server.port).client_target()
