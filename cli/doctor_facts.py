"""What `hotslot doctor` reads from this machine: lock holders, sockets, clock, limits. Nothing is changed."""

import ctypes
import os
import re
import socket
from dataclasses import dataclass
from pathlib import Path

from common.durable import read_bounded
from common.paths import SERVER_LOCK, STACK_LOCK, UPDATER_LOCK

PROGRAMS = {"stack": STACK_LOCK, "server": SERVER_LOCK, "updater": UPDATER_LOCK}
_COMMANDS = {"stack": b"hotslot", "server": b"inference.server.main", "updater": b"updater"}  # in the command line
CONNECT_SECONDS = 2.0
_LOCKS = Path("/proc/locks")
_TIMEX_BYTES = 256
_UNSYNCHRONISED = 5  # TIME_ERROR of adjtimex(2)


@dataclass(frozen=True, slots=True)
class Program:
    """A program that holds its lock."""

    name: str
    pid: int  # 0 or less if it runs in another process namespace


def find_programs(run_folder: Path) -> dict[str, Program]:
    """The programs of this state folder that run now, by their locks."""
    held = _read_locks()
    found = {}
    for name, lock in PROGRAMS.items():
        try:
            status = (run_folder / lock).stat()
        except OSError:
            continue
        pid = held.get((os.major(status.st_dev), os.minor(status.st_dev), status.st_ino))
        if pid is None:
            pid = _read_holder(run_folder / lock, _COMMANDS[name])
        if pid is not None:
            found[name] = Program(name, pid)
    return found


def answers(path: Path) -> str:
    """Why nobody accepts connections at a socket; empty if somebody does."""
    try:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(CONNECT_SECONDS)
            client.connect(str(path))
    except OSError as error:
        return (error.strerror or str(error)).lower()
    return ""


def is_clock_synchronised() -> bool | None:
    """Whether the kernel's clock follows a time server; None if it does not say."""
    try:
        state = ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(_TIMEX_BYTES))
    except (AttributeError, OSError):
        return None
    return None if state < 0 else state != _UNSYNCHRONISED


def read_open_files_limit(pid: int) -> int:
    """The soft limit of open files of a process; 0 if it cannot be read or has none."""
    try:
        text = Path(f"/proc/{pid if pid > 0 else 'self'}/limits").read_text(encoding="ascii")
    except OSError:
        return 0
    found = re.search(r"^Max open files\s+(\d+)", text, re.MULTILINE)
    return int(found[1]) if found else 0


def count_open_files(pid: int) -> int:
    """Files, sockets and pipes that a process has open; 0 if it cannot be read."""
    try:
        return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir()) if pid > 0 else 0
    except OSError:
        return 0


def _read_holder(path: Path, command: bytes) -> int | None:
    """The process that a lock file names, if it runs and is that program: overlay file systems hide the inode."""
    try:
        pid = int(read_bounded(path, 64).decode("ascii").strip())
        line = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (OSError, ValueError):
        return None
    return pid if command in line else None


def _read_locks() -> dict[tuple[int, int, int], int]:
    """Device and inode of each locked file → process id."""
    try:
        lines = _LOCKS.read_text(encoding="ascii").splitlines()
    except OSError:
        return {}
    found = {}
    for line in lines:
        match = re.search(r"FLOCK\s+\S+\s+WRITE\s+(-?\d+)\s+([0-9a-f]+):([0-9a-f]+):(\d+)", line)
        if match:
            found[int(match[2], 16), int(match[3], 16), int(match[4])] = int(match[1])
    return found
