"""S8: an operator takes the demo model back: warm, while the model before it still stands ready, and cold.

The real engine, the real conversion, the tour's world and its callers. Timed from the operator's call to the last
answer of the revision that is taken back, as callers see it.
"""

import asyncio
import time
from pathlib import Path

from dev.bench.stack import ControlClient
from dev.chaos.catalog import Findings, Task
from dev.chaos.numbers import ms
from dev.demo.follow import Followed, Operator
from dev.demo.load import Load, calling
from dev.demo.world import AGAIN, BETTER, FIRST, World, build, hub_add, running_stack

WARM_SECONDS, COLD_SECONDS = 1.0, 60.0  # the limits
KEEP_WARM_SECONDS = 30  # long enough to find it warm on a busy machine
PATIENCE_SECONDS = 240.0
STEADY_SECONDS = 2.0


def run(task: Task) -> Findings:
    """Commit, take back warm; commit again, wait until the one before is gone, take back cold."""
    return asyncio.run(both(task.folder / "world", task))


async def both(folder: Path, task: Task) -> Findings:
    """Both ways."""
    task.say("making revisions, and asking the bare engine what their right answers are")
    world = build(folder)
    text = world.settings.read_text(encoding="utf-8")
    world.settings.write_text(text.replace("keep_warm_seconds = 2", f"keep_warm_seconds = {KEEP_WARM_SECONDS}"))
    findings = Findings()
    with running_stack(world):
        operator, control = Operator(world.state), ControlClient(world.state)
        try:
            await operator.ready(FIRST)
            await control.ready(PATIENCE_SECONDS)
            async with calling(world) as load:
                await asyncio.sleep(STEADY_SECONDS)
                await committed(world, operator, BETTER, task)
                warm = await taken_back(operator, control, load, BETTER)
                task.say(f"warm: {warm:.3f} s")
                await operator.resume()
                await committed(world, operator, AGAIN, task)
                await alone(control)
                cold = await taken_back(operator, control, load, AGAIN)
                task.say(f"cold: {cold:.3f} s")
        finally:
            await operator.close()
            await control.close()
    judge(findings, load, warm, cold)
    return findings


async def committed(world: World, operator: Operator, revision: str, task: Task) -> None:
    """Publish, and see it committed."""
    await asyncio.to_thread(hub_add, world, revision)
    followed = await operator.follow(Followed(revision, time.perf_counter()), lambda _stage: None)
    if followed.outcome != "COMMITTED":
        raise AssertionError(f"{revision} ended {followed.outcome}: {followed.message}")
    task.say(f"{revision} is committed")


async def alone(control: ControlClient) -> None:
    """Wait until the model before is no longer kept."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while sum(bool(slot.load_id) for slot in (await control.state()).slots) > 1:  # noqa: ASYNC110  it is asked
            await asyncio.sleep(0.1)


async def taken_back(operator: Operator, control: ControlClient, load: Load, revision: str) -> float:
    """Seconds from the call to the last answer of what is taken back."""
    await asyncio.sleep(STEADY_SECONDS)
    asked = time.perf_counter()
    await operator.rollback()
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            state = await control.state()
            if any(slot.load_id == state.active_load_id and slot.revision == FIRST for slot in state.slots):
                break
            await asyncio.sleep(0.01)
    await asyncio.sleep(STEADY_SECONDS)
    return max(0.0, (load.last_of(revision) or asked) - asked)


def judge(findings: Findings, load: Load, warm: float, cold: float) -> None:
    """Hold it against the limits."""
    findings.count = 2
    findings.numbers = {
        "warm_ms": ms(warm),
        "cold_seconds": round(cold, 2),
        "attempts": load.attempts,
        "failed": len(load.failed),
        "not_their_own_revisions": load.wrong,
        "longest_gap_ms": ms(load.longest_gap()),
    }
    findings.expect(so=warm < WARM_SECONDS, otherwise=f"warm it took {warm:.2f} s")
    findings.expect(so=cold < COLD_SECONDS, otherwise=f"cold it took {cold:.1f} s")
    findings.expect(so=not load.failed, otherwise=f"{len(load.failed)} calls failed: {load.failed[:3]}")
    findings.expect(so=not load.wrong, otherwise=f"{load.wrong} answers of no revision's own")
