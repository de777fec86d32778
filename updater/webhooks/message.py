"""The JSON body of an event for webhook receivers. Pure."""

import json
from typing import Any

from updater.core.record import Event, Update

EVENT_SCHEMA = 1
MAX_TEXT_CHARS = 2000  # of a sentence for people


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
