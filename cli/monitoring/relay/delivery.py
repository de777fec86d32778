"""Delivers what waits for one target: rate, pauses after failures, joining."""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

from cli.monitoring.relay.channels import MAX_TEXT_BYTES, DeliveryAttempt, DeliveryResult
from cli.monitoring.relay.message import Message, compose_message
from cli.monitoring.relay.notification import Notification
from cli.monitoring.relay.queue import NotificationQueue
from cli.monitoring.relay.settings import TargetSection
from common.clock import Clock

FIRST_SECONDS, CAP_SECONDS = 1.0, 30.0
LIMITED_SECONDS = 60.0  # a robot that got too many messages
MAX_JOINED = 50  # notifications in one message
_MINUTE = 60.0


class DeliveryListener(Protocol):
    """Receives results."""

    def delivered(self, target: str, notifications: int) -> None:
        """A message was accepted."""
        ...

    def failed(self, target: str, answer: DeliveryAttempt) -> None:
        """A message was not accepted; it is sent again."""
        ...

    def lost(self, target: str, notifications: int, answer: DeliveryAttempt) -> None:
        """A message that the target will never accept was given up."""
        ...


class RateLimit:
    """At most so many in each minute."""

    def __init__(self, a_minute: int) -> None:
        self._most = a_minute
        self._times: deque[float] = deque()

    def wait_seconds(self, now: float) -> float:
        """Time until one more is allowed."""
        while self._times and self._times[0] <= now - _MINUTE:
            self._times.popleft()
        return 0.0 if len(self._times) < self._most else self._times[0] + _MINUTE - now

    def count(self, now: float) -> None:
        """One was sent."""
        self._times.append(now)


class TargetWorker:
    """Delivers to one target. `step` from one thread."""

    def __init__(
        self,
        target: TargetSection,
        queue: NotificationQueue,
        send: Callable[[TargetSection, Message], DeliveryAttempt],
        listener: DeliveryListener,
        clock: Clock,
    ) -> None:
        self.target, self.queue = target, queue
        self._send, self._listener, self._clock = send, listener, clock
        self._limit = RateLimit(target.messages_a_minute)
        self._failures = 0  # in a row

    def step(self) -> float | None:
        """Deliver one message.

        Returns:
            Seconds until the next attempt; None if nothing waits.
        """
        if not len(self.queue):
            return None
        now = self._clock.monotonic()
        pause = self._limit.wait_seconds(now)
        if pause > 0:
            return pause
        try:
            waiting = self.queue.peek(MAX_JOINED)
            return self._deliver(waiting, now) if waiting else 0.0
        except OSError as error:
            self._listener.failed(self.target.name, DeliveryAttempt(DeliveryResult.LATER, "QUEUE_UNUSABLE", str(error)))
            return CAP_SECONDS

    def _deliver(self, waiting: Sequence[Notification], now: float) -> float:
        message = compose_message(waiting, MAX_TEXT_BYTES[self.target.kind], self._clock.now())
        self._limit.count(now)
        answer = self._send(self.target, message)
        name = self.target.name
        if answer.result is DeliveryResult.LATER:
            self._failures += 1
            self._listener.failed(name, answer)
            plain = min(CAP_SECONDS, FIRST_SECONDS * 2.0 ** min(self._failures - 1, 10))
            return max(plain, LIMITED_SECONDS) if answer.reason == "RATE_LIMITED" else plain
        self.queue.remove(message.notifications)
        self._failures = 0
        if answer.result is DeliveryResult.DELIVERED:
            self._listener.delivered(name, message.notifications)
        else:
            self._listener.failed(name, answer)
            self._listener.lost(name, message.notifications, answer)
        return 0.0
