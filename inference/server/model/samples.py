"""Requests whose answers differ, kept as private files for a person to look at: off by default, bounded.

They hold what callers sent, so they lie in a folder that only the server's user can read, and the oldest go first.
"""

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from threading import Semaphore

MAX_FOLDERS = 3  # comparisons of one model whose files are kept
MAX_BYTES = 256 << 20  # of the pictures of one comparison
_PLAIN = re.compile(r"[A-Za-z0-9-]{1,64}")
MAX_PENDING = 8  # that wait to be written; what comes meanwhile is not kept


class SampleFiles:
    """The kept requests of one model. Loop thread only; files are written by a thread of its own.

    Args:
        folder: of the model; made when something is kept.
        limit: requests of one comparison; 0: none.
        warn: gets a sentence if a file cannot be written.
    """

    def __init__(self, folder: Path, limit: int, warn: Callable[[str], None]) -> None:
        self._folder = folder
        self._limit = limit
        self._warn = warn
        self._writer: ThreadPoolExecutor | None = None
        self._comparison = ""
        self._kept = self._kept_bytes = 0
        self._places = Semaphore(MAX_PENDING)

    def begin(self, started_at: datetime, transaction_id: str) -> None:
        """Begin the folder of a comparison, by whose name the updater finds the requests of an update."""
        name = transaction_id if _PLAIN.fullmatch(transaction_id) else "other"
        self._comparison, self._kept, self._kept_bytes = f"{started_at:%Y%m%dT%H%M%S}-{name}", 0, 0

    def keep(self, row: Mapping[str, object], picture: bytes | memoryview) -> bool:
        """Keep a request; returns whether there is room for it."""
        size = self._kept_bytes + len(picture)
        if self._kept >= self._limit or size > MAX_BYTES or not self._places.acquire(blocking=False):
            return False
        self._kept, self._kept_bytes = self._kept + 1, size
        if self._writer is None:
            self._writer = ThreadPoolExecutor(1, "samples")
        self._writer.submit(self._write, self._folder / self._comparison, f"{self._kept:04d}", row, bytes(picture))
        return True

    def remove_all(self) -> None:
        """Delete what was kept before: the settings keep nothing now."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def close(self) -> None:
        """Wait for what is being written."""
        if self._writer is not None:
            self._writer.shutdown()

    def _write(self, folder: Path, name: str, row: Mapping[str, object], picture: bytes) -> None:
        try:
            if not folder.is_dir():
                folder.mkdir(parents=True, mode=0o700)
                self._folder.chmod(0o700)
                _remove_oldest(self._folder)
            _write_private(folder / f"{name}.json", json.dumps(row, ensure_ascii=False, indent=1).encode())
            if picture:
                _write_private(folder / f"{name}.picture", picture)
        except OSError as error:
            self._warn(f"a sample could not be written: {error.strerror}")
        finally:
            self._places.release()


def _write_private(path: Path, content: bytes) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)


def _remove_oldest(folder: Path) -> None:
    for old in sorted(folder.iterdir(), key=lambda one: one.name)[:-MAX_FOLDERS]:
        shutil.rmtree(old, ignore_errors=True)
