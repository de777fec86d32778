"""`make demo`: updates, rollbacks and crashes on the real stack under load.

Callers call continuously, without retries; every attempt counts. Meanwhile a better model is published and committed,
a worse one is refused, one that fails on a word is rolled back, and a runner and the updater are killed. Then the same
happens to a second model of another task, which the same server has served all the time. At the end of each a model
with a weakness that its golden set cannot see is HELD, because its trial compares answers.
"""

import argparse
import contextlib
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rich.console import Console

from common.paths import CONTROL_SOCKET, run_folder
from dev.demo.addresses import add_addresses
from dev.demo.changes import add_address_changes, add_changes, count_changed, narrow_golden, show_changes
from dev.demo.follow import LOOK_SECONDS, PATIENCE_SECONDS, Followed, Operator
from dev.demo.run import DemoRun
from dev.demo.stack import (
    AGAIN,
    BETTER,
    CONFUSED,
    EQUALS,
    FIRST,
    MAX_EQUALS,
    OVERFLOWING,
    WORSE,
    DemoStack,
    build,
    name_equals,
)
from dev.demo.table import show
from dev.harness.control import ControlClient
from dev.harness.process import free_port
from dev.harness.waiting import eventually

STEADY_SECONDS = 6.0
SETTLE_SECONDS = 1.5
LOG_LINES = 30


