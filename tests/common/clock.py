"""A clock that tests advance, and a log that keeps its lines."""

from datetime import UTC, datetime, timedelta
from typing import Any


class SimClock:
    """Time that passes by `advance` alone; begins in a minute, because certificates are made during a test."""

    def __init__(self) -> None:
        self.seconds = 100.0
        self.moment = datetime.now(UTC) + timedelta(minutes=1)

    def monotonic(self) -> float:
        """Seconds."""
        return self.seconds

    def now(self) -> datetime:
        """The wall clock."""
        return self.moment

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.seconds += seconds
        self.moment += timedelta(seconds=seconds)


class KeptLog:
    """A log's lines."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, dict[str, Any]]] = []

    def info(self, event: str, **fields: Any) -> None:  # noqa: ANN401
        """Keep a line."""
        self.lines.append((event, fields))

    warning = error = info

    @property
    def events(self) -> list[str]:
        """Names of the events."""
        return [event for event, _ in self.lines]
