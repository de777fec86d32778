"""The window in which no process stands by: updates and deaths right after an update, for `make bench-swap`."""

import os
import signal
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dev.harness.control import ControlClient
from dev.harness.waiting import eventually

MAX_RATIO = 1.5  # of two updates in a row, the second to one that a standby waited for
MAX_GAP_MS = 1000.0  # without an answer, when the active runner is killed
SETTLE_SECONDS = 2.0
STANDBY_SECONDS = 120.0  # to import an engine beside busy callers


@dataclass(frozen=True, slots=True)
class Update:
    """Two updates in a row."""

    first: float  # seconds from its command until its model has replaced the other
    second: float  # of one that begins at once
    until_standby: float  # seconds from the end of the first until a process stood by, in a round without a second


@dataclass(frozen=True, slots=True)
class Death:
    """The active runner was killed."""

    when: str
    gap_ms: float  # longest time without an answer


def measure_updates(control: ControlClient, digests: Sequence[str], rounds: int) -> list[Update]:
    """Two updates in a row, after waiting for the standby, and one whose standby is waited for."""
    found = []
    for _ in range(rounds):
        wait_standby(control)
        time.sleep(SETTLE_SECONDS)
        first, second = update(control, digests), update(control, digests)
        wait_standby(control)
        update(control, digests)
        began = time.monotonic()
        wait_standby(control)
        until = time.monotonic() - began
        found.append(Update(first, second, until))
    return found


def measure_deaths(
    control: ControlClient, digests: Sequence[str], gap_ms: Callable[[float], float], rounds: int
) -> list[Death]:
    """Kill the active runner while a candidate is there, right after an update, and right after another death.

    Args:
        control: of the server.
        digests: of two bundles, one of which serves.
        gap_ms: the longest time without an answer since a time of `time.monotonic()`.
        rounds: how often.
    """
    found = []
    for _ in range(rounds):
        wait_standby(control)
        load_id = control.candidate(choose_other(control, digests))
        found.append(Death("while a candidate is loaded", kill(control, gap_ms)))
        control.retire(load_id)
        wait_standby(control)
        update(control, digests)
        found.append(Death("right after an update", kill(control, gap_ms)))
        wait_standby(control)
        kill(control, gap_ms)
        found.append(Death("2 s after another death", kill(control, gap_ms)))
    return found


def choose_other(control: ControlClient, digests: Sequence[str]) -> str:
    """The bundle that does not serve."""
    return next(digest for digest in digests if digest != control.active().bundle_digest)


def update(control: ControlClient, digests: Sequence[str]) -> float:
    """Swap to the bundle that does not serve; returns seconds until it alone answers, with the wait for a process."""
    began = time.monotonic()
    before = control.status().active_load_id
    eventually(lambda: is_free(control), STANDBY_SECONDS, "a free slot", 0.01)
    load_id = control.candidate(choose_other(control, digests))
    control.activate(load_id)
    control.commit(load_id)
    control.retire(before)
    return time.monotonic() - began


def kill(control: ControlClient, gap_ms: Callable[[float], float]) -> float:
    """Kill the active runner and wait until another one answers; returns the longest gap, ms."""
    pid, began = control.active_pid(), time.monotonic()
    os.kill(pid, signal.SIGKILL)
    control.wait_replaced(pid)
    time.sleep(SETTLE_SECONDS)
    return gap_ms(began)


def is_free(control: ControlClient) -> bool:
    """Whether a slot can take a load: the runner of the model before has ended."""
    return any(slot.role == "FREE" for slot in control.status().slots)


def wait_standby(control: ControlClient) -> None:
    """Wait until the model is ready and a process with its imports done is in the free slot."""
    control.wait_ready()
    eventually(
        lambda: any(slot.role == "FREE" and slot.state == "READY" for slot in control.status().slots),
        STANDBY_SECONDS,
        "a standby process",
        0.02,
    )


def format_updates(found: Sequence[Update]) -> str:
    """A sentence."""
    first, second, until = (
        statistics.median(values)
        for values in zip(*((one.first, one.second, one.until_standby) for one in found), strict=True)
    )
    row = f"two updates in a row: {first:.2f} s, then {second:.2f} s, {second / first:.2f} × the first"
    after = f"after an update a process stands by again in {until:.2f} s (medians of {len(found)})"
    return f"{row} (goal {MAX_RATIO:g}); {after}"
