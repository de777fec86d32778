"""`make bench-overload`: goodput of servers that are offered more than their engine computes.

Scripted engines of 4 and of 200 rows a second, which sleep, are offered 1.25, 2 and 4 times as much, with deadlines of
10 s and 1 s, in requests of 1 and 8 rows, from callers who do not wait for each other. Delivered rows are counted by
windows (5 s; 15 s for the slow engine) and compared with what a perfect server delivers of the same arrivals; the first
window, in which the queue fills, is shown in brackets and not judged. Wasted is the share of the rows computed by the
engine whose answer reached no caller. Servers whose loads need little computing run beside one another.

    make bench-overload ARGS="--engine 4 --load 2 --deadline 10 --rows 1 --seconds 30"
"""

import argparse
import itertools
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from dev.bench.beside import run_beside
from dev.bench.overload_case import Case, Measured, run_case

RESULTS = Path(".bench/overload.json")
ENGINES, LOADS, DEADLINES, ROWS = (4.0, 200.0), (1.25, 2.0, 4.0), (10.0, 1.0), (1, 8)
SECONDS = 60.0
WIDTH = 150  # characters


def main() -> int:
    """Measure all chosen cases and print; 1 if a goal was missed."""
    options = _parser().parse_args()
    cases = [
        Case(engine, load, deadline, rows, options.arrivals)
        for engine, load, deadline, rows in itertools.product(
            options.engine or ENGINES, options.load or LOADS, options.deadline or DEADLINES, options.rows or ROWS
        )
    ]
    found = run_beside(cases, lambda case, folder: run_case(case, folder, options.seconds), options.cores)
    console = Console(width=WIDTH)
    console.print(table_of(found))
    for one in found:
        for miss in one.misses:
            console.print(f"missed: {one.case}: {miss}; {one.calls.ends}")
    options.results.parent.mkdir(exist_ok=True)
    options.results.write_text(json.dumps([asdict(one) for one in found], indent=1, ensure_ascii=False))
    console.print(f"machine load {os.getloadavg()[0]:.1f}; {options.results}")
    return 1 if any(one.misses for one in found) else 0


def table_of(found: Sequence[Measured]) -> Table:
    """The table of all cases."""
    table = Table(title="goodput under overload")
    names = ("rows/s", "offered", "deadline", "rows", "delivered by window, %", "wasted", "answers p50 p99, s")
    for name in (*names, "refused", "p99, ms", "lost", ""):
        table.add_column(name, justify="right")
    for one in found:
        case, calls = one.case, one.calls
        first, *rest = (f"{100 * share:.0f}" for share in one.windows)
        table.add_row(
            f"{case.rows_per_second:g}",
            f"{case.load:g}×",
            f"{case.deadline:g} s",
            str(case.rows),
            " ".join([f"({first})", *rest]) if case.is_possible else "none can be in time",
            f"{one.wasted:.1%}",
            f"{calls.answer_p50:.2f} {calls.answer_p99:.2f}",
            f"{calls.refused} of {calls.offered}",
            f"{1000 * calls.refusal_p99:.1f}",
            str(calls.lost),
            "missed" if one.misses else "good",
        )
    return table


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", type=float, action="append", help="rows a second; may be repeated")
    parser.add_argument("--load", type=float, action="append", help="offered, as a multiple of the engine's")
    parser.add_argument("--deadline", type=float, action="append", help="seconds")
    parser.add_argument("--rows", type=int, action="append", help="of a request")
    parser.add_argument("--arrivals", choices=("uniform", "poisson"), default="uniform")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of each case")
    parser.add_argument("--cores", type=float, default=0.4 * (os.cpu_count() or 1), help="for cases beside one another")
    parser.add_argument("--results", type=Path, default=RESULTS, help="JSON file (default: %(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
