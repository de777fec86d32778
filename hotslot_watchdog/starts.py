"""Counts starts of the server that fail.

supervisord calls a process started when it has run for `startsecs`; one that needs longer to import and then exits
would be restarted for ever. Here the server itself reports that it has started, by a file with its process id.
"""

from pathlib import Path

from common.durable import read_bounded
from hotslot_watchdog.supervisor import SupervisorEvent

_MAX_PID_BYTES = 16
_ENDED = ("PROCESS_STATE_EXITED", "PROCESS_STATE_BACKOFF")


class StartMonitor:
    """Follows supervisord's events of one program, which writes its process id to a file once it has started."""

    def __init__(self, program: str, started_file: Path, max_failed: int) -> None:
        self._program = program
        self._started_file = started_file
        self._max_failed = max_failed
        self.failed = 0  # starts in a row

    @property
    def has_given_up(self) -> bool:
        """Whether too many starts in a row have failed."""
        return self.failed >= self._max_failed

    def handle_event(self, event: SupervisorEvent) -> bool:
        """Count an end; true if the program is to be given up, once."""
        if event.name not in _ENDED or event.fields.get("processname") != self._program:
            return False
        if self._has_started(event.fields.get("pid", "")):
            self.failed = 0
            return False
        self.failed += 1
        return self.failed == self._max_failed

    def _has_started(self, pid: str) -> bool:
        try:
            return read_bounded(self._started_file, _MAX_PID_BYTES).decode().strip() == pid != ""
        except (OSError, ValueError):
            return False
