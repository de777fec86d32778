"""One table: what goes wrong, what the other slot holds, what the caller gets, and what is left afterwards.

`r1` is the committed revision, `r2` the new one. The table is a part of docs/explanation/rollout-faults.md.
"""

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from common.errors import HotslotError
from inference.server.model.pair import CPU_DEVICE, Role, ShadowPolicy
from inference.server.request import PendingRequest, RequestTags
from inference.server.scheduling.admission import Capacity
from inference.server.scheduling.fair_queue import UNNAMED
from tests.server.simulator import World, ask

PAGE = Path(__file__).resolve().parents[2] / "docs" / "explanation" / "rollout-faults.md"
CARD = "cuda:0"
ALL = ShadowPolicy(1.0)


async def hold_nothing(_world: World) -> None:
    """The other slot has an idle process."""


async def hold_candidate(world: World) -> None:
    """A candidate is loaded."""
    await world.candidate()


async def hold_shadow(world: World) -> None:
    """A candidate answers copies."""
    load = await world.candidate()
    world.commands.set_shadow(load.load_id, ALL, "t1", 0)


async def hold_trial(world: World) -> None:
    """The new revision is on trial, and the previous one answers copies."""
    await hold_canary(world, 100.0)


async def hold_canary(world: World, percent: float = 50.0) -> None:
    """The new revision gets a part of the calls."""
    load = await world.candidate()
    world.commands.activate(load.load_id, 600.0, "t1", 0, percent=percent, shadow=ALL)
    await world.settle()


async def hold_warm_previous(world: World) -> None:
    """The new revision is committed, the one before is still loaded."""
    load = await world.trial()
    world.commands.commit(load.load_id, "t1", 0)


async def hold_cpu_fallback(world: World) -> None:
    """The committed revision is being loaded on the CPU."""
    world.holds_loads = True
    pending = send(world)
    world.holds_items = True
    await world.settle()
    world.runner("a").refuse("OUT_OF_MEMORY")
    await world.settle()
    pending.outcome.cancel()
    pending.release()


async def hold_bridge(world: World) -> None:
    """Both do not fit on the card: the committed revision was moved to the CPU, the new one is on trial on the card."""
    await leave_card(world)
    await move(world, "r2", CARD)


async def hold_bridge_candidate(world: World) -> None:
    """The committed revision was moved to the CPU, the new one is being gated on the card."""
    await leave_card(world)
    world.commands.load(world.bundle("r2").bundle_digest, CARD, "t1", 0)
    await world.settle()


async def leave_card(world: World) -> None:
    """Move the committed revision to the CPU."""
    old = world.active.load
    assert old is not None
    await move(world, "r1", CPU_DEVICE)
    world.commands.commit(world.active.load.load_id if world.active.load else "", "t1", 0)
    world.commands.retire(old.load_id, 0)
    await world.settle()


async def move(world: World, revision: str, device: str) -> None:
    """Load a revision on a device, and let it answer on trial."""
    load = world.commands.load(world.bundle(revision).bundle_digest, device, "t1", 0)
    await world.settle()
    world.commands.activate(load.load_id, 600.0, "t1", 0)
    await world.settle()


