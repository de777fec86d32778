"""What Alertmanager sends (its webhook format, version 4), bounded and checked; and its form in the queue."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from common.json_load import load_json

MAX_BODY_BYTES = 1 << 20
MAX_ALERTS = 100  # of one notification; Alertmanager's max_alerts limits it too
_MAX_CHARS = 1000


class NotificationInvalid(ValueError):
    """The body is no notification of Alertmanager."""


@dataclass(frozen=True, slots=True)
class AlertState:
    """One alert of a notification."""

    name: str
    is_firing: bool
    severity: str
    subject: str  # model, device, target or instance that it is about
    summary: str
    description: str
    command: str
    runbook_url: str
    starts_at: str  # RFC 3339
    ends_at: str  # empty while it fires


@dataclass(frozen=True, slots=True)
class Notification:
    """One notification, as it waits in the queue."""

    received_at: str  # ISO 8601, UTC
    alerts: tuple[AlertState, ...]
    more_alerts: int = 0  # beyond MAX_ALERTS

    def encode(self) -> bytes:
        """For the queue."""
        return json.dumps(asdict(self), ensure_ascii=False).encode()


def parse_notification(body: bytes, now: datetime) -> Notification:
    """Parse a body from Alertmanager.

    Raises:
        NotificationInvalid: it is none.
    """
    row = _load(body)
    alerts = row.get("alerts")
    if not isinstance(alerts, list) or not alerts or not all(isinstance(one, dict) for one in alerts):
        raise NotificationInvalid("there is no list of alerts")
    dropped = row.get("truncatedAlerts", 0)
    more = max(0, len(alerts) - MAX_ALERTS) + (dropped if isinstance(dropped, int) else 0)
    return Notification(now.isoformat(), tuple(_parse_alert(one) for one in alerts[:MAX_ALERTS]), more)


def decode_notification(content: bytes) -> Notification:
    """Read a notification of the queue.

    Raises:
        NotificationInvalid: the file is damaged.
    """
    row = _load(content)
    try:
        return Notification(row["received_at"], tuple(AlertState(**one) for one in row["alerts"]), row["more_alerts"])
    except (KeyError, TypeError) as error:
        raise NotificationInvalid("a file of the queue is damaged") from error


def _load(content: bytes) -> Mapping[str, Any]:
    try:
        row = load_json(content)
    except ValueError as error:
        raise NotificationInvalid("not JSON") from error
    if not isinstance(row, dict):
        raise NotificationInvalid("not a JSON object")
    return row


def _parse_alert(row: Mapping[str, Any]) -> AlertState:
    labels, notes = _texts(row.get("labels")), _texts(row.get("annotations"))
    about = ("model", "service", "device", "hook", "target", "instance")
    is_firing = row.get("status") != "resolved"
    return AlertState(
        name=labels.get("alertname", "alert"),
        is_firing=is_firing,
        severity=labels.get("severity", ""),
        subject=next((labels[name] for name in about if labels.get(name)), ""),
        summary=notes.get("summary", ""),
        description=notes.get("description", ""),
        command=notes.get("command", ""),
        runbook_url=notes.get("runbook_url", ""),
        starts_at=_text(row.get("startsAt")),
        ends_at="" if is_firing else _text(row.get("endsAt")),
    )


def _texts(rows: object) -> dict[str, str]:
    return {str(key): _text(value) for key, value in rows.items()} if isinstance(rows, dict) else {}


def _text(value: object) -> str:
    """A text on one line, without characters that a chat would interpret as a mention."""
    words = " ".join(str(value if value is not None else "").split())
    return words.replace("<@", "< @")[:_MAX_CHARS]
