"""Messages for people, in Markdown, from the notifications that wait. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from cli.monitoring.relay.notification import AlertState, Notification

LATE_SECONDS = 120.0  # from then on a message says that it comes late
_CUT = " …"
_MINUTE, _HOUR = 60, 3600


@dataclass(frozen=True, slots=True)
class Message:
    """One message."""

    title: str  # with the word hotslot, by which a robot can be restricted
    text: str  # Markdown
    alerts: tuple[AlertState, ...]
    is_firing: bool
    notifications: int  # how many of those that wait are in it, from the oldest on


def compose_message(waiting: Sequence[Notification], max_bytes: int, now: datetime) -> Message:
    """Join as many notifications as fit; the oldest is always in it, cut if it must be.

    Args:
        waiting: at least one, oldest first.
        max_bytes: of the text, in UTF-8.
        now: with a time zone.
    """
    count = 1
    while count < len(waiting) and _size(_render(waiting[: count + 1], now)) <= max_bytes:
        count += 1
    alerts = _newest(waiting[:count])
    firing = sum(alert.is_firing for alert in alerts)
    return Message(
        title=_title(alerts, firing),
        text=_cut(_render(waiting[:count], now), max_bytes),
        alerts=alerts,
        is_firing=firing > 0,
        notifications=count,
    )


def _newest(notifications: Sequence[Notification]) -> tuple[AlertState, ...]:
    """Every state that an alert had: one that fired and ended while it waited is told with its end alone."""
    found: dict[tuple[str, str, str], AlertState] = {}
    for notification in notifications:
        for alert in notification.alerts:
            found[alert.name, alert.subject, alert.starts_at] = alert
    return tuple(sorted(found.values(), key=lambda alert: not alert.is_firing))


def _title(alerts: Sequence[AlertState], firing: int) -> str:
    names = sorted({alert.name for alert in alerts})
    shown = names[0] if len(names) == 1 else f"{len(names)} alerts"
    state = f"{firing} firing" if firing == len(alerts) else f"{len(alerts) - firing} resolved"
    if 0 < firing < len(alerts):
        state = f"{firing} firing, {state}"
    return f"hotslot: {shown}, {state}"


def _render(notifications: Sequence[Notification], now: datetime) -> str:
    alerts = _newest(notifications)
    firing = sum(alert.is_firing for alert in alerts)
    lines = [f"**{_title(alerts, firing)}**"]
    waited = (now - datetime.fromisoformat(notifications[0].received_at)).total_seconds()
    if waited >= LATE_SECONDS:
        lines.append(f"> this comes {_duration(waited)} late: the chat could not be reached")
    lines += [_describe(alert) for alert in alerts]
    more = sum(notification.more_alerts for notification in notifications)
    if more:
        lines.append(f"and {more} more")
    return "\n\n".join(lines)


def _describe(alert: AlertState) -> str:
    if not alert.is_firing:
        lasted = _seconds_between(alert.starts_at, alert.ends_at)
        after = f" after {_duration(lasted)}" if lasted > 0 else ""
        return f"**RESOLVED** {alert.name} {alert.subject}{after}\n> {alert.summary}"
    lines = [
        f"**FIRING** {alert.name} {alert.subject} ({alert.severity})",
        f"> {alert.summary}",
        f"> {alert.description}",
    ]
    if alert.command:
        lines.append(f"> first: `{alert.command}`")
    if alert.runbook_url:
        is_link = alert.runbook_url.startswith(("http://", "https://"))
        lines.append(f"> [runbook]({alert.runbook_url})" if is_link else f"> runbook: {alert.runbook_url}")
    return "\n".join([*lines, f"> since {alert.starts_at[:19]}"])


def _seconds_between(start: str, end: str) -> float:
    try:
        return (datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds()
    except (ValueError, TypeError):
        return 0.0


def _duration(seconds: float) -> str:
    if seconds < _MINUTE:
        return f"{seconds:.0f} s"
    return f"{seconds / _MINUTE:.0f} min" if seconds < _HOUR else f"{seconds / _HOUR:.1f} h"


def _size(text: str) -> int:
    return len(text.encode())


def _cut(text: str, max_bytes: int) -> str:
    if _size(text) <= max_bytes:
        return text
    kept = text.encode()[: max_bytes - _size(_CUT)]
    return kept.decode(errors="ignore") + _CUT
