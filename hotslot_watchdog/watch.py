"""The programs that are watched: which process is theirs, how they answer, and their end if they are wedged."""

import contextlib
import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from common import logs
from common.clock import Clock
from hotslot_watchdog.protocol import Event
from hotslot_watchdog.wedged import Patience, Verdict, Watched, began, ended, is_due, judge

LEAST_PAUSE_SECONDS = 2.0  # between two rounds: ticks that were held up come all at once
_RUNNING = "PROCESS_STATE_RUNNING"
_STATE = "PROCESS_STATE_"
_TICK = "TICK_"


class Asked(Protocol):
    """A program's way to show that it lives."""

    def is_live(self) -> bool:
        """Whether it does; may take a few seconds."""
        ...


@dataclass(frozen=True, slots=True)
class WatchParts:
    """What a watch is made of."""

    asked: Mapping[str, Asked]  # by program
    patience: Patience
    clock: Clock
    log: logs.Logger
    kill: Callable[[int], None]  # ends a process at once, if it still is supervisord's child
    give_up: Callable[[str], None]  # told the program


class Watch:
    """Follows supervisord's events; at each tick it asks every program that is due."""

    def __init__(self, parts: WatchParts) -> None:
        """Know of no process yet."""
        self._parts = parts
        self._watched = dict.fromkeys(parts.asked, Watched())
        self._last_round = -LEAST_PAUSE_SECONDS

    def see(self, event: Event) -> None:
        """Take in one event."""
        if event.name.startswith(_TICK):
            self._go_round()
            return
        program = event.fields.get("processname", "")
        if program in self._watched and event.name.startswith(_STATE):
            pid = int(event.fields.get("pid", "0")) if event.name == _RUNNING else 0
            self.note(program, pid)

    def note(self, program: str, pid: int) -> None:
        """A program runs as this process; 0: it does not run."""
        now, watched = self._parts.clock.monotonic(), self._watched[program]
        self._watched[program] = began(watched, pid, now) if pid else ended(watched)

    def _go_round(self) -> None:
        parts = self._parts
        if parts.clock.monotonic() - self._last_round < LEAST_PAUSE_SECONDS:
            return
        for program, asked in parts.asked.items():
            if is_due(self._watched[program], parts.clock.monotonic(), parts.patience):
                self._ask(program, asked)
        self._last_round = parts.clock.monotonic()

    def _ask(self, program: str, asked: Asked) -> None:
        parts, before = self._parts, self._watched[program]
        is_live = asked.is_live()
        after, verdict = judge(before, parts.clock.monotonic(), parts.patience, is_live=is_live)
        self._watched[program] = after
        if not is_live and verdict is not Verdict.GIVE_UP:
            parts.log.warning("liveness_missed", program=program, pid=before.pid, misses=before.misses + 1)
        if verdict is Verdict.RESTART:
            parts.log.error("wedged_process_ended", program=program, pid=before.pid, restarts=after.restarts)
            parts.kill(before.pid)
        elif verdict is Verdict.GIVE_UP and before.misses < parts.patience.misses:
            parts.log.error("wedged_process_given_up", program=program, pid=before.pid, restarts=before.restarts)
            parts.give_up(program)


def end_child(pid: int, parent: int) -> None:
    """Kill a process if it is that parent's child: a number alone may be somebody else's by now."""
    with contextlib.suppress(OSError):
        descriptor = os.pidfd_open(pid)
        try:
            if _parent_of(pid) == parent:
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        finally:
            os.close(descriptor)


def _parent_of(pid: int) -> int:
    with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:  # noqa: PTH123  no path of ours
        return int(file.read(4096).rpartition(")")[2].split()[1])
