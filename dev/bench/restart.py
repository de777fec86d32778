"""`make bench-restart`: how long the server is away when it is killed or restarted, with the demo model.

The whole stack runs under supervisord, with callers that have gRPC's own retries: none of their calls may fail. Rows:
the server is killed (SIGKILL), and restarted by `supervisorctl restart`. Columns: seconds from the end of the old
process to each step of the new one. Goal: SERVING within 2 s.
"""

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table

from common.settings import inherit_environment
from dev.demo.stack import FIRST, DemoStack, build
from dev.harness.control import RETRY_OPTIONS
from dev.harness.supervised import SupervisedStack
from dev.harness.waiting import eventually

GOAL_SECONDS = 2.0
REST_SECONDS = 5.0  # supervisord gives up a program that ends again and again before it counts as started
WIDTH = 130
# Event of the new process → column.
STEPS = {
    "process_started": "started",
    "runner_started": "imported",
    "server_started": "listens",
    "runner_ready": "runner ready",
    "load_ended": "loaded",
    "health_changed": "SERVING",
}


@dataclass(frozen=True, slots=True)
class Restart:
    """One restart: seconds from the old process's end to each step."""

    what: str
    steps: Mapping[str, float]


def main() -> int:
    """Measure and print; 1 if the goal was missed or a call failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=5, help="restarts of each kind")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="hotslot-", ignore_cleanup_errors=True) as folder:
        demo = build(Path(folder) / "demo")
        with demo.stack as stack:
            stack.control.wait_ready()
            stack.wait(lambda: stack.status().committed_revision == FIRST, "the updater runs")
            with demo.load(RETRY_OPTIONS) as load:
                restarts = measure(demo, options.count)
                load.wait_answers(100)
                load.stop()
                report = load.report()
            stack.end()
    show(restarts)
    console = Console(width=WIDTH)
    console.print(
        f"callers with retries: {report.attempts} calls, {len(report.failed)} failed, slowest {report.slowest:.2f} s; "
        f"load of the machine {os.getloadavg()[0]:.1f} on {os.cpu_count()} CPUs"
    )
    for sentence in report.failed[:3]:
        console.print(sentence)
    is_quick = all(median(restarts, what)["SERVING"] <= GOAL_SECONDS for what in {one.what for one in restarts})
    return 0 if is_quick and not report.failed and not report.wrong else 1


def measure(demo: DemoStack, count: int) -> list[Restart]:
    """Restart the server again and again."""
    stack = demo.stack
    kinds: dict[str, Callable[[], object]] = {
        "SIGKILL": lambda: stack.send_signal("server", signal.SIGKILL),
        "supervisorctl restart": lambda: restart(stack),
    }
    found = []
    for _ in range(count):
        for what, act in kinds.items():
            time.sleep(REST_SECONDS)
            offset = stack.log_path.stat().st_size
            killed = time.time()
            act()
            found.append(Restart(what, eventually(lambda: read_steps(stack, offset, killed), what="it serves again")))  # noqa: B023
            stack.wait(lambda: stack.control.status().ready, "it serves again")
    return found


def restart(stack: SupervisedStack) -> None:
    """`supervisorctl restart hotslot:server`."""
    command = [
        sys.executable,
        "-m",
        "supervisor.supervisorctl",
        "--serverurl",
        f"unix://{stack.state}/run/supervisor.sock",
    ]
    subprocess.run(
        [*command, "restart", "hotslot:server"], env=inherit_environment(), stdout=subprocess.DEVNULL, check=True
    )


def read_steps(stack: SupervisedStack, offset: int, killed: float) -> Mapping[str, float]:
    """The steps of a restart, from the log behind `offset`; none until it serves."""
    steps: dict[str, float] = {}
    began = killed
    for line in stack.log_path.read_bytes()[offset:].splitlines():
        with contextlib.suppress(ValueError):
            row = json.loads(line)
            at = datetime.fromisoformat(row["at"]).timestamp()
            if row["event"] == "server_stopped":  # what comes before is the drain
                began, steps = at, {}
            is_other = (
                row.get("program", "server") != "server" or row.get("service", "") or not row.get("serving", True)
            )
            if row["event"] in STEPS and not is_other:
                steps.setdefault(STEPS[row["event"]], at - began)
    return steps if "SERVING" in steps else {}


def median(restarts: list[Restart], what: str) -> Mapping[str, float]:
    """The median of each step."""
    rows = [one.steps for one in restarts if one.what == what]
    return {step: statistics.median(row[step] for row in rows if step in row) for step in STEPS.values()}


def show(restarts: list[Restart]) -> None:
    """Print the medians, and the slowest restart."""
    table = Table(title="seconds from the end of the old server; medians", width=WIDTH)
    for column in ("", *STEPS.values(), "slowest", "goal"):
        table.add_column(column, justify="right" if column else "left")
    for what in dict.fromkeys(one.what for one in restarts):
        slowest = max(one.steps["SERVING"] for one in restarts if one.what == what)
        cells = [f"{seconds:.2f}" for seconds in median(restarts, what).values()]
        table.add_row(what, *cells, f"{slowest:.2f}", f"{GOAL_SECONDS:.1f}")
    Console(width=WIDTH).print(table)


if __name__ == "__main__":
    sys.exit(main())
