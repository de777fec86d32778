"""What can be wrong with the name of the state folder."""

from common.paths import UPDATES_SOCKET, socket_path
from common.settings import Mistake, SettingsInvalid
from updater.settings import UpdaterSettings
from updater.store.bundles import FolderTrusted, refuse_trusted_names


def check_paths(settings: UpdaterSettings) -> None:
    """What can be wrong with the state folder's name.

    Raises:
        SettingsInvalid: it is too long for a socket, or would make the hub's library trust code.
    """
    socket_path(settings.state_dir, UPDATES_SOCKET)
    try:
        refuse_trusted_names(settings.state_dir.absolute())
    except FolderTrusted as error:
        raise SettingsInvalid([Mistake("state_dir", str(error))]) from error
