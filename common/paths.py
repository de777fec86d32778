"""The run folder, with the sockets and lock files by which the processes of one state folder find each other."""

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from common.address import MAX_SOCKET_PATH
from common.settings import Mistake, SettingsInvalid

RUN_FOLDER = "run"  # in the state folder; its files are only valid while the processes run
CONTROL_SOCKET = "control.sock"  # the server's, for the updater and operators
UPDATES_SOCKET = "updates.sock"  # the updater's, for operators
SUPERVISOR_SOCKET = "supervisor.sock"
SERVER_LOCK, UPDATER_LOCK, STACK_LOCK = "server.lock", "updater.lock", "stack.lock"
SERVER_STARTED = "server.started"  # file with the process id of the server that has begun to listen
HEARTBEAT = "updater.alive"  # file that the updater touches while its threads make progress
SAMPLES_FOLDER = "samples"  # in the state folder: requests of callers that two revisions answered differently
KERNELS_FOLDER = "kernels"  # in the state folder: libraries that runners compiled for their processor
LIVENESS = "liveness"  # service name in the server's health service

# supervisord binds NAME.PID and links it to NAME; a process id has at most seven digits.
_SUPERVISOR_BINDS = f"{SUPERVISOR_SOCKET}.4194304"


def run_folder(state_dir: Path) -> Path:
    """The absolute path of the folder with sockets and locks."""
    return state_dir.absolute() / RUN_FOLDER


def make_run_folder(state_dir: Path) -> Path:
    """Create the run folder if it is missing, with access for its owner alone.

    Raises:
        SettingsInvalid: it cannot be created, or belongs to another user.
    """
    folder = run_folder(state_dir)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
    except OSError as error:
        sentence = f"cannot be used: {error.filename}: {(error.strerror or str(error)).lower()}{_owner_of(folder)}"
        raise SettingsInvalid([Mistake("state_dir", sentence, repr(str(state_dir)))]) from error
    return folder


@contextlib.contextmanager
def keep_owner(state_dir: Path) -> Iterator[None]:
    """Give what root writes below a state folder to the folder's owner, as which the service reads and replaces it.

    Of another user's process, and of a folder of root, nothing changes.
    """
    try:
        yield
    finally:
        folder = state_dir.resolve()  # of a systemd unit with a user of its own it is a link
        if os.geteuid() == 0 and folder.is_dir() and folder.stat().st_uid != 0:
            _give_to(folder, folder.stat())


def _give_to(folder: Path, owner: os.stat_result) -> None:
    # What is examined is what is given away, and never through a link nor with a second name: the folders' owner could
    # put either to a file of others there meanwhile.
    for _, folders, files, descriptor in os.fwalk(folder):
        for name in (*folders, *files):
            with contextlib.suppress(OSError), _opened(name, descriptor) as entry:  # a link, a socket, or gone
                found = os.fstat(entry)
                if found.st_uid == 0 and (stat.S_ISDIR(found.st_mode) or found.st_nlink == 1):
                    os.fchown(entry, owner.st_uid, owner.st_gid)


@contextlib.contextmanager
def _opened(name: str, folder: int) -> Iterator[int]:
    entry = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    try:
        yield entry
    finally:
        os.close(entry)


def _owner_of(folder: Path) -> str:
    """Who owns the nearest folder that exists, if it is another user; for the end of a sentence."""
    nearest = next(place for place in (folder, *folder.parents) if os.path.lexists(place))
    owner = nearest.lstat().st_uid
    return "" if owner == os.geteuid() else f"; {nearest} belongs to user {owner}, this process runs as {os.geteuid()}"


def socket_path(state_dir: Path, name: str) -> Path:
    """The absolute path of a socket in the run folder.

    Raises:
        SettingsInvalid: the path is longer than the kernel allows for a socket.
    """
    path = run_folder(state_dir) / name
    bound = _SUPERVISOR_BINDS if name == SUPERVISOR_SOCKET else name
    size = len(os.fsencode(path.with_name(bound)))
    if size > MAX_SOCKET_PATH:
        sentence = f"too long for a socket: {RUN_FOLDER}/{bound} in it has {size} bytes, limit {MAX_SOCKET_PATH}"
        raise SettingsInvalid([Mistake("state_dir", sentence, repr(str(state_dir)))])
    return path
