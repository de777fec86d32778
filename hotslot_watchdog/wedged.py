"""When a process that runs but does not answer is started anew, and when it is given up. Pure."""

from dataclasses import dataclass, replace
from enum import StrEnum

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
