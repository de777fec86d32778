"""`python -m dev.conformance.swaps`: what swaps, failing trials, kills and restarts cost the callers of each client.

Callers with default settings, every call and item counted, while a server swaps its model, takes back trials whose
revision fails, and loses runners; then while one of two servers behind one name is drained and restarted.
"""

import argparse
import datetime as dt
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from dev.conformance.names import NameServer
from dev.conformance.runner import LANGUAGES, Json, Runner
from dev.conformance.situations import PICTURES, restart
from dev.harness.commit import read_commit
from dev.harness.process import ROOT, free_port
from dev.harness.stack import Stack

PATH = ROOT / "docs" / "callers.md"
LOAD = {"unary_callers": 4, "streams": 2, "window": 32, "task": "entailment"}
REQUESTS = [{"picture": "two-red-circles.png", "statements": [f"there are {number} circles"]} for number in range(16)]
FAILING = [{"picture": "two-red-circles.png", "statements": [f"a square !error@bad-{number}"]} for number in range(3)]
STEADY_SECONDS = 0.5
HEAD = (
    "# What callers see of swaps, failing trials, kills and restarts",
    "",
    "Written by `make bench-callers`, with a scripted engine on two cores that other work shared: four unary callers",
    "and two streams of each client with its default settings, every call and every item counted. A run replaces the",
    "rows of its own languages; *ran* is its date (UTC) and commit.",
    "",
)
NOTE = (
    "*By revision* counts the calls and items that each revision answered. `bad-0` to `bad-2` are the failing trials:",
    "each fails one of nineteen requests, which the revision before answers, and answers the others itself. *Longest*",
    "is one call of the whole run; which one is not recorded. A call of a killed runner waits for another process: the",
    "second kill comes half a second after the first one is made good, as a rule before the next idle process has done",
    "its imports, so that its calls wait for a start and a load, seconds where other work shares the cores.",
)
SCRIPT = {"salt": "swaps", "call_seconds": 0.005}


@dataclass(frozen=True, slots=True)
class Run:
    """What one language's callers have counted."""

    what: str
    language: str
    counts: Json

    @property
    def is_good(self) -> bool:
        """Whether nothing failed, and every item has one outcome."""
        lost = sum(int(self.counts[name]) for name in ("failed", "failed_items", "duplicated", "missing"))
        return lost == 0 and min(int(self.counts["calls"]), int(self.counts["items"])) > 0


