"""Atomic writes, bounded reads and file locks."""

import contextlib
import ctypes
import errno
import fcntl
import os
import stat
import tempfile
import threading
from collections.abc import Callable, Iterator
from functools import partial
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO

from common.clock import SystemClock

_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

_MAX_SHOWN = 120  # characters of a link's target
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of Linux


class NotRegular(OSError):
    """A path is a link, a folder, a pipe, a socket or a device, leads through a link, or has a second hard link.

    Its `strerror` is a phrase, as the system's own: "not a regular file but a folder"; `str()` is a sentence.
    """

    def __init__(self, sentence: str, reason: str = "not a regular file", filename: str | None = None) -> None:
        super().__init__(errno.EINVAL, reason, filename)
        self._sentence = sentence

    def __str__(self) -> str:
        return self._sentence


def open_regular(path: Path) -> BufferedReader:
    """Open a regular file; a pipe or a device is refused at once instead of being waited for. Links are followed.

    Raises:
        NotRegular: it is no regular file.
        FileNotFoundError: it does not exist.
        OSError: it cannot be opened.
    """
    descriptor = _open_part(os.fspath(path), _FLAGS & ~os.O_NOFOLLOW, None, path.name)
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        reason = f"not a regular file but {_name_kind(mode)}"
        raise NotRegular(f"{path.name!r} is {reason}", reason, os.fspath(path))
    return os.fdopen(descriptor, "rb")


def _name_kind(mode: int) -> str:
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(mode), "a device")


def describe_odd_entry(path: Path) -> str:
    """The rest of a sentence about a name under which there is no file: a folder, a pipe, a link that leads nowhere.

    Empty if there is a regular file, or nothing.
    """
    try:
        mode = path.stat().st_mode
    except OSError as error:
        if not path.is_symlink():
            return ""
        target = os.fsencode(path.readlink()).decode(errors="backslashreplace")[:_MAX_SHOWN]
        if error.errno == errno.ELOOP:
            return f"is a link to itself ({target})"
        return f"is a link to {target}, which does not exist: copy the folder with cp -rL"
    if stat.S_ISDIR(mode):
        return "is a folder, not a file"
    return "" if stat.S_ISREG(mode) else "is no regular file"


def describe_blocked_path(path: Path, error: OSError, fault: str) -> str:
    """A sentence about a path at which this process makes a file of its own, and cannot."""
    odd = describe_odd_entry(path)
    reason = f"it {odd}; remove it" if odd else (error.strerror or str(error)).lower()
    return f"{path} {fault}: {reason}"


def open_within(folder: Path, name: str) -> BinaryIO:
    """Open a regular file with one hard link below a folder, without following links and without waiting.

    Args:
        folder: trusted; its own path may contain links.
        name: relative path that `common.source.check_names` has accepted.

    Raises:
        NotRegular: a part of the path is a link, or the file is not a regular one with one hard link.
        FileNotFoundError: it does not exist.
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
    seen = os.fstat(descriptor)
    if not stat.S_ISREG(seen.st_mode) or seen.st_nlink > 1:  # 0: it was deleted just now
        os.close(descriptor)
        if stat.S_ISREG(seen.st_mode):
            raise NotRegular(f"{name!r} has a second hard link", "a file with a second hard link")
        raise NotRegular(f"{name!r} is not a regular file")
    return os.fdopen(descriptor, "rb")


def read_within(folder: Path, name: str, max_bytes: int) -> bytes:
    """Read a whole file below a folder; see `open_within`.

    Raises:
        NotRegular, OSError: as `open_within` says.
        ValueError: it has more than `max_bytes`.
    """
    with open_within(folder, name) as file:
        return _read_all(file, name, max_bytes)


def _open_part(part: str, flags: int, place: int | None, name: str) -> int:
    try:
        return os.open(part, flags, dir_fd=place)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.ENXIO):  # a link, a link in a parent folder, a socket
            what = "a link to itself" if error.errno == errno.ELOOP and place is None else "not a regular file"
            raise NotRegular(f"{name!r} is {what}", what) from error
        raise


_CHUNK_BYTES = 1 << 20
_CACHED_BYTES = 8 << 20  # at most so much of a file read stays in the page cache
_LOCK_PAUSE_SECONDS = 0.002  # between two attempts to take a lock
_LOCK_OPENINGS = 10  # of a lock file that is deleted or replaced each time


class AlreadyRunning(RuntimeError):
    """Another process holds the lock."""


class LockUnusable(OSError):
    """A lock file cannot be opened; the message is one sentence with its path and what to do."""


class LockTimeout(TimeoutError):
    """Another process or thread did not release a lock in time."""


def write_atomic(path: Path, content: bytes, mode: int = 0o644) -> None:
    """Replace a file atomically and durably: a reader, and a crash, see the old content or the new, never a part.

    Args:
        path: of the file, in a folder that exists.
        content: the whole new content.
        mode: permission bits of the new file.

    Raises:
        OSError: the file was not replaced; or it was, but its folder could not be flushed: after a crash of the machine
            the old content or the new is there.
    """
    replace_file(path, content, mode)
    sync_folder(path.parent)


def write_or_put_back(path: Path, content: bytes, max_bytes: int, unreadable: type[OSError] = NotRegular) -> None:
    """As `write_atomic`, but a new content that a crash may undo is not found in the file: the old one is put back.

    One that has more than `max_bytes`, or cannot be read as `unreadable` says, is not put back: the new content stays,
    as it does if putting back fails too. The file is deleted only if there was none.

    Raises:
        OSError: the old file cannot be read otherwise, or the new content not be written durably.
    """
    put_back: Callable[[], object] | None = None
    try:
        put_back = partial(replace_file, path, read_bounded(path, max_bytes))
    except FileNotFoundError:
        put_back = path.unlink
    except (unreadable, ValueError):
        pass
    replace_file(path, content)
    try:
        sync_folder(path.parent)
    except OSError:
        with contextlib.suppress(OSError):  # the first refusal is the one to report
            if put_back is not None:
                put_back()
        raise


def replace_file(path: Path, content: bytes, mode: int = 0o644) -> None:
    """As `write_atomic`, but the folder is not flushed: a crash of the machine may bring back the old content.

    Raises:
        OSError: the file was not replaced.
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