HOLDERS: dict[str, Callable[[World], Awaitable[None]]] = {
    "nothing": hold_nothing,
    "candidate": hold_candidate,
    "shadow": hold_shadow,
    "trial": hold_trial,
    "canary": hold_canary,
    "stable": hold_canary,
    "warm previous": hold_warm_previous,
    "CPU fallback": hold_cpu_fallback,
    "bridge": hold_bridge,
    "bridge candidate": hold_bridge_candidate,
}
BESIDE = {
    "nothing": "nothing",
    "candidate": "a candidate",
    "shadow": "a candidate that answers copies",
    "trial": "the previous one, which answers copies of the trial's calls",
    "canary": "the stable one; the canary has the call",
    "stable": "the canary; the stable one has the call",
    "warm previous": "the previous one, kept warm after the commit",
    "CPU fallback": "its own bundle, being loaded on the CPU",
    "bridge": "the previous one, which was moved to the CPU to make room",
    "bridge candidate": "a candidate on the card that it has left for the CPU",
}
FAULTS = {
    "fails": "the slot fails the call",
    "dies": "its runner dies",
    "hangs": "its runner hangs",
    "no memory": "it has no memory for the call",
    "other dies": "the other slot's runner dies",
}
ROWS: dict[tuple[str, str], tuple[str, str]] = {
    ("fails", "nothing"): ("ENGINE_FAILED", "active r1"),
    ("fails", "candidate"): ("ENGINE_FAILED", "active r1, candidate r2"),
    ("fails", "shadow"): ("ENGINE_FAILED", "active r1, candidate r2"),
    ("fails", "trial"): ("r1", "trial r2, previous r1"),
    ("fails", "canary"): ("r1", "trial r2, previous r1"),
    ("fails", "stable"): ("ENGINE_FAILED", "trial r2, previous r1"),
    ("fails", "warm previous"): ("ENGINE_FAILED", "active r2, previous r1"),
    ("fails", "CPU fallback"): ("ENGINE_FAILED", "active r1 on the CPU"),
    ("fails", "bridge"): ("r1 on the CPU", "trial r2, previous r1 on the CPU"),
    ("fails", "bridge candidate"): ("ENGINE_FAILED", "active r1 on the CPU, candidate r2"),
    ("dies", "nothing"): ("r1", "active r1"),
    ("dies", "candidate"): ("r1", "active r1, candidate r2"),
    ("dies", "shadow"): ("r1", "active r1, candidate r2"),
    ("dies", "trial"): ("r1", "trial r2, previous r1"),
    ("dies", "canary"): ("r1", "trial r2, previous r1"),
    ("dies", "stable"): ("r1", "trial r2, previous r1"),
    ("dies", "warm previous"): ("r2", "active r2, previous r1"),
    ("dies", "CPU fallback"): ("r1", "active r1 on the CPU"),
    ("dies", "bridge"): ("r1 on the CPU", "trial r2, previous r1 on the CPU"),
    ("dies", "bridge candidate"): ("r1 on the CPU", "active r1 on the CPU, candidate r2"),
    ("hangs", "nothing"): ("r1", "active r1"),
    ("hangs", "candidate"): ("r1", "active r1, candidate r2"),
    ("hangs", "shadow"): ("r1", "active r1, candidate r2"),
    ("hangs", "trial"): ("r1", "trial r2, previous r1"),
    ("hangs", "canary"): ("r1", "trial r2, previous r1"),
    ("hangs", "stable"): ("r1", "trial r2, previous r1"),
    ("hangs", "warm previous"): ("r2", "active r2, previous r1"),
    ("hangs", "CPU fallback"): ("r1", "active r1 on the CPU"),
    ("hangs", "bridge"): ("r1 on the CPU", "trial r2, previous r1 on the CPU"),
    ("hangs", "bridge candidate"): ("r1 on the CPU", "active r1 on the CPU, candidate r2"),
    ("no memory", "nothing"): ("r1 on the CPU", "active r1 on the CPU"),
    ("no memory", "candidate"): ("r1 on the CPU", "active r1 on the CPU"),
    ("no memory", "shadow"): ("r1 on the CPU", "active r1 on the CPU"),
    ("no memory", "trial"): ("r1", "active r1, candidate r2"),
    ("no memory", "canary"): ("r1", "active r1, candidate r2"),
    ("no memory", "stable"): ("r2", "trial r2, previous r1"),
    ("no memory", "warm previous"): ("r2 on the CPU", "active r2 on the CPU"),
    ("no memory", "CPU fallback"): ("r1 on the CPU", "active r1 on the CPU"),
    ("no memory", "bridge"): ("r1 on the CPU", "active r1 on the CPU, candidate r2"),
    ("no memory", "bridge candidate"): ("OUT_OF_MEMORY", "active r1 on the CPU, candidate r2"),
    ("other dies", "nothing"): ("r1", "active r1"),
    ("other dies", "candidate"): ("r1", "active r1"),
    ("other dies", "shadow"): ("r1", "active r1"),
    ("other dies", "trial"): ("r2", "trial r2, previous r1"),
    ("other dies", "canary"): ("r2", "trial r2, previous r1"),
    ("other dies", "stable"): ("r1", "trial r2, previous r1"),
    ("other dies", "warm previous"): ("r2", "active r2"),
    ("other dies", "CPU fallback"): ("r1", "active r1"),
    ("other dies", "bridge"): ("r2", "trial r2, previous r1 on the CPU"),
    ("other dies", "bridge candidate"): ("r1 on the CPU", "active r1 on the CPU"),
}


