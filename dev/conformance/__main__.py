"""`make conformance`: runs the table with the clients of all languages, and writes docs/conformance.md.

`python -m dev.conformance --language python --row NAME…` runs a part and writes nothing.
"""

import argparse
import json
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from dev.conformance.report import Result, show, write_report
from dev.conformance.runner import LANGUAGES, Json, Runner
from dev.conformance.situations import PICTURES, Servers
from dev.harness.process import ROOT

TABLE = ROOT / "clients" / "conformance" / "table.json"


def read_table(rows: Sequence[str] = ()) -> list[Json]:
    """The rows of the table; those whose names begin with one of `rows`, if any is given."""
    table: list[Json] = json.loads(TABLE.read_text(encoding="utf-8"))
    return [row for row in table if not rows or row["id"].startswith(tuple(rows))]


def run_table(languages: Sequence[str], rows: Sequence[Json], servers: Servers) -> list[Result]:
    """Run rows with languages, a language after the other on the same servers."""
    results = []
    for name in languages:
        with Runner(LANGUAGES[name]) as runner:
            for row in rows:
                results.append(run_row(servers, runner, row))
                if not results[-1].is_good:
                    sys.stdout.write(f"{results[-1].describe()}\n")
    return results


def run_row(servers: Servers, runner: Runner, row: Json) -> Result:
    """Bring about the situation of a row and run it."""
    situation = row["situation"]
    command = {"row": row, "endpoint": servers.endpoint(situation), "pictures": str(PICTURES)}
    servers.prepare(situation)
    began = time.monotonic()
    line = runner.run_row(command, servers.on_reached(situation))
    return Result(row, runner.name, line, time.monotonic() - began)


def choose_languages() -> list[str]:
    """The languages that this machine can run; says which it cannot."""
    for name, language in LANGUAGES.items():
        if language.missing:
            sys.stderr.write(f"hotslot: {name} is left out: there is no {' and no '.join(language.missing)}\n")
    return [name for name, language in LANGUAGES.items() if not language.missing]


def main() -> int:
    """Run, print, and write the report; 0 if every row has passed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--language", action="append", choices=sorted(LANGUAGES), help="default: all")
    parser.add_argument("--row", action="append", default=[], help="only rows whose names begin so")
    parser.add_argument("--write", action="store_true", help="write docs/conformance.md")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # servers and runners are ended
    languages = options.language or choose_languages()
    with tempfile.TemporaryDirectory(prefix="hotslot-") as folder, Servers(Path(folder)) as servers:
        results = run_table(languages, read_table(options.row), servers)
    show(results)
    if options.write:
        write_report(results)
    return 0 if all(result.is_good for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
