"""Remembers inputs that ended runner processes, so that they are refused at once when they are sent again."""

from collections import OrderedDict
from dataclasses import dataclass, field

from inference.server.request import MAX_DEATHS, InputId, Payload

MAX_INPUTS = 256  # remembered; the oldest is forgotten for a new one


@dataclass(slots=True)
class PoisonMemory:
    """The inputs of one model that ended MAX_DEATHS runners, or one runner each time that they were computed alone.

    An input whose caller left before it could be run again alone is suspected: sent again, it is computed alone.

    Bounded in number and time. An input is hashed only if one of its size is remembered.

    Attributes:
        seconds: how long an input is refused, and how long a single death counts.
    """

    seconds: float
    _deaths: OrderedDict[InputId, tuple[int, float]] = field(default_factory=OrderedDict)  # deaths, until when
    _sizes: frozenset[int] = frozenset()

    def add(self, payload: InputId, now: float, deaths: int = 1) -> None:
        """Record that an input has ended runners, computed alone the last time; 0 if others were computed with it."""
        if self.seconds <= 0:
            return
        before = self._deaths.pop(payload, (0, 0.0))[0]
        self._deaths[payload] = (max(deaths, before + min(deaths, 1)), now + self.seconds)
        while len(self._deaths) > MAX_INPUTS:
            self._deaths.popitem(last=False)
        self._forget_old(now)

    def count_deaths(self, payload: Payload, now: float) -> int | None:
        """How many runners an input has ended alone; None if it is not suspected. It is refused after MAX_DEATHS."""
        if payload.size_bytes not in self._sizes:
            return None
        self._forget_old(now)
        row = self._deaths.get(payload.identify())
        return None if row is None else row[0]

    def count(self, now: float) -> int:
        """How many inputs are refused now; from any thread."""
        rows = list(self._deaths.values())
        return sum(deaths >= MAX_DEATHS and until > now for deaths, until in rows)

    def _forget_old(self, now: float) -> None:
        for row in [row for row, (_, until) in self._deaths.items() if until <= now]:
            del self._deaths[row]
        self._sizes = frozenset(row.size_bytes for row in self._deaths)
