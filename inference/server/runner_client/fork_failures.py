"""Decides whether runners are forked, from those that ended before Hello."""

from collections.abc import Callable

from common.clock import Clock

MAX_FAILURES = 2  # in a row; then runners are started as programs for a while
PAUSE_SECONDS = 60.0


class ForkFailures:
    """Counts the forked runners in a row that ended before Hello.

    Args:
        clock: for the pause.
        warn: gets the event of a pause, with its fields; once until a forked runner has reached Hello.
    """

    def __init__(self, clock: Clock, warn: Callable[..., None]) -> None:
        self._clock = clock
        self._warn = warn
        self._in_row = 0
        self._fork_at = 0.0  # clock.monotonic(), after a pause

    @property
    def may_fork(self) -> bool:
        """Whether the next runner is forked: not in the pause after two failures in a row."""
        return self._in_row < MAX_FAILURES or self._clock.monotonic() >= self._fork_at

    def record(self, failure: str) -> None:
        """Record how the start of a forked runner ended: with Hello if `failure` is empty."""
        if not failure:
            self._in_row = 0
            return
        self._in_row += 1
        if self._in_row >= MAX_FAILURES:
            self._fork_at = self._clock.monotonic() + PAUSE_SECONDS
        if self._in_row == MAX_FAILURES:
            self._warn("runner_forks_paused", detail=failure, failures=MAX_FAILURES, pause_seconds=PAUSE_SECONDS)
