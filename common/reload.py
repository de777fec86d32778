"""Values that are made from files, and made again when the files change."""

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from common.clock import Clock

CHECK_SECONDS = 1.0  # between two looks at the files

Stamp = tuple[int, ...] | None  # what changes with a file; None: it is missing


class FileUnusable(Exception):
    """Files cannot be used; the message is one sentence without a path, because it is shown to callers too."""


class ReloadLog(Protocol):
    """The part of a logger that `Reloaded` uses."""

    def info(self, event: str, **fields: Any) -> Any:  # noqa: ANN401  structlog's type
        """Write a line."""
        ...

    def error(self, event: str, **fields: Any) -> Any:  # noqa: ANN401
        """Write a line that an operator must see."""
        ...


T = TypeVar("T")


class Reloaded(Generic[T]):
    """The value of some files; when they change and cannot be used, the last good value stays. From any thread.

    Logs `NAME_loaded` and `NAME_refused`. A failure counts once the files have not changed for a second: two files that
    belong together are seldom replaced at the same moment.
    """

    def __init__(
        self,
        name: str,
        files: Sequence[Path],
        load: Callable[[T | None], T],
        log: ReloadLog,
        clock: Clock,
        describe: Callable[[T], Mapping[str, object]] = lambda _: {},
    ) -> None:
        """Load for the first time.

        Args:
            name: of the value, in the log.
            files: from which it is made.
            load: makes it, from the value in use; raises FileUnusable.
            log: gets a line for each change.
            clock: for the time between two looks.
            describe: fields of the log line.

        Raises:
            FileUnusable: the files cannot be used.
        """
        self.name = name
        self.failure = ""  # why the files are not in use as they are now; empty if they are
        self._files = [file.absolute() for file in files]
        self._load, self._log, self._clock, self._describe = load, log, clock, describe
        self._lock = threading.Lock()
        self._stamps = read_stamps(self._files)
        self._unconfirmed = ""  # a failure that was not reported yet
        self._checked_at = clock.monotonic()
        self.value = load(None)

    def current(self) -> T:
        """The value in use; looks at the files first, at most once a second."""
        if self._clock.monotonic() - self._checked_at >= CHECK_SECONDS:
            self.check()
        return self.value

    def check(self) -> None:
        """Load the files if they have changed; does nothing while another thread does so."""
        if not self._lock.acquire(blocking=False):
            return
        try:
            self._checked_at = self._clock.monotonic()
            self._check()
        finally:
            self._lock.release()

    def _check(self) -> None:
        """While something is wrong, load each time: a certificate that is not valid yet becomes valid."""
        stamps = read_stamps(self._files)
        is_unchanged = stamps == self._stamps
        if is_unchanged and not self.failure and not self._unconfirmed:
            return
        self._stamps = stamps
        try:
            value = self._load(self.value)
        except FileUnusable as error:
            self._refuse(str(error), is_confirmed=is_unchanged)
            return
        except (OSError, ValueError) as error:  # a file vanished between two steps, or has what nobody foresaw
            self._refuse(f"the files cannot be used ({type(error).__name__})", is_confirmed=is_unchanged)
            return
        has_changed = value != self.value or bool(self.failure)
        self.value, self.failure, self._unconfirmed = value, "", ""
        if has_changed:
            self._log.info(f"{self.name}_loaded", **self._describe(value))

    def _refuse(self, sentence: str, *, is_confirmed: bool) -> None:
        if not is_confirmed:
            self._unconfirmed = sentence
            return
        self._unconfirmed = ""
        if sentence != self.failure:
            self.failure = sentence
            self._log.error(f"{self.name}_refused", detail=sentence, files=list(map(str, self._files)))


def read_stamps(files: Iterable[Path]) -> tuple[Stamp, ...]:
    """The stamps of some files; other ones as soon as a file is written, replaced, or reached through another link."""
    return tuple(map(_read_stamp, files))


def _read_stamp(file: Path) -> Stamp:
    try:
        found = file.stat()
    except OSError:
        return None
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
