"""Delivers events from the journal's outbox to their receivers, with one thread for each receiver.

An event is sent until the receiver accepts it, or refuses it MAX_REFUSALS times. A slow or dead receiver delays neither
updates nor other receivers: it has its own thread, its own pauses and a bounded queue.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from updater.core.ports import JournalUnusable
from updater.store.outbox import Outbox, QueuedEvent
from updater.webhooks.metrics import DeliveryObserver

FIRST_SECONDS, CAP_SECONDS = 2.0, 600.0
MAX_REFUSALS = 5  # of one event; then the next event is sent
MAX_RETRY_AFTER_SECONDS = 3600.0
_LATER = frozenset({408, 423, 425, 429})  # 4xx codes that may succeed later


class DeliveryVerdict(StrEnum):
    """What a response means for the event that was sent."""

    DELIVERED = "delivered"
    LATER = "later"  # the receiver cannot accept anything now: the same event is sent again before others
    REFUSED = "refused"  # the receiver rejects this event


@dataclass(frozen=True, slots=True)
class ReceiverResponse:
    """Status and Retry-After of a response; nothing else of it is read."""

    status: int  # HTTP
    retry_after_seconds: float = 0.0  # 0 without a Retry-After


def judge_response(response: ReceiverResponse) -> DeliveryVerdict:
    """Classify a response. Redirects count as refusals: events go only to the configured URL."""
    if 200 <= response.status < 300:  # noqa: PLR2004  HTTP's own numbers
        return DeliveryVerdict.DELIVERED
    if response.status >= 500 or response.status in _LATER:  # noqa: PLR2004
        return DeliveryVerdict.LATER
    return DeliveryVerdict.REFUSED


def compute_pause(failures: int, jitter: float, retry_after_seconds: float = 0.0) -> float:
    """Seconds until the next attempt: exponential backoff with jitter.

    Args:
        failures: consecutive, at least 1.
        jitter: uniform, 0 to 1.
        retry_after_seconds: from the receiver; lengthens the pause, never shortens it.
    """
    plain = min(CAP_SECONDS, FIRST_SECONDS * 2.0 ** min(failures - 1, 16))
    return max(plain * (0.75 + jitter / 2), min(retry_after_seconds, MAX_RETRY_AFTER_SECONDS))


JOURNAL_PAUSE_SECONDS = 30.0


class PostFailed(Exception):
    """There is no response.

    Attributes:
        reason: for machines and logs: "TIMEOUT", "UNREACHABLE", "TLS_FAILED", "ANSWER_BROKEN", "TOKEN_UNREADABLE".
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Receiver:
    """Where events go."""

    name: str
    url: str  # already validated
    timeout_seconds: float
    token_file: Path | None = None


# Arguments: receiver, event name, event id, body. Raises PostFailed.
Post = Callable[[Receiver, str, str, bytes], ReceiverResponse]


class DeliveryWorker:
    """Delivers events to one receiver. From one thread."""

    def __init__(
        self, receiver: Receiver, outbox: Outbox, post: Post, observer: DeliveryObserver, jitter: Callable[[], float]
    ) -> None:
        """Send nothing yet.

        Args:
            receiver: destination.
            outbox: queued events.
            post: sends one event.
            observer: receives the results.
            jitter: returns a uniform random number from 0 to 1.
        """
        self.receiver = receiver
        self._outbox = outbox
        self._post = post
        self._observer = observer
        self._jitter = jitter
        self._failures = 0  # consecutive, of any kind
        self._finished = 0  # number of the last finished event: removed again if the journal could not be written

    def step(self) -> float | None:
        """Try to deliver the oldest queued event.

        Returns:
            Seconds until the next attempt; None if the queue is empty.
        """
        name = self.receiver.name
        try:
            queued = self._outbox.next(name)
            if queued is not None and queued.number == self._finished:
                self._outbox.remove(name, queued.number)
                queued = self._outbox.next(name)
            return None if queued is None else self._deliver(queued)
        except (OSError, JournalUnusable):
            return JOURNAL_PAUSE_SECONDS  # the writer of the journal reports the error

    def _deliver(self, queued: QueuedEvent) -> float:
        verdict, reason, retry_after = self._try(queued)
        name = self.receiver.name
        if verdict is DeliveryVerdict.DELIVERED:
            self._observer.delivered(name)
            self._finish(queued)
            self._failures = 0
            return 0.0
        self._failures += 1
        self._observer.failed(name, reason)
        if verdict is DeliveryVerdict.REFUSED and queued.refusals + 1 >= MAX_REFUSALS:
            self._observer.given_up(name, queued.event, reason)
            self._finish(queued)
        elif verdict is DeliveryVerdict.REFUSED:
            self._outbox.count_refusal(name, queued.number)
        return compute_pause(self._failures, self._jitter(), retry_after)

    def _try(self, queued: QueuedEvent) -> tuple[DeliveryVerdict, str, float]:
        try:
            response = self._post(self.receiver, queued.event, queued.event_id, queued.body.encode())
        except PostFailed as error:
            return DeliveryVerdict.LATER, error.reason, 0.0
        return judge_response(response), f"HTTP_{response.status}", response.retry_after_seconds

    def _finish(self, queued: QueuedEvent) -> None:
        self._finished = queued.number
        self._outbox.remove(self.receiver.name, queued.number)
