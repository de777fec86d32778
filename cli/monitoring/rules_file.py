"""Prometheus's rule files, made from the alerts and recording rules."""

import json

from cli.monitoring.alert import Alert, AlertGroup, Recording
from cli.monitoring.catalog import GROUPS
from cli.monitoring.recordings import RECORDINGS

DEFAULT_BASE = "docs/runbooks/"
_HEADER = "# Made by `hotslot alerts rules`. {what} `hotslot alerts runbooks` makes the pages.\n"


def render_rules(base: str = DEFAULT_BASE) -> str:
    """The rule file with recording rules and alerts.

    Args:
        base: what stands before the name of a runbook in `runbook_url`.
    """
    text = _HEADER.format(what="Each alert names its runbook.") + "groups:\n"
    text += "  - name: hotslot-recordings\n    rules:\n" + "".join(_recording(row) for row in RECORDINGS)
    return text + "".join(_group(group, base) for group in GROUPS)


def _group(group: AlertGroup, base: str) -> str:
    return f"  - name: {group.name}\n    rules:\n" + "".join(_alert(alert, base) for alert in group.alerts)


def _recording(row: Recording) -> str:
    return f"      # {row.use}\n      - record: {row.name}\n        expr: {_quote(row.expression)}\n"


def _alert(alert: Alert, base: str) -> str:
    return (
        f"      - alert: {alert.name}\n"
        f"        expr: {_quote(alert.expression)}\n"
        f"        for: {alert.lasts}\n"
        f"        labels:\n          severity: {alert.severity.value}\n"
        f"        annotations:\n"
        f"          summary: {_quote(alert.summary)}\n"
        f"          description: {_quote(alert.meaning)}\n"
        f"          command: {_quote(alert.command)}\n"
        f"          runbook_url: {_quote(base + alert.page)}\n"
    )


def _quote(text: str) -> str:
    """A YAML string: YAML reads JSON's quoted strings."""
    return json.dumps(text, ensure_ascii=False)
