"""Circuit breakers: after consecutive failures no attempt is made for a growing time, then one probe decides. Pure.

A breaker delays new work of its kind, never a rollback, a status or serving. It reads no clock: callers pass the
monotonic seconds since the last call, and at a start the time away by the wall clock, which is clamped, so that a clock
that jumps neither opens nor closes it.
"""

from dataclasses import dataclass, replace
from enum import StrEnum


class BreakerName(StrEnum):
    """The work that a breaker protects."""

    HUB = "hub"  # asking the hub
    ACTIVATION = "activation"  # updates as a whole
    DEVICE = "device"  # going back to a device that ran out of memory


class BreakerState(StrEnum):
    """The states of a circuit breaker: work may begin, may not, or one probe may."""

    CLOSED = "CLOSED"
    OPEN = "OPEN"
    HALF_OPEN = "HALF_OPEN"  # one probe is out; nothing else may begin


class WorkResult(StrEnum):
    """How work ended."""

    SUCCESS = "SUCCESS"
    FAILURE = "FAILURE"
    NEUTRAL = "NEUTRAL"  # neither: for example a refusal of permission


@dataclass(frozen=True, slots=True)
class BreakerRules:
    """When a breaker opens, and for how long."""

    trip_after: int  # failures in a row
    first_seconds: float  # open time of the first opening; doubles with each
    cap_seconds: float
    probe_seconds: float  # a probe without a result is a failure after this
    jitter: float = 0.2  # share of the open time, to either side
    calm_seconds: float = 86400.0  # time closed without a failure after which the number of openings is reset


@dataclass(frozen=True, slots=True)
class Breaker:
    """A breaker's durable state."""

    name: BreakerName
    state: BreakerState = BreakerState.CLOSED
    failures: int = 0  # in a row
    openings: int = 0  # without a calm time between them
    left_seconds: float = 0.0  # OPEN: until a probe may go; HALF_OPEN: until the probe counts as failed
    calm_seconds: float = 0.0  # since the last failure, while closed
    reason: str = ""  # for people: why it opened

    @property
    def may_begin(self) -> bool:
        """Whether work may begin, without limit or as the one probe."""
        return self.state is BreakerState.CLOSED or (self.state is BreakerState.OPEN and self.left_seconds <= 0)


def begin(breaker: Breaker, rules: BreakerRules) -> Breaker:
    """Begin work; after the open time this is the one probe.

    Raises:
        RuntimeError: it may not begin; nothing has changed.
    """
    if not breaker.may_begin:
        raise RuntimeError(f"breaker {breaker.name} is {breaker.state}")
    if breaker.state is BreakerState.CLOSED:
        return breaker
    return begin_probe(breaker, rules)


def report(
    breaker: Breaker, result: WorkResult, rules: BreakerRules, jitter: float, *, reason: str = "", at_least: float = 0.0
) -> Breaker:
    """Report how work ended.

    Args:
        breaker: the state before.
        result: how it ended; NEUTRAL changes no count, and gives a probe's turn back.
        rules: when it opens and for how long.
        jitter: drawn evenly from 0 to 1 by the caller.
        reason: for people, if this opens it.
        at_least: seconds that the other side asked for; honoured up to the cap.
    """
    if result is WorkResult.NEUTRAL:
        if breaker.state is BreakerState.HALF_OPEN:
            return replace(breaker, state=BreakerState.OPEN, left_seconds=0.0)
        return breaker
    if result is WorkResult.SUCCESS:
        calm = breaker.calm_seconds if breaker.state is BreakerState.CLOSED else 0.0
        return Breaker(breaker.name, openings=breaker.openings, calm_seconds=calm)
    failures = breaker.failures + 1
    if breaker.state is BreakerState.CLOSED and failures < rules.trip_after:
        return replace(breaker, failures=failures, calm_seconds=0.0)
    return trip(replace(breaker, failures=failures), rules, jitter, reason=reason, at_least=at_least)


