"""The programs that are watched: which process is theirs, how they answer, and their end if they are wedged."""

import contextlib
import os
import signal
import socket
import xmlrpc.client
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Protocol

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from supervisor.xmlrpc import SupervisorTransport

from common import logs
from common.clock import Clock
from common.paths import LIVENESS
from hotslot_watchdog.protocol import Event


class ServerProbe:
    """Asks the server's health service about `liveness`, over a connection of its own each time."""

    def __init__(self, address: str, deadline_seconds: float) -> None:
        """Ask nobody yet.

        Args:
            address: host and port as a caller on this machine dials them.
            deadline_seconds: for connecting and answering together.
        """
        self._address = address
        self._deadline = deadline_seconds

    def is_live(self) -> bool:
        """Whether it said in time that it lives."""
        request = health_pb2.HealthCheckRequest(service=LIVENESS)
        with grpc.insecure_channel(self._address, options=[("grpc.enable_http_proxy", 0)]) as channel:
            try:
                seen = health_pb2_grpc.HealthStub(channel).Check(request, timeout=self._deadline)
            except grpc.RpcError:
                return False
        return bool(seen.status == health_pb2.HealthCheckResponse.SERVING)


class FileTouched:
    """Looks whether a file was touched since the last look; what time it says does not matter."""

    def __init__(self, path: Path) -> None:
        """Remember how it looks now."""
        self._path = path
        self._last = self._look()

    def is_live(self) -> bool:
        """Whether it was touched."""
        before, self._last = self._last, self._look()
        return self._last not in (0, before)

    def _look(self) -> int:
        try:
            return self._path.stat().st_mtime_ns
        except OSError:
            return 0


CALM_SECONDS = 300.0  # of answers, after which restarts are forgotten


class Verdict(StrEnum):
    """What to do about a process."""

    LEAVE = "leave"
    RESTART = "restart"
    GIVE_UP = "give_up"


@dataclass(frozen=True, slots=True)
class Patience:
    """How much is put up with."""

    grace_seconds: float  # after it counts as running, before it is asked
    misses: int  # asked in vain so often in a row: it is wedged
    restarts: int  # in a row; then it is given up
    calm_seconds: float = CALM_SECONDS


@dataclass(frozen=True, slots=True)
class Watched:
    """What is known of one program."""

    pid: int = 0  # 0: it does not run, or nobody knows
    since: float = 0.0  # when this process began to run, clock.monotonic()
    misses: int = 0  # in a row
    restarts: int = 0  # in a row
    live_since: float | None = None  # when it answered first without a miss since


def began(watched: Watched, pid: int, now: float) -> Watched:
    """A process of this program runs; what it is told twice changes nothing."""
    if pid == watched.pid:
        return watched
    return Watched(pid, now, 0, watched.restarts)


def ended(watched: Watched) -> Watched:
    """It does not run, or is being ended: nobody is asked."""
    return Watched(restarts=watched.restarts)


def is_due(watched: Watched, now: float, patience: Patience) -> bool:
    """Whether it has to answer by now."""
    return watched.pid != 0 and now - watched.since >= patience.grace_seconds


def judge(watched: Watched, now: float, patience: Patience, *, is_live: bool) -> tuple[Watched, Verdict]:
    """Take in one answer, or its absence.

    Args:
        watched: what was known before; it was due.
        now: clock.monotonic().
        patience: limits.
        is_live: whether it answered well and in time.
    """
    if is_live:
        since = now if watched.live_since is None else watched.live_since
        restarts = 0 if now - since >= patience.calm_seconds else watched.restarts
        return replace(watched, misses=0, restarts=restarts, live_since=since), Verdict.LEAVE
    missed = replace(watched, misses=watched.misses + 1, live_since=None)
    if missed.misses < patience.misses:
        return missed, Verdict.LEAVE
    if missed.restarts >= patience.restarts:
        return missed, Verdict.GIVE_UP
    return replace(ended(missed), restarts=missed.restarts + 1), Verdict.RESTART


TIMEOUT_SECONDS = 5.0


def running(socket_path: Path) -> Iterator[tuple[str, int]]:
    """Each program that runs, with its process.

    Args:
        socket_path: supervisord's; nobody but its own user can reach it.

    Raises:
        OSError: it does not answer.
    """
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT_SECONDS)  # its transport knows no other way
    try:
        transport = SupervisorTransport(None, None, f"unix://{socket_path}")
        proxy = xmlrpc.client.ServerProxy("http://supervisord", transport=transport)
        rows = proxy.supervisor.getAllProcessInfo()
    except (xmlrpc.client.Error, ValueError, TypeError) as error:
        raise OSError(f"supervisord's answer cannot be used: {error}") from error
    finally:
        socket.setdefaulttimeout(before)
    if not isinstance(rows, list):
        raise OSError("supervisord's answer is no list")
    for row in rows:
        if isinstance(row, dict) and row.get("statename") == "RUNNING":
            yield str(row["name"]), int(row["pid"])


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
