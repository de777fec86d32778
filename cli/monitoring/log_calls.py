"""What a log says about callers' calls: how many, how fast, why slow, and bursts of errors."""

import heapq
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime
from itertools import count

from cli.monitoring.log_events import CALLERS, LogEvent

SLOWEST = 5
BURST_PAUSE_SECONDS = 5.0  # errors of one reason that are further apart are two bursts
MAX_TIMES = 200_000  # kept for percentiles
_OVERHEAD = "elsewhere"
_CAUSES = {
    "queue": "too much load, or a model that was loading",
    "prepare": "a large picture, or one that is slow to decode",
    "compute": "the device is slow, or others use it",
    _OVERHEAD: "the machine's CPUs are busy, or the caller sent slowly",
}


@dataclass(slots=True)
class Burst:
    """Calls that failed for one reason, close to each other."""

    code: str
    reason: str
    begins: datetime
    ends: datetime
    calls: int = 1


@dataclass(slots=True)
class CallSummary:
    """All calls of callers in a log."""

    calls: int = 0
    codes: Counter[str] = field(default_factory=Counter)
    revisions: Counter[str] = field(default_factory=Counter)
    bursts: list[Burst] = field(default_factory=list)
    _seconds: list[float] = field(default_factory=list)
    _slowest: list[tuple[float, int, LogEvent]] = field(default_factory=list)
    _numbers: "count[int]" = field(default_factory=count)

    def add(self, event: LogEvent) -> None:
        """Count a `call_ended`; calls of other services are ignored."""
        if event.text("rpc_service").rpartition(".")[2] not in CALLERS:
            return
        self.calls += 1
        code, seconds = event.text("grpc_code"), event.number("seconds")
        self.codes[code] += 1
        if code != "OK":
            self._add_failure(event, code)
            return
        if event.text("revision"):
            self.revisions[event.text("revision")] += 1
        if event.text("rpc_method").startswith("Stream"):
            return  # a stream lasts as long as its caller wants
        if len(self._seconds) < MAX_TIMES:
            self._seconds.append(seconds)
        row = (seconds, next(self._numbers), event)
        if len(self._slowest) < SLOWEST:
            heapq.heappush(self._slowest, row)
        else:
            heapq.heappushpop(self._slowest, row)

    def percentile(self, share: float) -> float:
        """Seconds within which a share of the unary calls was answered; 0 without calls."""
        ordered = sorted(self._seconds)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0

    def slowest(self) -> list[LogEvent]:
        """The slowest answered calls, slowest first."""
        return [event for _, _, event in sorted(self._slowest, reverse=True)]

    def _add_failure(self, event: LogEvent, code: str) -> None:
        reason = event.text("reason")
        for burst in reversed(self.bursts):
            if (event.at - burst.ends).total_seconds() > BURST_PAUSE_SECONDS:
                break
            if (burst.code, burst.reason) == (code, reason):
                burst.ends, burst.calls = max(burst.ends, event.at), burst.calls + 1
                self.bursts.remove(burst)
                self.bursts.append(burst)  # the last one is the latest
                return
        self.bursts.append(Burst(code, reason, event.at, event.at))


def explain_slow(event: LogEvent) -> tuple[str, str]:
    """Where the time of a call went, and the usual cause."""
    parts = {
        "queue": event.number("queued_seconds"),
        "prepare": event.number("prepared_seconds"),
        "compute": event.number("computed_seconds"),
    }
    parts[_OVERHEAD] = max(0.0, event.number("seconds") - sum(parts.values()))
    longest = max(parts, key=lambda name: parts[name])
    shown = ", ".join(f"{name} {1000 * seconds:.0f} ms" for name, seconds in parts.items() if seconds >= 0.0005)  # noqa: PLR2004  half a millisecond
    return shown, _CAUSES[longest]
