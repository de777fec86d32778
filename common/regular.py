"""Opening what a stranger has named: only regular files, and no link is followed at any part of a name."""

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class NotRegular(Exception):
    """A name leads to a link, a folder or a device."""


def open_within(folder: Path, name: str) -> BinaryIO:
    """Open a regular file below a folder; no part of its name may be a link.

    Args:
        folder: trusted; may itself be reached by links.
        name: relative, checked by `common.published.check_names` before.

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