def main() -> int:
    """Run the demo; 0 if nothing failed."""
    parser = argparse.ArgumentParser(prog="make demo", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--folder", type=Path, help="keep everything in this new folder (default: a temporary one)")
    parser.add_argument(
        "--equals",
        type=int,
        choices=range(MAX_EQUALS + 1),
        default=EQUALS,
        metavar="N",
        help=f"equally good revisions that must be kept (default: {EQUALS}; each takes a quarter of a minute)",
    )
    options = parser.parse_args()
    with _folder(options.folder) as folder:
        return give(folder, Console(), options.equals)


def give(folder: Path, console: Console, equals: int = EQUALS) -> int:
    """Run the whole demo; 0 if all expectations were met."""
    console.print("making revisions, and computing their right answers with the bare engine …")
    demo = build(folder)
    demos = (add_changes(demo, equals), add_address_changes(add_addresses(demo)))
    watched_at = add_console(demo)
    with demo.stack as stack:
        began = time.monotonic()
        with contextlib.ExitStack() as clients:
            runs = [start_callers(each, clients, console, began) for each in demos]
            console.print(f"both models answer {time.monotonic() - began:.1f} s after the start of the stack")
            console.print(f"watch it in a browser: [bold]{watched_at}[/bold]")
            tours: tuple[Callable[[DemoRun], None], ...] = (partial(run_scenes, equals=equals), run_address_scenes)
            for run, scenes in zip(runs, tours, strict=True):
                try:
                    scenes(run)
                except AssertionError as error:
                    run.expect(so=False, otherwise=str(error).split("\n", 1)[0])
        code = stack.end()
    runs[0].expect(so=code == 0, otherwise=f"the stack ended with {code}")
    for run in runs:
        show(run, console)
    return max([verdict(run) for run in runs])


def add_console(demo: DemoStack) -> str:
    """Let the stack start the web console, read-only; returns its address."""
    port = free_port()
    with demo.stack.config.open("a", encoding="utf-8") as settings:
        settings.write(f"\n[console]\nenabled = true\nport = {port}\n")
    return f"http://127.0.0.1:{port}/"


def start_callers(demo: DemoStack, clients: contextlib.ExitStack, console: Console, began: float) -> DemoRun:
    """Wait until a model is ready, and start its callers, which call until `clients` is closed."""
    operator = Operator(demo.stack.state, demo.model)
    clients.callback(operator.close)
    operator.wait_ready(FIRST)
    control = ControlClient(str(run_folder(demo.stack.state) / CONTROL_SOCKET), demo.model)
    clients.callback(control.close)
    control.wait_ready(PATIENCE_SECONDS)
    return DemoRun(demo, operator, control, clients.enter_context(demo.load()), console, began)


def verdict(run: DemoRun) -> int:
    """0 if nothing failed; otherwise print the failures."""
    report = run.load.report()
    if not (report.failed or report.wrong or run.troubles):
        return 0
    for sentence in [*run.troubles, *sorted(set(report.failed))[:5]]:
        run.console.print(f"[red]{sentence}[/red]", highlight=False)
    for line in run.demo.stack.logs().splitlines()[-LOG_LINES:]:
        run.console.print(line, style="dim", markup=False, highlight=False)
    return 1


def run_scenes(run: DemoRun, equals: int) -> None:
    """One after the other."""
    run.say(f"[bold]{FIRST}[/bold] of both models serves; callers ask all the time, without retries")
    run.load.phase = "steady"
    time.sleep(STEADY_SECONDS)
    better_is_committed(run)
    runner_is_killed(run)
    worse_is_refused(run)
    overflowing_is_taken_back(run)
    updater_is_killed(run)
    weakness_is_held(run, AGAIN)
    equal_ones_are_kept(run, equals)
    time.sleep(SETTLE_SECONDS)


def run_address_scenes(run: DemoRun) -> None:
    """The same with the other model: its own hub folder, golden set, gate, trial and record."""
    run.say("[bold]addresses[/bold]: the other model of this server, with callers of its own all the time")
    run.load.phase = "steady"
    better_is_committed(run)
    standby(run)
    worse_is_refused(run)
    overflowing_is_taken_back(run)
    weakness_is_held(run, BETTER)
    time.sleep(SETTLE_SECONDS)


def better_is_committed(run: DemoRun) -> None:
    """Publish a better model: it is committed without further commands."""
    followed = publish(run, BETTER, "a better model")
    run.operator.follow(followed, stage_listener(run, followed))
    report_end(run, followed, "COMMITTED")


def runner_is_killed(run: DemoRun) -> None:
    """Kill the active runner: the standby process runs its requests again."""
    standby(run)
    pid = run.control.active_pid()
    run.load.phase, run.killed_at = "runner killed", time.monotonic()
    run.say("[bold]kill −9[/bold] of the process that answers")
    os.kill(pid, signal.SIGKILL)
    run.control.wait_replaced(pid)
    run.back_at = time.monotonic()
    run.say(f"another process answers after {run.back_at - run.killed_at:.2f} s")
    time.sleep(SETTLE_SECONDS)
    run.load.phase = "steady"


def standby(run: DemoRun) -> None:
    """Wait until the previous model is no longer kept warm and a standby process is ready in its place."""
    eventually(
        lambda: "READY" in {slot.state for slot in run.control.wait_ready().slots},
        PATIENCE_SECONDS,
        "a standby process is ready",
        LOOK_SECONDS,
    )


def worse_is_refused(run: DemoRun) -> None:
    """Publish a worse model: it never answers a caller."""
    followed = publish(run, WORSE, "an over-compressed model")
    run.operator.follow(followed, stage_listener(run, followed))
    report_end(run, followed, "REFUSED")
    run.expect(so=run.load.report().first_of(WORSE) is None, otherwise=f"{WORSE} answered a caller")


def overflowing_is_taken_back(run: DemoRun) -> None:
    """Publish a model that fails only on live traffic: right on every golden item, NaN for one word or character."""
    followed = publish(run, OVERFLOWING, "a model that is right on all golden items, and fails on what callers send")

    def on_stage(stage: str) -> None:
        stage_listener(run, followed)(stage)
        if stage == "OBSERVING":
            run.load.questions = run.demo.with_word
            run.say("callers begin to send it")

    run.operator.follow(followed, on_stage)
    report_end(run, followed, "ROLLED_BACK")
    run.load.questions = run.demo.questions
    state = run.control.status()
    run.by_previous = sum(row.answered_by_previous for row in state.stats)
    run.expect(so=run.by_previous > 0, otherwise="the trial failed no request, so the test is void")


def updater_is_killed(run: DemoRun) -> None:
    """Kill the updater during an update: it continues from its record."""
    followed = publish(run, AGAIN, "the good model again, in other bytes")
    has_killed = False

    def on_stage(stage: str) -> None:
        nonlocal has_killed
        stage_listener(run, followed)(stage)
        if not has_killed and stage in ("GATING", "ACTIVATING", "OBSERVING"):
            has_killed = True
            run.say("[bold]kill −9[/bold] of the updater")
            run.demo.stack.send_signal("updater", signal.SIGKILL)

    run.operator.follow(followed, on_stage)
    run.expect(so=has_killed, otherwise="the updater was not killed: the update was over too soon")
    report_end(run, followed, "COMMITTED")


def weakness_is_held(run: DemoRun, active: str) -> None:
    """Publish a model with a weakness that the golden set cannot see: its trial compares answers, and it is HELD."""
    words = ", ".join(run.demo.words)
    kept = narrow_golden(run.demo.golden, run.demo.words)
    run.say(f"the golden set is the one of {kept} items from before anybody asked for {words}")
    run.load.questions = run.demo.more
    changed = count_changed(run, active, CONFUSED, run.demo.more)
    what = f"a model that confuses them: {changed} of {len(run.demo.more)} answers change, and none of the golden ones"
    followed = publish(run, CONFUSED, what)
    run.operator.follow(followed, stage_listener(run, followed))
    report_end(run, followed, "HELD")
    found = run.operator.evidence(followed)
    run.say(f"      {found.update.message}")
    show_changes(run, found)
    run.expect(so=found.update.reason == "CHANGED_ANSWERS", otherwise=f"{CONFUSED} is held for {found.update.reason}")
    committed = run.operator.status().committed_revision
    run.expect(so=committed == active, otherwise=f"{committed} is committed, not {active}")


def equal_ones_are_kept(run: DemoRun, equals: int) -> None:
    """Publish models that are as good and answer a little otherwise: they are committed."""
    for revision in name_equals(equals):
        followed = publish(run, revision, "a model that is as good, as another training would be")
        run.operator.follow(followed, stage_listener(run, followed))
        report_end(run, followed, "COMMITTED")


def publish(run: DemoRun, revision: str, what: str) -> Followed:
    """Publish a revision, and say so."""
    run.load.phase = f"{revision} waits"
    run.demo.add_to_hub(revision)
    followed = run.updates[revision] = Followed(revision, time.monotonic())
    run.say(f"[bold]hotslot hub add examples/{run.demo.model}/… {revision}[/bold]: {what}")
    return followed


def stage_listener(run: DemoRun, followed: Followed) -> "StageListener":
    """A listener that prints each stage and names the phase after it."""
    return StageListener(run, followed)


@dataclass(frozen=True, slots=True)
class StageListener:
    """Prints each stage of an update as it begins."""

    run: DemoRun
    followed: Followed

    def __call__(self, stage: str) -> None:
        """A stage has begun."""
        self.run.load.phase = f"{self.followed.revision} {stage}"
        self.run.say(f"    {self.followed.revision} {stage.lower().replace('_', ' ')}")


def report_end(run: DemoRun, followed: Followed, wanted: str) -> None:
    """Print how an update ended and the evidence; records an unexpected end."""
    run.load.phase = "steady"
    took = time.monotonic() - followed.published
    colour = "green" if followed.outcome == wanted else "red"
    word = followed.outcome.lower().replace("_", " ")
    run.say(f"[{colour}]{followed.revision} {word}[/{colour}] {took:.1f} s after its publication: {followed.message}")
    found = run.operator.evidence(followed)
    passed = ", ".join(f"{row.name} {row.candidate:.3g}" for row in found.measurements if row.passed)
    run.say(f"      [dim]✓ {passed}[/dim]")
    for row in found.measurements:
        if not row.passed:
            numbers = f"{row.candidate:.3g} (before: {row.active:.3g}, limit: {row.threshold:.3g})"
            run.say(f"      [yellow]✗ {row.name} {numbers}[/yellow]")
    run.expect(so=followed.outcome == wanted, otherwise=f"{followed.revision} should have been {wanted}")


@contextlib.contextmanager
def _folder(given: Path | None) -> Iterator[Path]:
    if given is not None:
        given.mkdir(parents=True)
        yield given.absolute()
        return
    with tempfile.TemporaryDirectory(prefix="hotslot-demo-") as folder:
        yield Path(folder)


if __name__ == "__main__":
    sys.exit(main())
