"""How far a batch has come: rows, rate, time left, revision; at a terminal a bar, elsewhere a line now and then."""

from collections import deque
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from rich.progress import BarColumn, Progress, TextColumn

from cli.output import ABSENT, err, seconds
from common.clock import Clock

RATE_SECONDS = 20.0  # over which the rate is measured
LINE_SECONDS = 10.0  # between two lines


class Rate:
    """Rows a second over the last while. Pure."""

    def __init__(self, began: float, rows: int) -> None:
        self._marks: deque[tuple[float, int]] = deque([(began, rows)])

    def add(self, now: float, rows: int) -> None:
        """Note how many rows there are."""
        if now - self._marks[-1][0] >= RATE_SECONDS / 40:
            self._marks.append((now, rows))
        while len(self._marks) > 2 and now - self._marks[1][0] >= RATE_SECONDS:  # noqa: PLR2004  the first and the last
            self._marks.popleft()

    def per_second(self, now: float, rows: int) -> float:
        """The rate now."""
        began, before = self._marks[0]
        return (rows - before) / (now - began) if now > began else 0.0


@dataclass(slots=True)
class Position:
    """How many rows have an outcome."""

    rows: int
    total: int
    revision: str = ""


class ProgressView:
    """Shows the position while the `with` lasts."""

    def __init__(self, position: Position, clock: Clock) -> None:
        self._position = position
        self._clock = clock
        self._rate = Rate(clock.monotonic(), position.rows)
        self._last_line = clock.monotonic()
        self._bar = Progress(
            TextColumn("{task.completed:,} of {task.total:,} rows"),
            BarColumn(),
            TextColumn("{task.fields[about]}"),
            console=err,
            transient=True,
            disable=not err.is_terminal,
        )
        self._task = self._bar.add_task("", total=position.total, completed=position.rows, about="")

    def __enter__(self) -> Self:
        """Begin."""
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove the bar."""
        self._bar.stop()

    def update(self) -> None:
        """Show the position as it is now."""
        now, position = self._clock.monotonic(), self._position
        self._rate.add(now, position.rows)
        about = describe(position, self._rate.per_second(now, position.rows))
        self._bar.update(self._task, completed=position.rows, about=about)
        if not err.is_terminal and now - self._last_line >= LINE_SECONDS:
            self._last_line = now
            err.print(f"{position.rows:,} of {position.total:,} rows · {about}", soft_wrap=True)


def describe(position: Position, rate: float) -> str:
    """Rate, time left and revision."""
    left = seconds((position.total - position.rows) / rate) + " left" if rate > 0 else ABSENT
    return f"{rate:,.0f} rows/s · {left} · {position.revision or ABSENT}"
