"""Remembers inputs that ended runner processes, so that they are refused at once when they are sent again."""

import hashlib
from collections import OrderedDict
from dataclasses import dataclass, field

from inference.server.request import MAX_DEATHS, Payload

MAX_INPUTS = 256  # remembered; the oldest is forgotten for a new one
Digest = bytes


def compute_digest(payload: Payload) -> Digest:
    """SHA-256 of the whole input: the picture, the premise and the statements."""
    digest = hashlib.sha256(payload.image)
    for text in (payload.premise, *payload.statements):
        encoded = text.encode()
        digest.update(len(encoded).to_bytes(4))
        digest.update(encoded)
    return digest.digest()


@dataclass(slots=True)
class PoisonMemory:
    """The inputs of one model that ended MAX_DEATHS runners, or one runner each time that they were computed alone.

    Bounded in number and time. An input is hashed only if one of its size is remembered.

    Attributes:
        seconds: how long an input is refused, and how long a single death counts.
    """

    seconds: float
    _deaths: OrderedDict[Digest, tuple[int, float, int]] = field(default_factory=OrderedDict)  # deaths, until, size
    _sizes: frozenset[int] = frozenset()

    def add(self, payload: Payload, now: float, deaths: int = 1) -> None:
        """Record that an input has ended runners, computed alone the last time."""
        if self.seconds <= 0:
            return
        digest = compute_digest(payload)
        before = self._deaths.pop(digest, (0, 0.0, 0))[0]
        self._deaths[digest] = (max(deaths, before + 1), now + self.seconds, payload.size_bytes)
        while len(self._deaths) > MAX_INPUTS:
            self._deaths.popitem(last=False)
        self._forget_old(now)

    def contains(self, payload: Payload, now: float) -> bool:
        """Whether an input is refused."""
        if payload.size_bytes not in self._sizes:
            return False
        self._forget_old(now)
        return self._deaths.get(compute_digest(payload), (0, 0.0, 0))[0] >= MAX_DEATHS

    def count(self, now: float) -> int:
        """How many inputs are refused now; from any thread."""
        rows = list(self._deaths.values())
        return sum(deaths >= MAX_DEATHS and until > now for deaths, until, _ in rows)

    def _forget_old(self, now: float) -> None:
        for digest in [digest for digest, (_, until, _) in self._deaths.items() if until <= now]:
            del self._deaths[digest]
        self._sizes = frozenset(size for _, _, size in self._deaths.values())
