"""The health of each service name, and how long the event loop was held up."""

import asyncio
from collections.abc import Callable, Mapping

from inference.server.events import Broadcast


class HealthBoard:
    """The names and their state. Everything starts NOT_SERVING."""

    def __init__(self, names: list[str]) -> None:
        self._is_serving: dict[str, bool] = dict.fromkeys(names, False)
        self.changed = Broadcast()
        self.has_ended = False

    def post(self, states: Mapping[str, bool]) -> list[tuple[str, bool]]:
        """Take in the truth as it is now.

        Returns:
            The names whose state has changed.
        """
        changes = [(name, state) for name, state in states.items() if self._is_serving.get(name) != state]
        if changes:
            self._is_serving.update(states)
            self.changed.notify()
        return changes

    def end(self) -> None:
        """The server is about to stop: watchers are told the last state and let go."""
        self.has_ended = True
        self.changed.notify()

    def is_serving(self, name: str) -> bool | None:
        """The state of a name; None if there is no such name."""
        return self._is_serving.get(name)

    def snapshot(self) -> dict[str, bool]:
        """Every name with its state."""
        return dict(self._is_serving)


class LoopLag:
    """How long the event loop was held up, over the last minute or so."""

    def __init__(self, now: Callable[[], float], interval_seconds: float = 0.25) -> None:
        self._now = now
        self._interval = interval_seconds
        self._samples: list[float] = []

    async def run(self) -> None:
        """Measure until cancelled."""
        keep = int(60 / self._interval)
        while True:
            before = self._now()
            await asyncio.sleep(self._interval)
            self._samples.append(max(0.0, self._now() - before - self._interval))
            del self._samples[:-keep]

    @property
    def worst_seconds(self) -> float:
        """The longest hold-up that was seen."""
        return max(self._samples, default=0.0)
