"""What a receiver of events is told, and which events it asked for. Pure."""

import fnmatch
import json
from dataclasses import dataclass
from typing import Any

from updater.record import Event, Update

EVENT_SCHEMA = 1
MAX_TEXT_CHARS = 2000  # of a sentence for people


@dataclass(frozen=True, slots=True)
class Subscription:
    """A receiver, as far as the journal has to know of it."""

    hook: str  # its name
    events: tuple[str, ...]  # names, or patterns with "*"

    def wants(self, event: str) -> bool:
        """Whether an event of this name is for it."""
        return any(fnmatch.fnmatchcase(event, pattern) for pattern in self.events)


@dataclass(frozen=True, slots=True)
class Queued:
    """An event that waits for a receiver."""

    number: int  # its place; later ones are higher
    event_id: str
    event: str  # its name
    body: str  # JSON
    refusals: int  # so far


def body_of(event: Event, event_id: str, node: str) -> str:
    """One event as JSON; docs/webhooks.md tells each field.

    Args:
        event: as it is written into the audit trail.
        event_id: the same however often it is sent.
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
        "update": None if event.update is None else _told(event.update),
    }
    return json.dumps(row, ensure_ascii=False, separators=(",", ":"))


def _told(update: Update) -> dict[str, Any]:
    return {
        "id": update.update_id,
        "kind": update.kind.value,
        "revision": update.revision,
        "source_digest": update.source_digest,
        "bundle_digest": update.bundle_digest,
        "started_at": update.started_at.isoformat(),
        "reason": update.reason,
    }
