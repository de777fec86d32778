"""The state folder of a command: a mistyped one is told before anything is read or made there."""

import os
from pathlib import Path

from cli.problems import WronglyUsed
from cli.settings import read_settings
from common.durable import describe_odd_entry
from common.settings import DEFAULT_STATE_DIR, settings_path

_NAME_ANOTHER = "name another with --state-dir"


def state_folder(given: Path | None, *, may_be_new: bool = False) -> Path:
    """The state folder: as given, else from the settings file, else the default.

    Args:
        given: on the command line; must exist, unless the command makes it.
        may_be_new: the command makes the folder.

    Raises:
        SettingsInvalid: the settings file is wrong.
        WronglyUsed: it is no folder, or it was given and does not exist.
    """
    place = given
    if place is None:
        place = read_settings().state_dir if settings_path().is_file() else DEFAULT_STATE_DIR
    if os.path.lexists(place) and not place.is_dir():
        raise WronglyUsed(f"{place} is no state folder: it {describe_odd_entry(place) or 'is a file'}; {_NAME_ANOTHER}")
    if given is not None and not may_be_new and not place.exists():
        raise WronglyUsed(f"the state folder {place} does not exist; {_NAME_ANOTHER}")
    return place
