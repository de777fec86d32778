"""Where the processes of one state folder find each other: the run folder, its sockets and locks, the liveness name."""

import os
from pathlib import Path

from common.settings import Mistake, SettingsInvalid

RUN_FOLDER = "run"  # in the state folder; what lies in it is of no use once all processes have ended
CONTROL_SOCKET = "control.sock"  # the server's, for the updater and operators
UPDATES_SOCKET = "updates.sock"  # the updater's, for operators
SUPERVISOR_SOCKET = "supervisor.sock"
SERVER_LOCK, UPDATER_LOCK, STACK_LOCK = "server.lock", "updater.lock", "stack.lock"
HEARTBEAT = "updater.alive"  # touched by the updater while its threads move
LIVENESS = "liveness"  # name in the server's health service

MAX_SOCKET_PATH = 107  # bytes: sun_path has 108, with its final NUL
# supervisord binds NAME.PID and links it to NAME; Linux's largest process id has seven digits.
_SUPERVISOR_BINDS = f"{SUPERVISOR_SOCKET}.4194304"


def run_folder(state_dir: Path) -> Path:
    """The folder of sockets and locks, absolute."""
    return state_dir.absolute() / RUN_FOLDER


def make_run_folder(state_dir: Path) -> Path:
    """Create the run folder if it is missing, for the owner alone.

    Raises:
        OSError: it cannot be created, or belongs to another user.
    """
    folder = run_folder(state_dir)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    return folder


def socket_path(state_dir: Path, name: str) -> Path:
    """Absolute path of a socket in the run folder.

    Raises:
        SettingsInvalid: the kernel does not take so long a path.
    """
    path = run_folder(state_dir) / name
    bound = _SUPERVISOR_BINDS if name == SUPERVISOR_SOCKET else name
    size = len(os.fsencode(path.with_name(bound)))
    if size > MAX_SOCKET_PATH:
        sentence = f"too long for a socket: {RUN_FOLDER}/{bound} in it has {size} bytes, limit {MAX_SOCKET_PATH}"
        raise SettingsInvalid([Mistake("state_dir", sentence, repr(str(state_dir)))])
    return path
