"""The notifications of one target that wait, as files: nothing that was accepted is lost by a restart."""

import threading
from pathlib import Path

from cli.monitoring.relay.notification import MAX_BODY_BYTES, Notification, NotificationInvalid, decode_notification
from common.durable import read_bounded, sync_folder, write_atomic

_MAX_FILE_BYTES = 8 * MAX_BODY_BYTES


class QueueFull(Exception):
    """As many wait as may."""


class NotificationQueue:
    """One folder; first in, first out. From any thread."""

    def __init__(self, folder: Path, max_waiting: int) -> None:
        """Read what waits; creates the folder.

        Raises:
            OSError: the folder cannot be used.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._max = max_waiting
        self._lock = threading.Lock()
        self._names = sorted(path.name for path in folder.glob("*.json"))
        self._next = int(self._names[-1].removesuffix(".json")) + 1 if self._names else 1

    def __len__(self) -> int:
        """How many wait."""
        return len(self._names)

    def put(self, notification: Notification) -> None:
        """Append durably.

        Raises:
            QueueFull: as many wait as may.
            OSError: it cannot be written.
        """
        with self._lock:
            if len(self._names) >= self._max:
                raise QueueFull
            name = f"{self._next:012d}.json"
            write_atomic(self._folder / name, notification.encode(), 0o600)
            self._next += 1
            self._names.append(name)

    def peek(self, count: int) -> list[Notification]:
        """The oldest ones; a damaged file is deleted.

        Raises:
            OSError: a file cannot be read.
        """
        found: list[Notification] = []
        for name in self._names[:count]:
            try:
                found.append(decode_notification(read_bounded(self._folder / name, _MAX_FILE_BYTES)))
            except NotificationInvalid:
                with self._lock:
                    self._delete(name)
                    self._names.remove(name)
        return found

    def remove(self, count: int) -> None:
        """Remove the oldest ones.

        Raises:
            OSError: a file cannot be deleted.
        """
        with self._lock:
            for name in self._names[:count]:
                self._delete(name)
            del self._names[:count]
            sync_folder(self._folder)

    def _delete(self, name: str) -> None:
        (self._folder / name).unlink(missing_ok=True)
