"""`make demo`: a guided tour on the real stack.

Callers ask all the time, without retries; each of their attempts counts. Meanwhile a better model is published and
committed, a worse one is refused, one that fails on a word is taken back, and two processes are killed by force.
"""

import argparse
import contextlib
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from dev.demo.follow import LOOK_SECONDS, PATIENCE_SECONDS, Followed, Operator
from dev.demo.guide import Tour
from dev.demo.table import show
from dev.demo.world import AGAIN, BETTER, FIRST, OVERFLOWING, WORSE, build
from dev.harness.waiting import eventually

STEADY_SECONDS = 6.0
SETTLE_SECONDS = 1.5
LOG_LINES = 30


def main() -> int:
    """Give the tour; 0 if everything was as promised."""
    parser = argparse.ArgumentParser(prog="make demo", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--folder", type=Path, help="keep everything in this new folder (default: a temporary one)")
    options = parser.parse_args()
    with _folder(options.folder) as folder:
        return give(folder, Console())


def give(folder: Path, console: Console) -> int:
    """The whole demo; 0 if everything was as promised."""
    console.print("making revisions, and computing their right answers with the bare engine …")
    demo = build(folder)
    with demo.stack as stack:
        operator = Operator(stack.state)
        operator.wait_ready(FIRST)
        stack.control.wait_ready(PATIENCE_SECONDS)
        with demo.load() as load:
            tour = Tour(demo, operator, stack.control, load, console, time.monotonic())
            try:
                run_scenes(tour)
            except AssertionError as error:
                tour.expect(so=False, otherwise=str(error).split("\n", 1)[0])
        operator.close()
        code = stack.end()
    tour.expect(so=code == 0, otherwise=f"the stack ended with {code}")
    show(tour, console)
    return verdict(tour)


def verdict(tour: Tour) -> int:
    """0 if nothing failed; otherwise say what did."""
    report = tour.load.report()
    if not (report.failed or report.wrong or tour.troubles):
        return 0
    for sentence in [*tour.troubles, *sorted(set(report.failed))[:5]]:
        tour.console.print(f"[red]{sentence}[/red]", highlight=False)
    for line in tour.demo.stack.logs().splitlines()[-LOG_LINES:]:
        tour.console.print(line, style="dim", markup=False, highlight=False)
    return 1


def run_scenes(tour: Tour) -> None:
    """One after the other."""
    tour.say(f"[bold]{FIRST}[/bold] serves; callers ask all the time, without retries")
    tour.load.phase = "steady"
    time.sleep(STEADY_SECONDS)
    better_is_committed(tour)
    runner_is_killed(tour)
    worse_is_refused(tour)
    overflowing_is_taken_back(tour)
    updater_is_killed(tour)
    time.sleep(SETTLE_SECONDS)


def better_is_committed(tour: Tour) -> None:
    """A better model: nobody does anything but publish it."""
    followed = publish(tour, BETTER, "a better model")
    tour.operator.follow(followed, tour_stage(tour, followed))
    tell_end(tour, followed, "COMMITTED")


def runner_is_killed(tour: Tour) -> None:
    """The process that answers dies; the one that stands ready takes over what it held."""
    standby(tour)
    pid = tour.control.active_pid()
    tour.load.phase, tour.killed_at = "runner killed", time.monotonic()
    tour.say("[bold]kill −9[/bold] of the process that answers")
    os.kill(pid, signal.SIGKILL)
    tour.control.wait_replaced(pid)
    tour.back_at = time.monotonic()
    tour.say(f"another process answers after {tour.back_at - tour.killed_at:.2f} s")
    time.sleep(SETTLE_SECONDS)
    tour.load.phase = "steady"


def standby(tour: Tour) -> None:
    """Wait until the previous model is no longer kept warm and a standby process is ready in its place."""
    eventually(
        lambda: "READY" in {slot.state for slot in tour.control.wait_ready().slots},
        PATIENCE_SECONDS,
        "a standby process is ready",
        LOOK_SECONDS,
    )


def worse_is_refused(tour: Tour) -> None:
    """A worse model: no caller meets it."""
    followed = publish(tour, WORSE, "a model that somebody compressed too far")
    tour.operator.follow(followed, tour_stage(tour, followed))
    tell_end(tour, followed, "REFUSED")
    tour.expect(so=tour.load.report().first_of(WORSE) is None, otherwise=f"{WORSE} answered a caller")


def overflowing_is_taken_back(tour: Tour) -> None:
    """A model that only callers can find out: right on every golden item, no number for one word."""
    followed = publish(tour, OVERFLOWING, "a model that is right on all golden items, and fails on one word")

    def on_stage(stage: str) -> None:
        tour_stage(tour, followed)(stage)
        if stage == "OBSERVING":
            tour.load.questions = tour.demo.with_word
            tour.say("callers begin to use that word")

    tour.operator.follow(followed, on_stage)
    tell_end(tour, followed, "ROLLED_BACK")
    tour.load.questions = tour.demo.questions
    state = tour.control.status()
    tour.by_previous = sum(row.answered_by_previous for row in state.stats)
    tour.expect(so=tour.by_previous > 0, otherwise="the trial failed nobody's request: nothing was proven")


def updater_is_killed(tour: Tour) -> None:
    """The updater dies in the middle of an update, and finds its way by what it wrote down."""
    followed = publish(tour, AGAIN, "the good model again, in other bytes")
    has_killed = False

    def on_stage(stage: str) -> None:
        nonlocal has_killed
        tour_stage(tour, followed)(stage)
        if not has_killed and stage in ("GATING", "ACTIVATING", "OBSERVING"):
            has_killed = True
            tour.say("[bold]kill −9[/bold] of the updater")
            tour.demo.stack.send_signal("updater", signal.SIGKILL)

    tour.operator.follow(followed, on_stage)
    tour.expect(so=has_killed, otherwise="the updater was not killed: the update was over too soon")
    tell_end(tour, followed, "COMMITTED")


def publish(tour: Tour, revision: str, what: str) -> Followed:
    """Publish a revision, and say so."""
    tour.load.phase = f"{revision} waits"
    tour.demo.add_to_hub(revision)
    followed = tour.updates[revision] = Followed(revision, time.monotonic())
    tour.say(f"[bold]hotslot hub add … {revision}[/bold]: {what}")
    return followed


def tour_stage(tour: Tour, followed: Followed) -> "StageTold":
    """What tells a stage, and names the phase after it."""
    return StageTold(tour, followed)


@dataclass(frozen=True, slots=True)
class StageTold:
    """Tells each stage of an update as it begins."""

    tour: Tour
    followed: Followed

    def __call__(self, stage: str) -> None:
        """A stage has begun."""
        self.tour.load.phase = f"{self.followed.revision} {stage}"
        self.tour.say(f"    {self.followed.revision} {stage.lower().replace('_', ' ')}")


def tell_end(tour: Tour, followed: Followed, wanted: str) -> None:
    """Say how an update ended and on which evidence; note if it should have ended otherwise."""
    tour.load.phase = "steady"
    took = time.monotonic() - followed.published
    colour = "green" if followed.outcome == wanted else "red"
    word = followed.outcome.lower().replace("_", " ")
    tour.say(f"[{colour}]{followed.revision} {word}[/{colour}] {took:.1f} s after its publication: {followed.message}")
    found = tour.operator.evidence(followed)
    passed = ", ".join(f"{row.name} {row.candidate:.3g}" for row in found.measurements if row.passed)
    tour.say(f"      [dim]✓ {passed}[/dim]")
    for row in found.measurements:
        if not row.passed:
            numbers = f"{row.candidate:.3g} (before: {row.active:.3g}, limit: {row.threshold:.3g})"
            tour.say(f"      [yellow]✗ {row.name} {numbers}[/yellow]")
    tour.expect(so=followed.outcome == wanted, otherwise=f"{followed.revision} should have been {wanted}")


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