def send(world: World, version: str = "") -> PendingRequest:
    """Send a request with a far deadline."""
    tags = RequestTags("id", version=version)
    return world.manager.requests.predict(ask("text"), world.clock.seconds + 60.0, UNNAMED, tags)


async def break_world(world: World, fault: str, slot: str) -> None:
    """Let it happen while the slot computes a request."""
    runner, other = world.runner(slot), world.manager.machine.slots["b" if slot == "a" else "a"].process
    if fault == "fails":
        runner.refuse("ENGINE_FAILED")
    elif fault == "dies":
        runner.end()
    elif fault == "hangs":
        runner.is_hung = True
        await world.wait(4)
    elif fault == "no memory":
        runner.refuse("OUT_OF_MEMORY")
    elif other is not None:
        world.runner("b" if slot == "a" else "a").end()


async def outcome_of(world: World, fault: str, holder: str) -> tuple[str, str]:
    """What the caller gets, and what is left."""
    await HOLDERS[holder](world)
    world.holds_items = True
    pending = send(world, holder if holder in ("canary", "stable") else "")
    await world.settle()
    slot = pending.on_slot
    await break_world(world, fault, slot)
    await world.settle()
    world.holds_items = world.holds_loads = False
    for record in world.pair:
        process = world.manager.machine.slots[record.name].process
        if process is not None:
            runner = world.runner(record.name)
            if record.state.name == "LOADING" and runner.loaded is not None:
                runner.load(runner.loaded)
            runner.compute()
    await world.wait(3)
    try:
        answer = (await pending.outcome).served_by
        got = f"{answer.revision}{' on the CPU' if answer.device == CPU_DEVICE else ''}"
    except HotslotError as error:
        got = error.reason
    return got, describe(world)


def describe(world: World) -> str:
    """What both slots hold."""
    words = []
    for slot in sorted(world.pair, key=lambda one: one.name != world.pair.active):
        role = world.pair.role_of(slot.name)
        if slot.load is not None and role is not Role.FREE:
            device = " on the CPU" if slot.load.device == CPU_DEVICE else ""
            words.append(f"{role.lower()} {slot.load.bundle.revision}{device}{'' if slot.is_loaded else ' (loading)'}")
    return ", ".join(words)


@pytest.mark.fault("S7")
@pytest.mark.parametrize(("fault", "holder"), ROWS)
async def test_a_callers_answer_outranks_evidence(tmp_path: Path, fault: str, holder: str) -> None:
    """Each row of the table."""
    world = World(tmp_path, device="auto", capacity=Capacity(100, 1 << 20))
    world.devices = [CARD, CPU_DEVICE]
    await world.serving()

    found = await outcome_of(world, fault, holder)

    assert ROWS[fault, holder] == found
    assert world.manager.requests.waiting == 0


def test_the_table_is_complete_and_on_its_page() -> None:
    """Every fault with everything that the other slot may hold."""
    page = PAGE.read_text(encoding="utf-8")
    lines = ["| what goes wrong | what the other slot holds | the caller gets | afterwards |", "|---|---|---|---|"]
    lines += [
        f"| {FAULTS[fault]} | {BESIDE[holder]} | {got} | {after} |" for (fault, holder), (got, after) in ROWS.items()
    ]

    assert "\n".join(lines) in page, "\n".join(lines)
    assert list(ROWS) == [(fault, holder) for fault in FAULTS for holder in HOLDERS]