def begin_probe(breaker: Breaker, rules: BreakerRules) -> Breaker:
    """Begin work as a probe, even if the breaker is closed because an operator has reset it.

    Raises:
        RuntimeError: it may not begin; nothing has changed.
    """
    if not breaker.may_begin:
        raise RuntimeError(f"breaker {breaker.name} is {breaker.state}")
    return replace(breaker, state=BreakerState.HALF_OPEN, left_seconds=rules.probe_seconds)


def cut_off(breaker: Breaker, rules: BreakerRules, jitter: float, *, reason: str) -> Breaker:
    """Open again after a probe without a result, for as long as before."""
    seconds = compute_open_seconds(breaker.openings, rules, jitter)
    return replace(breaker, state=BreakerState.OPEN, left_seconds=seconds, reason=reason)


def trip(breaker: Breaker, rules: BreakerRules, jitter: float, *, reason: str, at_least: float = 0.0) -> Breaker:
    """Open the breaker regardless of its count; an open one stays open at least as long as before."""
    openings = breaker.openings if breaker.state is BreakerState.OPEN else breaker.openings + 1
    seconds = max(compute_open_seconds(openings, rules, jitter), min(at_least, rules.cap_seconds))
    return Breaker(
        name=breaker.name,
        state=BreakerState.OPEN,
        failures=breaker.failures,
        openings=openings,
        left_seconds=max(seconds, breaker.left_seconds if breaker.state is BreakerState.OPEN else 0.0),
        reason=reason or breaker.reason,
    )


def compute_open_seconds(openings: int, rules: BreakerRules, jitter: float) -> float:
    """Seconds that the n-th opening lasts: doubled each time up to the cap, plus or minus the jitter."""
    plain = min(rules.cap_seconds, rules.first_seconds * 2.0 ** min(max(openings, 1) - 1, 32))
    return plain * (1.0 + rules.jitter * (2.0 * min(max(jitter, 0.0), 1.0) - 1.0))


def advance(breaker: Breaker, seconds: float, rules: BreakerRules, jitter: float) -> Breaker:
    """Advance by monotonic seconds; a probe that exceeds its time limit has failed."""
    seconds = max(0.0, seconds)
    if breaker.state is BreakerState.CLOSED:
        calm = min(breaker.calm_seconds + seconds, rules.calm_seconds)
        openings = 0 if calm >= rules.calm_seconds else breaker.openings
        return replace(breaker, calm_seconds=calm, openings=openings)
    left = max(0.0, breaker.left_seconds - seconds)
    if breaker.state is BreakerState.HALF_OPEN and left <= 0:
        return trip(breaker, rules, jitter, reason="its probe gave no result in time")
    return replace(breaker, left_seconds=left)


def resume(breaker: Breaker, away_seconds: float, rules: BreakerRules, jitter: float) -> Breaker:
    """Restore a breaker at a start of the updater; a probe in progress is cut off. The wall clock may be wrong.

    Args:
        breaker: the state as it was written.
        away_seconds: by the wall clock, since it was written; negative if that went back.
        rules: when it opens and for how long.
        jitter: drawn evenly from 0 to 1 by the caller.
    """
    if breaker.state is BreakerState.CLOSED:
        return breaker
    if breaker.state is BreakerState.HALF_OPEN:
        return cut_off(breaker, rules, jitter, reason="its probe was cut off")
    longest = rules.cap_seconds * (1.0 + rules.jitter)
    left = min(max(0.0, breaker.left_seconds), longest)
    return replace(breaker, left_seconds=left - min(max(0.0, away_seconds), left))


def assume_safe(name: BreakerName, rules: BreakerRules) -> Breaker:
    """The state assumed for a breaker that cannot be read: closed for `hub`, open for all others."""
    if name is BreakerName.HUB:
        return Breaker(name)
    return trip(Breaker(name), rules, 0.5, reason="its state could not be read")
