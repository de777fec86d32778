"""`make bench-fair`: unary callers beside saturating streams, and two models on one device.

A scripted engine computes 200 rows a second in calls of at most 8. First 1, 10 or 20 streams of items of 1 or 32 rows
keep it busy alone; then four unary callers join them: on the same connection, on other connections, and behind an Envoy
that merges all callers onto one connection and tells them apart by a metadata key. The factor is the 99th percentile of
a unary call's latency over its own device time and one device call. Then one caller with ten streams is joined by
another with one, and a model that is saturated by another model on the same device.

    make bench-fair ARGS="--only 'behind Envoy' --seconds 10"
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
from dev.bench.fair_case import Case, Measured, run_case

RESULTS = Path(".bench/fair.json")
STREAMS, ROWS = (1, 10, 20), (1, 32)
PLACEMENTS = ("same connection", "other connections", "behind Envoy")
SECONDS = 20.0
WIDTH = 150  # characters
CASES = (
    *(
        Case("unary callers", streams, rows, placement)
        for placement, streams, rows in itertools.product(PLACEMENTS, STREAMS, ROWS)
    ),
    Case("another caller's stream", 10, 1, "other connections", is_unary=False),
    Case("another caller's stream", 10, 32, "behind Envoy", is_unary=False),
    Case("unary callers", 10, 32, "two models"),
    Case("another model's streams", 10, 32, "two models", is_unary=False, few=10),
)


def main() -> int:
    """Measure all chosen cases and print; 1 if a goal was missed."""
    options = _parser().parse_args()
    cases = [case for case in CASES if not options.only or any(text in str(case) for text in options.only)]
    found = run_beside(cases, lambda case, folder: run_case(case, folder, options.seconds), options.cores)
    console = Console(width=WIDTH)
    console.print(table_of(found))
    for one in found:
        for miss in one.misses:
            console.print(f"missed: {one.case}: {miss}")
    options.results.parent.mkdir(exist_ok=True)
    options.results.write_text(json.dumps([asdict(one) for one in found], indent=1, ensure_ascii=False))
    console.print(f"machine load {os.getloadavg()[0]:.1f}; {options.results}")
    return 1 if any(one.misses for one in found) else 0


def table_of(found: Sequence[Measured]) -> Table:
    """The table of all cases."""
    table = Table(title="fairness beside saturating streams")
    names = ("placement", "streams", "rows", "joined by", "unary p50 p99, ms", "factor", "unary failed", "items failed")
    for name in (*names, "throughput", "their share", "least stream", ""):
        table.add_column(name, justify="left" if name in ("placement", "joined by") else "right")
    for one in found:
        case = one.case
        table.add_row(
            case.placement,
            str(case.streams),
            str(case.rows),
            case.name,
            f"{1000 * one.unary_p50:.0f} {1000 * one.unary_p99:.0f}" if case.is_unary else "",
            f"{one.factor:.1f}" if case.is_unary else "",
            f"{one.unary_failed} of {one.unary}" if case.is_unary else "",
            f"{one.items_failed} of {one.items}",
            f"{one.throughput:.1%}",
            f"{one.share:.0%}",
            f"{one.least_stream:.0%}",
            "missed" if one.misses else "good",
        )
    return table


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", help="a part of a case's name; may be repeated")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of each of the two parts of a case")
    parser.add_argument("--cores", type=float, default=0.4 * (os.cpu_count() or 1), help="for cases beside one another")
    parser.add_argument("--results", type=Path, default=RESULTS, help="JSON file (default: %(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
