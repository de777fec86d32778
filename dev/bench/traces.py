"""`make bench-traces`: what traces cost the server: off, 1 % and all calls, in turn, with an engine that does nothing.

The CPU time of a call counts: the server's core is full at 16 clients, so calls a second follow it, and it depends less
on what else the machine does.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

from dev.bench.server import Row, measure, server
from dev.harness.collector import SimulatedCollector, simulated_collector

LOAD = ("unary", 16, 1)
SHARES = {"off": None, "off again": None, "1 %": 0.01, "all": 1.0}
BASE = "off"
START_ATTEMPTS = 4


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0, help="length of each row")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    os.sched_setaffinity(0, {1 % (os.cpu_count() or 1)})
    rows: dict[str, list[Row]] = {name: [] for name in SHARES}
    with simulated_collector() as collector:
        for number in range(options.rounds):
            for name in list(SHARES) if number % 2 == 0 else reversed(SHARES):
                rows[name].append(_measure(SHARES[name], collector, options.seconds))
    _show(rows)
    return 1 if any(row.failed for several in rows.values() for row in several) else 0


def _measure(share: float | None, collector: SimulatedCollector, seconds: float) -> Row:
    more = "" if share is None else f'[traces]\nendpoint = "127.0.0.1:{collector.port}"\nshare = {share}\n'
    for _ in range(START_ATTEMPTS - 1):  # on a machine that does other things
        try:
            return _measure_once(more, collector, seconds)
        except RuntimeError as error:
            print(f"again: {error}", file=sys.stderr)
    return _measure_once(more, collector, seconds)


def _measure_once(more: str, collector: SimulatedCollector, seconds: float) -> Row:
    with tempfile.TemporaryDirectory() as place, server(Path(place), more) as process:
        measure(Path(place), process, LOAD, 2.0)  # warm
        row = measure(Path(place), process, LOAD, seconds)
    collector.requests.clear()
    return row


def _show(rows: dict[str, list[Row]]) -> None:
    table = Table(title="traces, one core, 16 clients, an engine that does nothing")
    for heading in ("traces", "calls a second", "CPU ms a call", "more than off", "rounds"):
        table.add_column(heading, justify="left" if heading == "traces" else "right")
    base = median(row.cpu_ms for row in rows[BASE])
    for name, several in rows.items():
        cpu = median(row.cpu_ms for row in several)
        rate = median(row.per_second for row in several)
        spread = f"{min(row.cpu_ms for row in several):.4f}–{max(row.cpu_ms for row in several):.4f}"
        table.add_row(name, f"{rate:.0f}", f"{cpu:.4f}", f"{100 * (cpu / base - 1):+.1f} %", spread)
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
