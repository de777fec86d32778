"""The webhooks of one updater: event bodies, the journal's subscriptions, and the threads that deliver."""

import contextlib
import functools
import json
import math
import random
import socket
from typing import Any

from common.clock import Clock
from common.step_threads import StepThreads
from updater.core.ports import JournalUnusable
from updater.core.record import Event, Update
from updater.store.outbox import Outbox, Subscribers, Subscription
from updater.webhook_settings import WebhookSection
from updater.webhooks.delivery import JOURNAL_PAUSE_SECONDS, DeliveryWorker, Receiver, ReceiverResponse
from updater.webhooks.metrics import DeliveryReporter

EVENT_SCHEMA = 1
STOP_SECONDS = 2.0  # a delivery still in progress then is abandoned; the next start sends it again under the same id
MAX_TEXT_CHARS = 2000  # of `message`


class Webhooks:
    """Delivers events to the configured receivers. Created before the journal is open, started once it is."""

    def __init__(self, sections: tuple[WebhookSection, ...], reporter: DeliveryReporter, clock: Clock) -> None:
        """Connect to nothing yet.

        Args:
            sections: `[[updater.webhooks]]`, checked.
            reporter: counts and logs deliveries; made for the receivers of `sections`.
            clock: measures deliveries, and converts HTTP dates of Retry-After.
        """
        self._subscriptions = tuple(Subscription(one.shown_name, one.events) for one in sections)
        self._receivers = [Receiver(one.shown_name, one.url, one.timeout_seconds, one.token_file) for one in sections]
        self._reporter = reporter
        self._threads = StepThreads(reporter.log, JOURNAL_PAUSE_SECONDS)
        self._post = functools.partial(_post, clock=clock)

    def start(self, outbox: Outbox) -> None:
        """Start the delivery threads. Events of receivers that are no longer configured are deleted.

        Raises:
            JournalUnusable: the journal cannot be trusted.
        """
        with contextlib.suppress(OSError):  # a full disk; the next start deletes them
            outbox.delete_unsubscribed()
        jitter = random.SystemRandom().random
        for one in self._receivers:
            self._reporter.watch(one.name, functools.partial(_count_waiting, outbox, one.name))
        workers = [DeliveryWorker(one, outbox, self._post, self._reporter, jitter) for one in self._receivers]
        self._threads.start({f"webhook {one.receiver.name}": one.step for one in workers})

    def subscribers(self, node: str) -> Subscribers:
        """The receivers' subscriptions, for the journal.

        Args:
            node: name of this host; empty: its host name.
        """
        encode = functools.partial(encode_event, node=node or socket.gethostname())
        return Subscribers(self._subscriptions, encode, self._threads.wake_all, self._reporter.dropped)

    def stop(self) -> None:
        """Stop the threads. Undelivered events stay in the journal."""
        self._threads.stop(STOP_SECONDS)


def encode_event(event: Event, event_id: str, node: str) -> str:
    """The JSON body of one event; docs/webhooks.md describes each field.

    Args:
        event: as written to the audit trail.
        event_id: the same for every delivery of this event.
        node: name of this host.
    """
    row: dict[str, Any] = {
        "schema_version": EVENT_SCHEMA,
        "id": event_id,
        "event": event.name,
        "at": event.at.isoformat(),
        "node": node,
        "model": event.model,
        "stage": event.stage.value,
        "message": event.message[:MAX_TEXT_CHARS],
        "outcome": None if event.outcome is None else event.outcome.value,
        "update": None if event.update is None else _encode_update(event.update),
    }
    return json.dumps(row, ensure_ascii=False, separators=(",", ":"))


def _encode_update(update: Update) -> dict[str, Any]:
    return {
        "id": update.update_id,
        "kind": update.kind.value,
        "revision": update.revision,
        "source_digest": update.source_digest,
        "bundle_digest": update.bundle_digest,
        "started_at": update.started_at.isoformat(),
        "reason": update.reason,
    }


def _post(receiver: Receiver, event: str, event_id: str, body: bytes, *, clock: Clock) -> ReceiverResponse:
    from updater.webhooks.http_post import http_post  # noqa: PLC0415  without webhooks no HTTP library is loaded

    return http_post(receiver, event, event_id, body, clock)


def _count_waiting(outbox: Outbox, hook: str) -> float:
    """Number of queued events; NaN while the journal cannot be read."""
    try:
        return outbox.count_waiting(hook)
    except (OSError, JournalUnusable):
        return math.nan
