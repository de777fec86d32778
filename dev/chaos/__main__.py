"""`make chaos`: fault-injection steps on real processes that take too long for `make test`.

Each step injects faults, numbered as in docs/faults.md, measures, and reports violations. A failed step does not stop
the others; the exit code is 1 if any failed. The results are written to docs/chaos-report.json, one row per step with
commit, seed, date and machine; commit it, and `python -m dev.scripts.faults` copies it into docs/faults.md.

    make chaos                                  all steps, more than an hour
    make chaos ARGS="--list"                    lists the steps
    make chaos ARGS="deaf random"               two steps
    make chaos ARGS="random --seed 7"           the same faults again
    make chaos ARGS="random --seconds 3600"     a longer run of a step without an end of its own
    make chaos ARGS="swaps --count 20"          a shorter run of a step that counts
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import psutil

from common.clock import SystemClock
from dev.chaos.catalog import STEPS, Findings, Step, chosen
from dev.chaos.report import REPORT, Row, read_report, this_machine, write_report
from dev.harness.commit import read_commit

MARK = "HOTSLOT_CHAOS_STEP"  # an environment variable that every process of a step inherits
MAX_SEED = 1_000_000
TOLD_TROUBLES = 20


@dataclass(frozen=True, slots=True)
class Options:
    """The parsed command line."""

    seed: int
    seconds: float | None
    count: int | None


def main() -> int:
    """Run the chosen steps; returns 0 if none failed."""
    parser = _parser()
    given = parser.parse_args()
    try:
        steps = chosen(given.steps)
    except KeyError as error:
        parser.error(f"there is no step {error}; --list shows all steps")
    if given.list:
        return _list()
    options = Options(random.randrange(MAX_SEED) if given.seed is None else given.seed, given.seconds, given.count)
    _say(f"seed {options.seed}; {len(steps)} steps")
    rows = []
    for step in steps:
        rows.append(run(step, options))
        write_report([rows[-1]], given.report)
    failed = [row.step for row in rows if row.result == "failed"]
    _say(f"{len(rows)} steps, failed: {', '.join(failed) or 'none'}; {given.report}")
    return 1 if failed else 0


def run(step: Step, options: Options) -> Row:
    """Run one step in its own process with a time limit; all its processes have ended afterwards."""
    _say(f"▶ {step.name} ({', '.join(step.faults)}): {step.about}; at most {step.limit_seconds:.0f} s")
    machine, clock = this_machine(), SystemClock()
    began = clock.monotonic()
    findings = _findings(step, options)
    row = Row(
        step=step.name,
        faults=step.faults,
        result=findings.result,
        count=findings.count,
        numbers=findings.numbers,
        troubles=tuple(findings.troubles) or ((findings.skipped,) if findings.skipped else ()),
        seconds=round(clock.monotonic() - began, 1),
        seed=options.seed,
        commit=read_commit(REPORT),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=machine,
    )
    _tell(row)
    return row


def _findings(step: Step, options: Options) -> Findings:
    with tempfile.TemporaryDirectory(prefix="chaos-out-") as place:
        out = Path(place) / "findings.json"
        command = [sys.executable, "-m", "dev.chaos.one", step.name, str(out), "--seed", str(options.seed)]
        command += [] if options.seconds is None else ["--seconds", str(options.seconds)]
        command += [] if options.count is None else ["--count", str(options.count)]
        mark = f"{os.getpid()}-{step.name}"
        with subprocess.Popen(command, env={**os.environ, MARK: mark}) as child:
            try:
                child.wait(step.limit_seconds)
            except subprocess.TimeoutExpired:
                return Findings(troubles=[f"not over within {step.limit_seconds:.0f} s"])
            finally:
                _end_all(mark)
        if not out.exists():
            return Findings(troubles=[f"the step ended with {child.returncode} and wrote no result"])
        return Findings(**json.loads(out.read_text(encoding="utf-8")))


def _end_all(mark: str) -> None:
    """End the processes that a step left running; they are recognised by the step's mark in their environment."""
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark:
                process.send_signal(signal.SIGKILL)
        except (psutil.Error, OSError):
            continue


def _tell(row: Row) -> None:
    numbers = ", ".join(f"{name} {value}" for name, value in row.numbers.items())
    _say(f"■ {row.step}: {row.result}, {row.count} in {row.seconds:.0f} s{': ' if numbers else ''}{numbers}")
    for trouble in row.troubles[:TOLD_TROUBLES]:
        _say(f"    {trouble}")


def _list() -> int:
    last = read_report()
    for step in STEPS:
        row = last.get(step.name)
        then = f"last: {row.result}, {row.count} at {row.commit}" if row else "never run"
        _say(f"{step.name:14} {', '.join(step.faults):20} {step.about} (at most {step.limit_seconds:.0f} s; {then})")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m dev.chaos", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("steps", nargs="*", metavar="STEP", help="names of steps; all without any")
    parser.add_argument("--list", action="store_true", help="say what there is, and how it went last")
    parser.add_argument("--seed", type=int, help="of everything random (default: a new one, which is printed)")
    parser.add_argument("--seconds", type=float, help="how long steps go on that have no end of their own")
    parser.add_argument("--count", type=int, help="how often steps do it that count")
    parser.add_argument("--report", type=Path, default=REPORT, help="where the findings go (default: %(default)s)")
    return parser


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
