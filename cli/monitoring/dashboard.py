"""Grafana's dashboard, made from data: rows of panels with their queries."""

import json
from collections.abc import Iterator
from typing import Any

from cli.monitoring.dashboard_panels import ROWS
from cli.monitoring.panel import Panel, PanelKind

UID = "hotslot-serving"
SCHEMA_VERSION = 39  # of Grafana 11; newer ones read it
WIDTH, HEIGHT = 24, 8  # of the grid, and of a panel
_SOURCE = {"type": "prometheus", "uid": "${datasource}"}


WHERE, ON = 'instance=~"$instance", model=~"$model"', 'instance=~"$instance"'
# Marks on all panels: when another revision began to answer, and how trials ended.
MARKS = f"sum by (model, change) (increase(hotslot_swaps_total{{{WHERE}}}[1m])) > 0"


def expand(expression: str) -> str:
    """A query as Grafana gets it: with the label matchers in the place of `$where` and `$on`."""
    return expression.replace("$where", WHERE).replace("$on", ON)


def render_dashboard() -> str:
    """The dashboard as Grafana imports it."""
    return json.dumps(build_dashboard(), ensure_ascii=False, indent=2) + "\n"


def list_queries() -> list[tuple[str, str]]:
    """Panel and query of everything that the dashboard asks, variables and marks too."""
    rows = [(panel.title, expand(query.expression)) for panel in list_panels() for query in panel.queries]
    return [*rows, ("marks", MARKS)]


def list_panels() -> list[Panel]:
    """All panels in order."""
    return [panel for row in ROWS for panel in row.panels]


def build_dashboard() -> dict[str, Any]:
    """The dashboard as Grafana's JSON model."""
    return {
        "uid": UID,
        "title": "hotslot",
        "description": "Serving, updates, devices and machines of hotslot. Made by `hotslot alerts dashboard`.",
        "tags": ["hotslot"],
        "editable": True,
        "graphTooltip": 1,
        "schemaVersion": SCHEMA_VERSION,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "templating": {"list": [_source_variable(), _variable("instance", ""), _variable("model", ON)]},
        "annotations": {"list": [_marks()]},
        "panels": list(_place()),
    }


def _place() -> Iterator[dict[str, Any]]:
    """Panels with their places in the grid, from left to right."""
    number, top = 1, 0
    for row in ROWS:
        yield {
            "id": number,
            "type": "row",
            "title": row.title,
            "collapsed": False,
            "panels": [],
            "gridPos": {"h": 1, "w": WIDTH, "x": 0, "y": top},
        }
        number, top, left = number + 1, top + 1, 0
        for panel in row.panels:
            if left + panel.width > WIDTH:
                top, left = top + HEIGHT, 0
            yield _panel(panel, number, {"h": HEIGHT, "w": panel.width, "x": left, "y": top})
            number, left = number + 1, left + panel.width
        top += HEIGHT


def _panel(panel: Panel, number: int, place: dict[str, int]) -> dict[str, Any]:
    is_table = panel.kind is PanelKind.TABLE
    custom: dict[str, Any] = {}
    if panel.kind is PanelKind.LINES:
        custom = {"fillOpacity": 10, "showPoints": "never"}
        if panel.stacks:
            custom["stacking"] = {"mode": "normal", "group": "A"}
    row: dict[str, Any] = {
        "id": number,
        "type": panel.kind.value,
        "title": panel.title,
        "description": panel.description,
        "datasource": _SOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": {"unit": panel.unit, "custom": custom}, "overrides": []},
        "options": _options(panel.kind),
        "targets": [
            {
                "refId": chr(ord("A") + position),
                "datasource": _SOURCE,
                "expr": expand(query.expression),
                "legendFormat": query.legend,
                "instant": is_table,
                "range": not is_table,
                **({"format": "table"} if is_table else {}),
            }
            for position, query in enumerate(panel.queries)
        ],
    }
    if is_table:
        row["transformations"] = [{"id": "merge", "options": {}}]
    return row


def _options(kind: PanelKind) -> dict[str, Any]:
    if kind is PanelKind.LINES:
        legend = {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []}
        return {"legend": legend, "tooltip": {"mode": "multi", "sort": "desc"}}
    if kind is PanelKind.NUMBER:
        reduce = {"calcs": ["lastNotNull"], "fields": "", "values": False}
        return {"reduceOptions": reduce, "colorMode": "value", "graphMode": "area", "textMode": "auto"}
    return {}


def _source_variable() -> dict[str, Any]:
    return {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Prometheus", "hide": 0}


def _variable(name: str, matchers: str) -> dict[str, Any]:
    metric = "hotslot_build_info" if name == "instance" else "hotslot_slot_info"
    query = f"label_values({metric}{f'{{{matchers}}}' if matchers else ''}, {name})"
    return {
        "name": name,
        "type": "query",
        "datasource": _SOURCE,
        "query": {"query": query, "refId": name},
        "includeAll": True,
        "multi": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
        "refresh": 2,
        "sort": 1,
        "hide": 0,
    }


def _marks() -> dict[str, Any]:
    return {
        "name": "swaps",
        "datasource": _SOURCE,
        "enable": True,
        "hide": False,
        "iconColor": "blue",
        "target": {"refId": "marks", "expr": MARKS, "interval": "60s", "legendFormat": "{{model}}: {{change}}"},
    }
