"""Asks every query of the dashboard in the real Prometheus, filled by the real stack under load, and draws the answers.

    python -m dev.watch.dashboard [--picture FILE.svg]

The stack gets an update, a bad one that is rolled back, a killed runner, and a revision that decodes pictures. Every
query must return data; those of NVIDIA's exporter are left out.
"""

import argparse
import os
import signal
import sys
from pathlib import Path

from cli.monitoring.dashboard import WHERE, expand, list_panels, list_queries
from cli.monitoring.panel import RATE, PanelKind
from dev.harness.demo_model import golden_items
from dev.watch.drill_callers import asking
from dev.watch.drill_stack import DrillStack, drill_stack, pause
from dev.watch.picture import DrawnPanel, draw_dashboard

ENVIRONMENT = {"SCRIPTED_DEVICES": "cuda:0,cpu", "SCRIPTED_CARD_USED": str(50 << 30)}
FOREIGN = "DCGM_"
PICTURE_SIDE = 16
WINDOW_SECONDS = 90  # of a query: all that the stack got
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
        pause(20)
    show_pictures(drill)


def show_pictures(drill: DrillStack) -> None:
    """Replace the model by one that decodes its pictures; callers send real ones, and some that cannot be read."""
    pictures = [asked.image for _, asked in golden_items(4)]
    for number, picture in enumerate(pictures):  # those of the stack's golden set are any bytes
        (drill.stack.golden / f"{number}.png").write_bytes(picture)
    readable, broken = pictures[0], pictures[0][:40]
    with asking(drill.stack, "one", "two", image=readable), asking(drill.stack, "three", callers=1, image=broken):
        drill.stack.publish("v1.3.0", picture_side=PICTURE_SIDE)
        drill.stack.wait_committed("v1.3.0")
        drill.wait_data(concrete(f"rate(hotslot_pictures_total[{RATE}]) > 0"))


def ask_all(drill: DrillStack) -> list[tuple[str, str, int]]:
    """Panel, query and number of series of every query."""
    found = []
    for title, query in list_queries():
        if FOREIGN in query:
            continue
        series = drill.prometheus.query_range(concrete(query), WINDOW_SECONDS)
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
            for series in drill.prometheus.query_range(concrete(expand(query.expression)), WINDOW_SECONDS):
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
