"""`make demo`: a guided tour on the real stack.

Callers ask all the time, without retries; each of their attempts counts. Meanwhile a better model is published and
committed, a worse one is refused, one that fails on a word is taken back, and two processes are killed by force.
"""

import argparse
import asyncio
import contextlib
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import psutil
from rich.console import Console

from dev.bench.stack import ControlClient
from dev.demo.follow import LOOK_SECONDS, PATIENCE_SECONDS, Followed, NotSo, Operator
from dev.demo.guide import Tour
from dev.demo.load import calling
from dev.demo.table import show
from dev.demo.world import AGAIN, BETTER, FIRST, OVERFLOWING, WORSE, World, build, hub_add, running_stack

STEADY_SECONDS = 6.0
SETTLE_SECONDS = 1.5
LOG_LINES = 30


def main() -> int:
    """Give the tour; 0 if everything was as promised."""
    parser = argparse.ArgumentParser(prog="make demo", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--folder", type=Path, help="keep everything in this new folder (default: a temporary one)")
    options = parser.parse_args()
    with _folder(options.folder) as folder:
        return asyncio.run(give(folder, Console()))


async def give(folder: Path, console: Console) -> int:
    """The whole tour."""
    console.print("making revisions, and asking the bare engine what their right answers are …")
    world = build(folder)
    with running_stack(world) as stack:
        operator, control = Operator(world.state), ControlClient(world.state)
        try:
            await operator.ready(FIRST)
            await begun(control)
            async with calling(world) as load:
                tour = Tour(world, operator, control, load, console, time.perf_counter())
                try:
                    await acts(tour)
                except (NotSo, TimeoutError) as error:
                    tour.expect(so=False, otherwise=str(error) or "something took too long")
        finally:
            await operator.close()
            await control.close()
    tour.expect(so=stack.returncode == 0, otherwise=f"the stack ended with {stack.returncode}")
    show(tour, console)
    return verdict(tour)


async def begun(control: ControlClient) -> None:
    """Wait for the model, on a busy machine for long."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            with contextlib.suppress(grpc.aio.AioRpcError):
                await control.ready(PATIENCE_SECONDS)
                return


def verdict(tour: Tour) -> int:
    """0 if nothing failed; otherwise say what did."""
    load = tour.load
    if not (load.failed or load.wrong or tour.troubles):
        return 0
    for sentence in [*tour.troubles, *sorted(set(load.failed))[:5]]:
        tour.console.print(f"[red]{sentence}[/red]", highlight=False)
    for line in tour.world.log.read_text(errors="replace").splitlines()[-LOG_LINES:]:
        tour.console.print(line, style="dim", markup=False, highlight=False)
    return 1


async def acts(tour: Tour) -> None:
    """One after the other."""
    tour.say(f"[bold]{FIRST}[/bold] serves; callers ask all the time, without retries")
    tour.load.phase = "steady"
    await asyncio.sleep(STEADY_SECONDS)
    await better_is_committed(tour)
    await runner_is_killed(tour)
    await worse_is_refused(tour)
    await overflowing_is_taken_back(tour)
    await updater_is_killed(tour)
    await asyncio.sleep(SETTLE_SECONDS)


async def better_is_committed(tour: Tour) -> None:
    """A better model: nobody does anything but publish it."""
    followed = await publish(tour, BETTER, "a better model")
    await tour.operator.follow(followed, tour_stage(tour, followed))
    await tell_end(tour, followed, "COMMITTED")


async def runner_is_killed(tour: Tour) -> None:
    """The process that answers dies; the one that stands ready takes over what it held."""
    await standby(tour)
    pid = await tour.control.active_pid()
    tour.load.phase, tour.killed_at = "runner killed", time.perf_counter()
    tour.say("[bold]kill −9[/bold] of the process that answers")
    os.kill(pid, signal.SIGKILL)
    async with asyncio.timeout(60):
        while await tour.control.active_pid() in (pid, 0):  # noqa: ASYNC110  it tells when it is asked, not else
            await asyncio.sleep(0.01)
    await tour.control.ready()
    tour.back_at = time.perf_counter()
    tour.say(f"another process answers after {tour.back_at - tour.killed_at:.2f} s")
    await asyncio.sleep(SETTLE_SECONDS)
    tour.load.phase = "steady"


async def standby(tour: Tour) -> None:
    """Wait until the model before is no longer kept warm, and a process stands ready in its place."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while "READY" not in {row.state for row in (await tour.control.ready()).slots}:  # noqa: ASYNC110  as below
            await asyncio.sleep(LOOK_SECONDS)


async def worse_is_refused(tour: Tour) -> None:
    """A worse model: no caller meets it."""
    followed = await publish(tour, WORSE, "a model that somebody compressed too far")
    await tour.operator.follow(followed, tour_stage(tour, followed))
    await tell_end(tour, followed, "REFUSED")
    tour.expect(so=tour.load.first_of(WORSE) is None, otherwise=f"{WORSE} answered a caller")


async def overflowing_is_taken_back(tour: Tour) -> None:
    """A model that only callers can find out: right on every golden item, no number for one word."""
    followed = await publish(tour, OVERFLOWING, "a model that is right on all golden items, and fails on one word")

    def on_stage(stage: str) -> None:
        tour_stage(tour, followed)(stage)
        if stage == "OBSERVING":
            tour.load.uses_the_word = True
            tour.say("callers begin to use that word")

    await tour.operator.follow(followed, on_stage)
    await tell_end(tour, followed, "ROLLED_BACK")
    tour.load.uses_the_word = False
    state = await tour.control.state()
    tour.by_previous = sum(row.answered_by_previous for row in state.stats)
    tour.expect(so=tour.by_previous > 0, otherwise="the trial failed nobody's request: nothing was proven")


async def updater_is_killed(tour: Tour) -> None:
    """The updater dies in the middle of an update, and finds its way by what it wrote down."""
    followed = await publish(tour, AGAIN, "the good model again, in other bytes")
    has_killed = False

    def on_stage(stage: str) -> None:
        nonlocal has_killed
        tour_stage(tour, followed)(stage)
        if not has_killed and stage in ("GATING", "ACTIVATING", "OBSERVING"):
            has_killed = True
            tour.say("[bold]kill −9[/bold] of the updater")
            for process in updaters(tour.world):
                process.kill()

    await tour.operator.follow(followed, on_stage)
    tour.expect(so=has_killed, otherwise="the updater was not killed: the update was over too soon")
    await tell_end(tour, followed, "COMMITTED")


async def publish(tour: Tour, revision: str, what: str) -> Followed:
    """Publish a revision, and say so."""
    tour.load.phase = f"{revision} waits"
    await asyncio.to_thread(hub_add, tour.world, revision)
    followed = tour.updates[revision] = Followed(revision, time.perf_counter())
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


async def tell_end(tour: Tour, followed: Followed, wanted: str) -> None:
    """Say how an update ended and on which evidence; note if it should have ended otherwise."""
    tour.load.phase = "steady"
    took = time.perf_counter() - followed.published
    colour = "green" if followed.outcome == wanted else "red"
    word = followed.outcome.lower().replace("_", " ")
    tour.say(f"[{colour}]{followed.revision} {word}[/{colour}] {took:.1f} s after its publication: {followed.message}")
    found = await tour.operator.evidence(followed)
    passed = ", ".join(f"{row.name} {row.candidate:.3g}" for row in found.measurements if row.passed)
    tour.say(f"      [dim]✓ {passed}[/dim]")
    for row in found.measurements:
        if not row.passed:
            numbers = f"{row.candidate:.3g} (before: {row.active:.3g}, limit: {row.threshold:.3g})"
            tour.say(f"      [yellow]✗ {row.name} {numbers}[/yellow]")
    tour.expect(so=followed.outcome == wanted, otherwise=f"{followed.revision} should have been {wanted}")


def updaters(world: World) -> Iterator[psutil.Process]:
    """The updater's process of this stack."""
    for process in psutil.process_iter(["cmdline", "environ"]):
        command, environment = process.info["cmdline"] or [], process.info["environ"] or {}
        if "updater.daemon" in command and environment.get("HOTSLOT_CONFIG") == str(world.settings):
            yield process


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
