"""The webhooks of one updater, put together: whom the journal tells, and who brings it there."""

import contextlib
import functools
import math
import random
import socket

from common.clock import Clock
from common.logs import Logger
from updater.core.ports import JournalUnusable
from updater.metrics import CollectorRegistry
from updater.outbox import Outbox, Subscribers, Subscription
from updater.webhooks.delivery import DeliveryThreads, DeliveryWorker, Receiver, ReceiverResponse
from updater.webhooks.message import body_of
from updater.webhooks.metrics import DeliveryReporter
from updater.webhooks.settings import WebhookSection


class Webhooks:
    """Prepared before the journal is open, started when it is."""

    def __init__(
        self, sections: tuple[WebhookSection, ...], log: Logger, registry: CollectorRegistry, clock: Clock
    ) -> None:
        """Reach out to nobody yet.

        Args:
            sections: `[[updater.webhooks]]`, checked.
            log: told what fails.
            registry: of the process's metrics.
            clock: measures deliveries, and reads dates of a Retry-After.
        """
        self._subscriptions = tuple(Subscription(one.shown_name, one.events) for one in sections)
        self._receivers = [Receiver(one.shown_name, one.url, one.timeout_seconds, one.token_file) for one in sections]
        self._observer = DeliveryReporter(log, registry, tuple(one.hook for one in self._subscriptions))
        self._threads = DeliveryThreads()
        self._post = functools.partial(_post, clock=clock)

    def start(self, outbox: Outbox) -> None:
        """Deliver what waits, and what comes; what waits for others is forgotten.

        Raises:
            JournalUnusable: the journal cannot be trusted any more.
        """
        with contextlib.suppress(OSError):  # a full disk; the next start forgets them
            outbox.forget_others()
        jitter = random.SystemRandom().random
        for one in self._receivers:
            self._observer.watch(one.name, functools.partial(_waiting, outbox, one.name))
        workers = [DeliveryWorker(one, outbox, self._post, self._observer, jitter) for one in self._receivers]
        self._threads.start(workers)

    def subscribers(self, node: str) -> Subscribers:
        """Whom the journal tells, and whom it wakes.

        Args:
            node: name of this host; empty: its own.
        """
        body = functools.partial(body_of, node=node or socket.gethostname())
        return Subscribers(self._subscriptions, body, self._threads.wake, self._observer.dropped)

    def stop(self) -> None:
        """End; what is not delivered stays in the journal."""
        self._threads.stop()


def _post(receiver: Receiver, event: str, event_id: str, body: bytes, *, clock: Clock) -> ReceiverResponse:
    from updater.webhooks.http_post import http_post  # noqa: PLC0415  without webhooks no HTTP library is loaded

    return http_post(receiver, event, event_id, body, clock)


def _waiting(outbox: Outbox, hook: str) -> float:
    """How many wait; no number while the journal cannot be read."""
    try:
        return outbox.waiting(hook)
    except (OSError, JournalUnusable):
        return math.nan
