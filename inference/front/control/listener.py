"""The control socket: in a folder only the owner may enter, held by a lock, gone with its server."""

import contextlib
import os
from pathlib import Path

RUN_FOLDER = "run"
CONTROL_SOCKET = "control.sock"
FRONT_LOCK = "front.lock"
MAX_SOCKET_PATH = 107  # sun_path, without its final NUL


class SocketPathTooLong(ValueError):
    """The state folder's path is too long for a Unix socket in it."""


def prepare_run_folder(state_dir: Path) -> Path:
    """Make the folder of sockets and locks, for the owner alone.

    Raises:
        OSError: it cannot be made, or belongs to somebody else.
    """
    folder = (state_dir / RUN_FOLDER).absolute()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    return folder


def control_address(state_dir: Path) -> str:
    """The control socket in gRPC's form.

    Raises:
        SocketPathTooLong: its path exceeds what the kernel takes.
    """
    path = (state_dir / RUN_FOLDER / CONTROL_SOCKET).absolute()
    if len(os.fsencode(path)) > MAX_SOCKET_PATH:
        raise SocketPathTooLong(f"state_dir is too long: {len(os.fsencode(path))} bytes, limit {MAX_SOCKET_PATH}")
    return f"unix:{path}"


def clear_stale_socket(state_dir: Path) -> None:
    """Remove what a killed server left; only the holder of the lock may call this."""
    with contextlib.suppress(FileNotFoundError):
        (state_dir / RUN_FOLDER / CONTROL_SOCKET).unlink()
