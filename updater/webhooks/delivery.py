"""Events from the journal's outbox to their receivers, one thread a receiver; nobody waits for them.

An event is sent until the receiver has taken it, or has refused it several times. Dead receivers hold up nobody else:
each has its own thread, its own pauses, and a bounded number of events that wait for it.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from updater.core.ports import JournalUnusable
from updater.outbox import Outbox, Queued
from updater.webhooks.metrics import DeliveryObserver

FIRST_SECONDS, CAP_SECONDS = 2.0, 600.0
MAX_REFUSALS = 5  # of one event that the receiver says no to; then the next one has its turn
MAX_RETRY_AFTER_SECONDS = 3600.0
_LATER = frozenset({408, 423, 425, 429})  # refusals that time mends


class DeliveryVerdict(StrEnum):
    """What a response means for the event that was sent."""

    DELIVERED = "delivered"
    LATER = "later"  # the receiver cannot take anything now: nothing else is sent to it before
    REFUSED = "refused"  # it does not want this one


@dataclass(frozen=True, slots=True)
class ReceiverResponse:
    """The status of a receiver's response, and its Retry-After; nothing else of it is read."""

    status: int  # of HTTP
    retry_after_seconds: float = 0.0  # as it asked; 0: it did not


def judge(response: ReceiverResponse) -> DeliveryVerdict:
    """A redirect is a refusal: an event goes where the settings say, and nowhere else."""
    if 200 <= response.status < 300:  # noqa: PLR2004  HTTP's own numbers
        return DeliveryVerdict.DELIVERED
    if response.status >= 500 or response.status in _LATER:  # noqa: PLR2004
        return DeliveryVerdict.LATER
    return DeliveryVerdict.REFUSED


def pause_seconds(failures: int, jitter: float, retry_after_seconds: float = 0.0) -> float:
    """How long to wait after so many failures in a row.

    Args:
        failures: at least 1.
        jitter: drawn evenly from 0 to 1.
        retry_after_seconds: as the receiver asked; never shortens.
    """
    plain = min(CAP_SECONDS, FIRST_SECONDS * 2.0 ** min(failures - 1, 16))
    return max(plain * (0.75 + jitter / 2), min(retry_after_seconds, MAX_RETRY_AFTER_SECONDS))


JOURNAL_PAUSE_SECONDS = 30.0
STOP_SECONDS = 2.0  # a delivery in progress is left behind: it is sent again, under the same id


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
    url: str  # checked before
    timeout_seconds: float
    token_file: Path | None = None


# Sends an event's body to a receiver, with the event's name and id; raises PostFailed.
Post = Callable[[Receiver, str, str, bytes], ReceiverResponse]


class DeliveryWorker:
    """Delivers events to one receiver. From one thread."""

    def __init__(
        self, receiver: Receiver, outbox: Outbox, post: Post, observer: DeliveryObserver, jitter: Callable[[], float]
    ) -> None:
        """Look at nothing yet.

        Args:
            receiver: where to.
            outbox: what waits.
            post: sends one event.
            observer: told what came of it.
            jitter: drawn evenly from 0 to 1.
        """
        self.receiver = receiver
        self._outbox = outbox
        self._post = post
        self._observer = observer
        self._jitter = jitter
        self._failures = 0  # in a row, of any kind
        self._finished = 0  # number of an event that is done with, should the journal not take that down

    def step(self) -> float | None:
        """Try the oldest event that waits.

        Returns:
            Seconds until the next try; None: nothing waits.
        """
        name = self.receiver.name
        try:
            queued = self._outbox.next(name)
            if queued is not None and queued.number == self._finished:
                self._outbox.remove(name, queued.number)
                queued = self._outbox.next(name)
            return None if queued is None else self._deliver(queued)
        except (OSError, JournalUnusable):
            return JOURNAL_PAUSE_SECONDS  # whoever writes the journal tells of it

    def _deliver(self, queued: Queued) -> float:
        verdict, reason, wish = self._try(queued)
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
            self._outbox.refused(name, queued.number)
        return pause_seconds(self._failures, self._jitter(), wish)

    def _try(self, queued: Queued) -> tuple[DeliveryVerdict, str, float]:
        try:
            answer = self._post(self.receiver, queued.event, queued.event_id, queued.body.encode())
        except PostFailed as error:
            return DeliveryVerdict.LATER, error.reason, 0.0
        return judge(answer), f"HTTP_{answer.status}", answer.retry_after_seconds

    def _finish(self, queued: Queued) -> None:
        self._finished = queued.number
        self._outbox.remove(self.receiver.name, queued.number)


class DeliveryThreads:
    """One thread for each receiver, between `start` and `stop`."""

    def __init__(self) -> None:
        """None yet."""
        self._threads: list[threading.Thread] = []
        self._stopping = threading.Event()
        self._wakes: list[threading.Event] = []

    def start(self, workers: Sequence[DeliveryWorker]) -> None:
        """Begin to deliver."""
        for worker in workers:
            wake = threading.Event()
            self._wakes.append(wake)
            name = f"webhook-{worker.receiver.name}"
            self._threads.append(threading.Thread(target=self._run, args=(worker, wake), name=name, daemon=True))
        for thread in self._threads:
            thread.start()

    def wake(self) -> None:
        """Something new waits; from any thread, at once."""
        for wake in self._wakes:
            wake.set()

    def stop(self) -> None:
        """End; what is not delivered stays in the journal."""
        self._stopping.set()
        self.wake()
        for thread in self._threads:
            thread.join(STOP_SECONDS)

    def _run(self, worker: DeliveryWorker, wake: threading.Event) -> None:
        while not self._stopping.is_set():
            wake.clear()  # before looking: what comes now wakes again
            pause = worker.step()
            if pause is None:
                wake.wait()
            elif pause > 0:
                self._stopping.wait(pause)
