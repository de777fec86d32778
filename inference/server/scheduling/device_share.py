"""Shares the seconds of one device between the models on it. Pure; time is an argument."""

from collections.abc import Callable

LEAD_SECONDS = 0.1  # by which a model may be ahead of another that waits, at least
LEAD_CALLS = 2  # device calls by which it may be ahead, at least
STALLED_SECONDS = 1.0  # a model that completes nothing for this long, or for some calls, holds no other back
STALLED_CALLS = 4


class Sharer:
    """One model on a device."""

    def __init__(self, share: "DeviceShare", wake: Callable[[], None]) -> None:
        self._share = share
        self._wake = wake  # called when it may send again
        self.used_seconds = 0.0
        self.call_seconds = 0.0  # of its latest call
        self.is_waiting = False  # whether it has rows to compute
        self.progress_at = 0.0
        self.is_held_back = False

    def begin_waiting(self, now: float) -> None:
        """Record that it has rows to compute; it gets no credit for the time before."""
        if not self.is_waiting:
            self.is_waiting = True
            self.progress_at = now
            self.used_seconds = max(self.used_seconds, self._share.lowest_used(but=self))

    def end_waiting(self) -> None:
        """Record that it has nothing to compute."""
        if self.is_waiting:
            self.is_waiting = self.is_held_back = False
            self._share.wake_held_back()

    def add(self, seconds: float, now: float) -> None:
        """Count the seconds of a device call that has ended."""
        self.used_seconds += seconds
        self.call_seconds = seconds
        self.progress_at = now
        self._share.wake_held_back()

    def may_send(self, now: float) -> bool:
        """Whether it may send rows now; if not, `wake` is called when it may."""
        self.is_held_back = self._share.is_ahead(self, now)
        return not self.is_held_back

    def is_stalled(self, now: float) -> bool:
        """Whether it has rows to compute, and completes no call."""
        return now - self.progress_at > max(STALLED_SECONDS, STALLED_CALLS * self.call_seconds)

    def wake(self) -> None:
        """Let it try again, if it was held back."""
        if self.is_held_back:
            self._wake()


class DeviceShare:
    """The models on one device: one that is ahead of another waiting one waits."""

    def __init__(self) -> None:
        self._sharers: list[Sharer] = []

    def join(self, wake: Callable[[], None]) -> Sharer:
        """Add a model; `wake` is called when it may send again after it was held back."""
        sharer = Sharer(self, wake)
        self._sharers.append(sharer)
        return sharer

    def leave(self, sharer: Sharer) -> None:
        """Remove a model."""
        self._sharers.remove(sharer)
        sharer.is_waiting = sharer.is_held_back = False
        self.wake_held_back()

    def lowest_used(self, but: Sharer) -> float:
        """The least seconds used by another model that waits; without one the most of all, to which nothing is owed."""
        others = [other for other in self._sharers if other is not but]
        waiting = [other.used_seconds for other in others if other.is_waiting]
        return min(waiting) if waiting else max((other.used_seconds for other in others), default=0.0)

    def is_ahead(self, sharer: Sharer, now: float) -> bool:
        """Whether a model has used more than another one that waits and makes progress."""
        lead = max(LEAD_SECONDS, LEAD_CALLS * sharer.call_seconds)
        return any(
            sharer.used_seconds > other.used_seconds + lead
            for other in self._sharers
            if other is not sharer and other.is_waiting and not other.is_stalled(now)
        )

    def wake_held_back(self) -> None:
        """Let the models that were held back try again."""
        for sharer in self._sharers:
            sharer.wake()
