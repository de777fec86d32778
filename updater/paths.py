"""Where the updater's sockets and files are, and what can be wrong with the name of the state folder."""

import os
from pathlib import Path

from common.settings import Mistake, SettingsInvalid
from updater.settings import UpdaterSettings
from updater.store.bundles import FolderTrusted, refuse_trusted_names

RUN_FOLDER, UPDATES_SOCKET = "run", "updates.sock"
MAX_SOCKET_PATH = 107  # sun_path, without its final NUL


def check_paths(settings: UpdaterSettings) -> None:
    """What can be wrong with the state folder's name.

    Raises:
        SettingsInvalid: it is too long for a socket, or would make the hub's library trust code.
    """
    state = Path(settings.state_dir).absolute()
    size = len(os.fsencode(state / RUN_FOLDER / UPDATES_SOCKET))
    if size > MAX_SOCKET_PATH:
        raise SettingsInvalid(
            [Mistake("state_dir", f"is too long: {size} bytes with a socket, limit {MAX_SOCKET_PATH}")]
        )
    try:
        refuse_trusted_names(state)
    except FolderTrusted as error:
        raise SettingsInvalid([Mistake("state_dir", str(error))]) from error