def exchange_folders(one: Path, other: Path) -> bool:
    """Exchange two folders in one step; False, and nothing has changed, if the file system cannot."""
    libc = ctypes.CDLL(None, use_errno=True)
    call = getattr(libc, "renameat2", None)
    arguments = (_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE)
    return call is not None and call(*arguments) == 0


def sync_folder(folder: Path) -> None:
    """Flush a folder to disk, so that renames and new files in it survive a crash of the machine."""
    _sync(folder, os.O_DIRECTORY)


def sync_tree(folder: Path) -> None:
    """Flush a copied folder with all its files to disk, before anything that names it is written."""
    for path in folder.rglob("*"):
        _sync(path, os.O_NOFOLLOW)
    sync_folder(folder)


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, os.O_RDONLY | flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_bounded(path: Path, max_bytes: int) -> bytes:
    """Read a whole regular file of at most `max_bytes`.

    Raises:
        OSError: it cannot be read, or is no regular file (`NotRegular`).
        ValueError: it is larger.
    """
    with open_regular(path) as file:
        return _read_all(file, path.name, max_bytes)


def read_start(path: Path, max_bytes: int) -> bytes:
    """Read the beginning of a regular file.

    Raises:
        OSError: it cannot be read, or is no regular file (`NotRegular`).
    """
    with open_regular(path) as file:
        return file.read(max_bytes)


def has_size(path: Path, size: int) -> bool:
    """Whether a regular file of this size is there.

    Raises:
        OSError: that cannot be found out now.
    """
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: it is no name
        return False
    except OSError as error:
        if error.errno != errno.ELOOP:  # a link to itself
            raise
        return False
    return stat.S_ISREG(found.st_mode) and found.st_size == size


def _read_all(file: BinaryIO, name: str, max_bytes: int) -> bytes:
    content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise ValueError(f"{name} has more than {max_bytes} bytes")
    return content


def read_uncached(file: BinaryIO) -> Iterator[bytes]:
    """Yield the rest of a large file in chunks of a megabyte, and drop what was read from the page cache.

    Otherwise gigabytes that are read once would evict the mapped weights of the serving model.
    """
    start = dropped = file.tell()
    while chunk := file.read(_CHUNK_BYTES):
        yield chunk
        start += len(chunk)
        if start - dropped >= _CACHED_BYTES:
            os.posix_fadvise(file.fileno(), dropped, start - dropped, os.POSIX_FADV_DONTNEED)
            dropped = start


@contextlib.contextmanager
def hold_lock(path: Path, wait_seconds: float) -> Iterator[None]:
    """Hold an exclusive lock on a file, against other processes and threads. Not reentrant.

    Args:
        path: the lock file, created if missing and never deleted. If a person deletes it while it is held, its holder
            excludes nobody any more; one that only waits takes the lock of the new file.
        wait_seconds: longest wait for the lock.

    Raises:
        LockTimeout: another holder did not release it within `wait_seconds`.
        OSError: the lock file cannot be opened.
    """
    ends = SystemClock().monotonic() + wait_seconds
    descriptor = _open_locked(path, lambda file: _await_lock(file, path, ends, wait_seconds))
    try:
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def lock_instance(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file for the life of this process; the kernel releases it however the process ends.

    Raises:
        AlreadyRunning: another process holds it.
        LockUnusable: it cannot be opened or locked.
    """

    def take(file: int) -> None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise AlreadyRunning(f"another process holds {path.name}") from error

    try:
        descriptor = _open_locked(path, take)
    except OSError as error:
        raise LockUnusable(describe_blocked_path(path, error, "cannot be locked")) from error
    try:
        with contextlib.suppress(OSError):  # for people: on a full disk the lock holds without its holder's name
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"{os.getpid()}\n".encode())
        yield
    finally:
        os.close(descriptor)


def _open_locked(path: Path, take: Callable[[int], None]) -> int:
    """Open and lock the file that has this name once it is locked; returns its descriptor.

    A file that was deleted between the two is another one than those who come later lock.
    """
    for _ in range(_LOCK_OPENINGS):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            take(descriptor)
            if _has_name(descriptor, path):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
    sentence = "this lock file is deleted again and again, or its file system (FUSE, 9p) numbers it anew at each look"
    raise LockTimeout(errno.ETIMEDOUT, sentence, str(path))


def _has_name(descriptor: int, path: Path) -> bool:
    """Whether the open file still has this name; compared twice, since a file system may number it anew."""
    try:
        return any(os.path.samestat(os.fstat(descriptor), path.stat()) for _ in range(2))
    except FileNotFoundError:
        return False


def _await_lock(descriptor: int, path: Path, ends: float, wait_seconds: float) -> None:
    clock, pause = SystemClock(), threading.Event()
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