def main() -> int:
    """Run, print, and write the report; 0 if nothing was lost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--language", action="append", choices=sorted(LANGUAGES), help="default: all")
    parser.add_argument("--swaps", type=int, default=20)
    parser.add_argument("--trials", type=int, default=3, help="that fail")
    parser.add_argument("--kills", type=int, default=2, help="of the runner that answers")
    parser.add_argument("--restarts", type=int, default=5, help="of one of two servers")
    parser.add_argument("--write", action="store_true", help="these languages' rows of docs/callers.md")
    options = parser.parse_args()
    runs = []
    here = [name for name, language in LANGUAGES.items() if language.is_client and not language.missing]
    for name in options.language or here:
        with tempfile.TemporaryDirectory(prefix="hotslot-") as folder, Runner(LANGUAGES[name]) as runner:
            what = f"{options.swaps} swaps, {options.trials} failing trials, {options.kills} kills of the runner"
            runs.append(Run(what, name, swap_under_load(Path(folder), runner, options)))
            what = f"two servers behind one name, one drained and restarted {options.restarts} times"
            runs.append(Run(what, name, restart_under_load(Path(folder), runner, options.restarts)))
    show(runs)
    if options.write:
        write_report(runs)
    return 0 if all(run.is_good for run in runs) else 1


def count(runner: Runner, endpoint: Json, requests: Sequence[Json], act: Callable[[], None]) -> Json:
    """What callers count while something happens to their servers."""
    runner.send({"load": {**LOAD, "requests": list(requests)}, "endpoint": endpoint, "pictures": str(PICTURES)})
    begun = runner.receive()
    if begun != {"load": "begun"}:
        raise RuntimeError(f"the callers have not begun: {begun}")
    try:
        act()
    finally:
        runner.send({"stop": True})
    counts: Json = runner.receive()["load"]
    return counts


def swap_under_load(folder: Path, runner: Runner, options: argparse.Namespace) -> Json:
    """Swaps, trials whose revision fails calls, and kills."""
    (folder / "one").mkdir()
    stack = Stack(folder / "one", server={"port": free_port()}, script=SCRIPT)
    names = [stack.bundle("r2", **SCRIPT).bundle_digest, stack.answers.digest_of("r1")]
    bad = [stack.bundle(f"bad-{number}", **SCRIPT).bundle_digest for number in range(options.trials)]

    def act() -> None:
        for number in range(options.swaps):
            time.sleep(STEADY_SECONDS)
            stack.control.swap(names[number % 2])
        for digest in bad:
            before = stack.control.status().active_load_id
            load_id = stack.control.trial(digest)
            time.sleep(STEADY_SECONDS)
            stack.control.activate(before)
            stack.control.retire(load_id)
        for _ in range(options.kills):
            time.sleep(STEADY_SECONDS)
            pid = stack.active_pid()
            stack.kill(pid)
            stack.control.wait_replaced(pid)
        time.sleep(STEADY_SECONDS)

    with stack:
        return count(runner, {"address": stack.address}, [*REQUESTS, *FAILING], act)


def restart_under_load(folder: Path, runner: Runner, restarts: int) -> Json:
    """Two servers behind one name; one is drained and started again."""
    port, stacks = free_port(), []
    for number, host in enumerate(("127.0.0.1", "127.0.0.2")):
        (folder / f"pair{number}").mkdir()
        settings = {"port": port, "host": host, "drain_delay_seconds": 0.5}
        stacks.append(Stack(folder / f"pair{number}", server=settings, script=SCRIPT, runner={}))
    first, second = stacks

    def act() -> None:
        for _ in range(restarts):
            time.sleep(STEADY_SECONDS)
            restart(first, signal.SIGTERM)
        time.sleep(STEADY_SECONDS)

    with NameServer({"hotslot.test": ["127.0.0.1", "127.0.0.2"]}) as names, first, second:
        hosts = folder / "hosts"
        hosts.write_text("127.0.0.1 hotslot.test\n127.0.0.2 hotslot.test\n", encoding="utf-8")
        address = f"dns://{names.address}/hotslot.test:{port}"
        return count(runner, {"address": address, "hosts_file": str(hosts)}, REQUESTS, act)


def show(runs: Sequence[Run]) -> None:
    """Print the table."""
    table = Table(*COLUMNS)
    for run in runs:
        table.add_row(*cells(run))
    Console(width=160).print(table)


COLUMNS = ("what", "client", "calls", "failed", "longest, s", "items", "failed", "twice", "missing", "by revision")


def cells(run: Run) -> list[str]:
    """One line of the table."""
    names = ("calls", "failed", "longest_seconds", "items", "failed_items", "duplicated", "missing")
    found = [f"{round(run.counts[name], 3):,}" for name in names]
    revisions = ", ".join(f"{name} {number:,}" for name, number in sorted(run.counts["revisions"].items()))
    failures = "; ".join(f"{name}: {number}" for name, number in run.counts["failures"].items()).replace("|", "/")
    return [run.what, run.language, *found, f"{revisions} {failures}".strip()]


def write_report(runs: Sequence[Run]) -> None:
    """Replace the rows of these languages in docs/callers.md."""
    now = dt.datetime.now(tz=dt.UTC).strftime("%Y-%m-%d %H:%M")
    before = PATH.read_text(encoding="utf-8") if PATH.exists() else ""
    PATH.write_text(make_page(before, runs, f"{now}, {read_commit(PATH)}"), encoding="utf-8")


def make_page(before: str, runs: Sequence[Run], ran: str) -> str:
    """The page with the rows of these runs, and those of the page before of all other languages."""
    table = [line for line in before.splitlines() if line.startswith("| ")][1:]  # without its head
    measured = {run.language for run in runs}
    kept = [(name, line) for line in table if (name := line.split(" | ")[1]) not in measured]
    rows = [*kept, *((run.language, f"| {' | '.join([*cells(run), ran])} |") for run in runs)]
    rows.sort(key=lambda row: list(LANGUAGES).index(row[0]))
    head = [*HEAD, *NOTE, "", f"| {' | '.join([*COLUMNS, 'ran'])} |", f"|{'---|' * (len(COLUMNS) + 1)}"]
    return "\n".join([*head, *(line for _, line in rows)]) + "\n"


if __name__ == "__main__":
    sys.exit(main())
