"""Look for inputs that break a target, and for messages that harm a server: `make fuzz`.

    make fuzz                                     everything: a million inputs and 50,000 messages (about an hour)
    make fuzz ARGS="texts frames --runs 20000"    some targets, with fewer inputs
    make fuzz ARGS="texts --keep"                 also keep inputs for the tests: tests/fuzz/corpus
    make fuzz ARGS="--record"                     also write the table to docs/fuzz.md

An input that breaks a target ends the run with exit code 1; it lies under .bench/fuzz/TARGET. To see it fail again:
`.venv/bin/python -m tests.fuzz.again TARGET FILE`.
"""

# ruff: noqa: T201  prints to a terminal

import argparse
import json
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

from tests.fuzz import wire
from tests.fuzz.target import TARGETS, Target

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "fuzz.md"
WORK = ROOT / ".bench" / "fuzz"
TOOLS = ROOT / ".tools" / "fuzz"  # where `make fuzz` installs atheris
WIRE = "wire"
MAX_RSS_MB = 2048
DRAWN = 200  # inputs of random bytes to begin with
MAX_KEPT_BYTES = 120_000  # of a target's inputs for the tests, uncompressed
_STATUS = re.compile(r"#(\d+)\s+(INITED|DONE)\s+cov: (\d+).*?rss: (\d+)Mb")
_TABLE = re.compile(r"(?<=<!-- run -->\n).*(?=<!-- end -->)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Result:
    """A target's run."""

    inputs: int
    seconds: float
    edges: int  # of Python's code, reached
    first_mb: int  # resident memory after the corpus
    last_mb: int  # and at the end


class Broken(Exception):
    """An input broke a target."""


def main(arguments: list[str]) -> int:
    """Run and return the exit code."""
    names = (*TARGETS, WIRE)
    parser = argparse.ArgumentParser(prog="make fuzz", description="Look for inputs that break something.")
    parser.add_argument("targets", nargs="*", help=f"some of {', '.join(names)}; default: all")
    parser.add_argument("--runs", type=int, default=0, help="inputs of each target; default: its share of a full run")
    parser.add_argument("--seed", type=int, default=1, help="of the fuzzer")
    parser.add_argument("--keep", action="store_true", help="keep inputs for the tests")
    parser.add_argument("--record", action="store_true", help="write the table to docs/fuzz.md")
    options = parser.parse_args(arguments)
    rows = [f"Commit {_commit()}, seed {options.seed}:", ""]
    rows += ["| target | inputs | seconds | memory, MB | lines reached |", "|---|---|---|---|---|"]
    print(*rows, sep="\n", flush=True)
    try:
        for name in options.targets or names:
            rows.append(_run(name, options))
            print(rows[-1], flush=True)
    except (Broken, AssertionError) as error:
        print(error, f"{name}: broken", sep="\n")
        return 1
    if options.record:
        table = "".join(f"{row}\n" for row in rows)
        PAGE.write_text(_TABLE.sub(lambda _: table, PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


def _run(name: str, options: argparse.Namespace) -> str:
    """Run one target; returns its row of the table."""
    began = time.monotonic()
    if name == WIRE:
        messages = options.runs or wire.MESSAGES
        memory, outcomes = wire.run(messages, options.seed)
        return f"| {WIRE} | {messages:,} | {time.monotonic() - began:.0f} | {memory} | {outcomes} |"
    target = TARGETS[name]
    result = _fuzz(target, options.runs or target.runs, options.seed)
    inputs, lines = _measure(target)
    if options.keep:
        _keep(target, inputs)
    memory = f"{result.first_mb} → {result.last_mb}"
    return f"| {name} | {result.inputs:,} | {result.seconds:.0f} | {memory} | {lines} |"


def _fuzz(target: Target, runs: int, seed: int) -> Result:
    """Fuzz in a child.

    Raises:
        Broken: by an input; the message is the end of the child's output.
    """
    grown, seeds = (WORK / target.name / name for name in ("grown", "seeds"))
    for folder in (grown, seeds):
        folder.mkdir(parents=True, exist_ok=True)
    chance = random.Random(seed)
    drawn = {f"drawn-{number}": chance.randbytes(chance.randrange(target.max_bytes)) for number in range(DRAWN)}
    for name, data in {**target.read_corpus(), **drawn}.items():
        (seeds / name).write_bytes(data)
    flags = [f"-runs={runs}", f"-seed={seed}", f"-max_len={target.max_bytes}", f"-timeout={target.max_seconds}"]
    flags += [f"-rss_limit_mb={MAX_RSS_MB}", f"-artifact_prefix={WORK / target.name}/", "-len_control=10"]
    began = time.monotonic()
    output = _run_child(target, *flags, str(grown), str(seeds))
    found = {row[1]: row for row in _STATUS.findall(output)}
    if "DONE" not in found:
        raise Broken(f"{output[-6000:]}\nthe input lies under {WORK / target.name}")
    first, last = found["INITED"], found["DONE"]
    return Result(int(last[0]), time.monotonic() - began, int(last[2]), int(first[3]), int(last[3]))


def _run_child(target: Target, *flags: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(TOOLS)}
    command = [sys.executable, "-m", "tests.fuzz.child", target.name, *flags]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, errors="replace", check=False
    )
    return done.stderr + done.stdout


def _measure(target: Target) -> tuple[dict[str, bytes], str]:
    """The inputs that reach what all reach, and the lines that they reach."""
    folders = [str(WORK / target.name / name) for name in ("grown", "seeds")]
    command = [sys.executable, "-m", "tests.fuzz.lines", target.name, *folders]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    names, lines = json.loads(done.stdout.splitlines()[-1])
    found = {path.name: path for folder in folders for path in Path(folder).iterdir()}
    rows = []
    for module, (reached, count, others) in lines.items():
        rest = f" (not {_join_ranges(others)})" if others else ""
        rows.append(f"{module.rpartition('.')[2]} {reached}/{count}{rest}")
    return {name: found[name].read_bytes() for name in names}, " · ".join(rows)


def _join_ranges(numbers: Iterable[int]) -> str:
    """For example "3, 7–9"."""
    runs = [[number for _, number in run] for _, run in groupby(enumerate(numbers), lambda pair: pair[1] - pair[0])]
    return ", ".join(f"{run[0]}" if len(run) == 1 else f"{run[0]}–{run[-1]}" for run in runs)


def _keep(target: Target, inputs: dict[str, bytes]) -> None:
    """Write the corpus of the tests: small inputs first, up to a size; those that once broke something stay."""
    kept = {name: data for name, data in target.read_corpus().items() if name.startswith("broke-")}
    for name, data in inputs.items():
        if sum(map(len, kept.values())) + len(data) <= MAX_KEPT_BYTES:
            kept[name] = data
    target.corpus_file.parent.mkdir(exist_ok=True)
    with ZipFile(target.corpus_file, "w", ZIP_DEFLATED) as archive:
        for name, data in kept.items():
            archive.writestr(ZipInfo(name), data, ZIP_DEFLATED)


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
