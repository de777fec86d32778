"""Asks every query of the dashboard in the real Prometheus, filled by the real stack under load, and draws the answers.

    python -m dev.watch.dashboard [--picture FILE.svg]

The stack gets an update, a bad one that is rolled back, and a killed runner. Queries of NVIDIA's exporter are left out.
"""

import argparse
import os
import signal
import sys
from pathlib import Path

from cli.monitoring.dashboard import WHERE, expand, list_panels, list_queries
from cli.monitoring.panel import RATE, PanelKind
from dev.watch.drill_callers import asking
from dev.watch.drill_stack import DrillStack, drill_stack, pause
from dev.watch.picture import DrawnPanel, draw_dashboard

ENVIRONMENT = {"SCRIPTED_DEVICES": "cuda:0,cpu", "SCRIPTED_CARD_USED": str(50 << 30)}
FOREIGN = "DCGM_"
_VALUES = {"$instance": ".*", "$model": ".*", RATE: "15s", "[1m]": "[15s]"}


def fill(drill: DrillStack) -> None:
    """What a dashboard shows: traffic, updates, a rollback, a death."""
    with drill.stack.load(), asking(drill.stack, "!error one", "two", "three", callers=1, pause=0.5):
        drill.stack.publish("v1.1.0")
        drill.stack.wait_committed("v1.1.0")
        pause(10)
        drill.stack.publish_bad("v1.2.0")
        drill.stack.wait(lambda: drill.stack.outcome("v1.2.0"), "the bad revision is rolled back")
        os.kill(drill.stack.control.active().pid, signal.SIGKILL)
        pause(25)


def ask_all(drill: DrillStack) -> list[tuple[str, str, int]]:
    """Panel, query and number of series of every query."""
    found = []
    for title, query in list_queries():
        if FOREIGN in query:
            continue
        series = drill.prometheus.query_range(concrete(query), 60)
        found.append((title, query, len(series)))
    return found


def concrete(query: str) -> str:
    """A query with values for the dashboard's variables."""
    for name, value in _VALUES.items():
        query = query.replace(name, value)
    return query


def draw(drill: DrillStack, path: Path) -> None:
    """Draw the panels with lines from the data of the last minute."""
    drawn = []
    for panel in list_panels():
        if panel.kind is not PanelKind.LINES or any(FOREIGN in query.expression for query in panel.queries):
            continue
        lines = []
        for query in panel.queries:
            for series in drill.prometheus.query_range(concrete(expand(query.expression)), 75):
                name = query.legend
                for label, value in series["metric"].items():
                    name = name.replace(f"{{{{{label}}}}}", value)
                lines.append((name, [(float(at), float(value)) for at, value in series["values"]]))
        drawn.append(DrawnPanel(panel.title, panel.unit, lines))
    path.write_text(draw_dashboard(drawn), encoding="utf-8")


def main() -> int:
    """Print the table; 1 if a query has no data."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--picture", type=Path, metavar="FILE")
    options = parser.parse_args()
    with drill_stack(environment=ENVIRONMENT) as drill:
        fill(drill)
        rows = ask_all(drill)
        if options.picture is not None:
            draw(drill, options.picture)
    empty = [(title, query) for title, query, count in rows if not count]
    print(f"{len(rows)} queries, {len(rows) - len(empty)} with data, {sum(count for *_, count in rows)} series")
    for title, query in empty:
        print(f"no data: {title}: {query.replace(WHERE, '…')}")
    return 1 if empty else 0


if __name__ == "__main__":
    sys.exit(main())
