"""One step in a process of its own: `python -m dev.chaos.one STEP OUT --seed N`. Started by `python -m dev.chaos`."""

import argparse
import importlib
import json
import sys
import tempfile
import traceback
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from dev.chaos.catalog import Findings, Skipped, Step, Task, step_named

LAST_LINES = 12


def main() -> int:
    """Run the step and write its findings to a file."""
    parser = argparse.ArgumentParser(prog="python -m dev.chaos.one")
    parser.add_argument("step")
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--count", type=int)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="chaos-", ignore_cleanup_errors=True) as place:
        task = Task(Path(place), options.seed, options.seconds, options.count, say)
        findings = perform(step_named(options.step), task)
    options.out.write_text(json.dumps(asdict(findings)), encoding="utf-8")
    return 0


def perform(step: Step, task: Task) -> Findings:
    """Run a step; an exception is recorded as a finding."""
    try:
        findings: Findings = importlib.import_module(step.module).run(task)
    except Skipped as reason:
        return Findings(skipped=str(reason))
    except Exception as error:  # noqa: BLE001  reported with its location; the other steps continue
        say("".join(traceback.format_exception(error)))
        return Findings(troubles=["\n".join(_last_lines(f"{type(error).__name__}: {error}"))])
    return findings


def say(line: str) -> None:
    """Print a line of progress."""
    sys.stdout.write(f"    {line}\n")
    sys.stdout.flush()


def _last_lines(text: str) -> Sequence[str]:
    lines = text.splitlines()
    return [*lines[:2], *lines[2:][-LAST_LINES:]]


if __name__ == "__main__":
    sys.exit(main())
