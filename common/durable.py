"""Files that are whole or absent, and a lock that one process at a time holds."""

import contextlib
import errno
import fcntl
import os
import stat
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from common.clock import SystemClock

_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class NotRegular(Exception):
    """A name leads to a link, a folder or a device."""


def open_within(folder: Path, name: str) -> BinaryIO:
    """Open a regular file below a folder; no part of its name may be a link.

    Args:
        folder: trusted; may itself be reached by links.
        name: relative, checked by `common.source.check_names` before.

    Raises:
        NotRegular: a part is a link, or the end is no regular file.
        FileNotFoundError: it is not there.
        OSError: it cannot be opened.
    """
    *parents, last = name.split("/")
    place = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in parents:
            inner = _open_part(part, _FLAGS | os.O_DIRECTORY, place, name)
            os.close(place)
            place = inner
        descriptor = _open_part(last, _FLAGS, place, name)
    finally:
        os.close(place)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise NotRegular(f"{name!r} is no regular file")
    return os.fdopen(descriptor, "rb")


def _open_part(part: str, flags: int, place: int, name: str) -> int:
    try:
        return os.open(part, flags, dir_fd=place)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.ENXIO):  # a link, a link on the way, a socket
            raise NotRegular(f"{name!r} is no regular file") from error
        raise


_CHUNK_BYTES = 1 << 20
_PASSING_BYTES = 8 << 20  # stay in the page cache; smaller files stay whole
_LOCK_PAUSE_SECONDS = 0.002  # between two tries to get a lock


class AlreadyRunning(RuntimeError):
    """Another process holds the lock."""


class LockTimeout(TimeoutError):
    """Another process or thread held a lock for the whole wait."""


def write_atomic(path: Path, content: bytes, mode: int = 0o644) -> None:
    """Replace a file so that a reader, or a crash, meets the old or the new content, never a part.

    Args:
        path: the file; its folder must exist.
        content: all of the new content.
        mode: permission bits of the new file.

    Raises:
        OSError: nothing was replaced.
    """
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make renames and new names in a folder survive a crash of the machine."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_bounded(path: Path, max_bytes: int) -> bytes:
    """Read a whole file that must not be larger than `max_bytes`.

    Raises:
        OSError: it cannot be read.
        ValueError: it is larger.
    """
    with path.open("rb") as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise ValueError(f"{path.name} has more than {max_bytes} bytes")
    return content


def read_uncached(file: BinaryIO) -> Iterator[bytes]:
    """The rest of a large file, a megabyte at a time, which leaves the page cache as it goes by.

    Gigabytes that are read once would push out what somebody maps and reads all the time: the model that serves.
    """
    start = dropped = file.tell()
    while chunk := file.read(_CHUNK_BYTES):
        yield chunk
        start += len(chunk)
        if start - dropped >= _PASSING_BYTES:
            os.posix_fadvise(file.fileno(), dropped, start - dropped, os.POSIX_FADV_DONTNEED)
            dropped = start


@contextlib.contextmanager
def hold_lock(path: Path, wait_seconds: float) -> Iterator[None]:
    """Hold `path` as a lock against other processes and threads. Not reentrant.

    Args:
        path: the lock file, created if missing and never deleted.
        wait_seconds: longest wait for the present holder.

    Raises:
        LockTimeout: the lock was not free within `wait_seconds`.
        OSError: the lock file cannot be opened.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        _await_lock(descriptor, path, wait_seconds)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def lock_instance(path: Path) -> Iterator[None]:
    """Hold `path` as a lock; the kernel lets go of it when the process ends, however it ends.

    Raises:
        AlreadyRunning: another process holds it.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise AlreadyRunning(f"another process holds {path.name}") from error
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        yield
    finally:
        os.close(descriptor)


def _await_lock(descriptor: int, path: Path, wait_seconds: float) -> None:
    clock, pause = SystemClock(), threading.Event()
    ends = clock.monotonic() + wait_seconds
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if clock.monotonic() >= ends:
                sentence = f"another process has held this lock for {wait_seconds:g} s"
                raise LockTimeout(errno.ETIMEDOUT, sentence, str(path)) from error
            pause.wait(_LOCK_PAUSE_SECONDS)
        else:
            return
