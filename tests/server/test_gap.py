"""The lease of a gap: the active model was unloaded for one that does not fit beside it, and no command follows.

`r1` is the committed revision, `r2` the new one. The table is a part of docs/explanation/rollout-faults.md.
"""

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from common.errors import Conflict, HotslotError, InputRefused
from inference.server.model.pair import CPU_DEVICE
from inference.server.request import PendingRequest, RequestTags
from inference.server.scheduling.fair_queue import UNNAMED
from tests.server.simulator import World, ask
from tests.server.test_rollout_faults import CARD, PAGE, describe

LEASE = 60.0


async def serving(state: Path, *, standby: bool = True) -> World:
    """r1 answers from a card."""
    world = World(state, device="auto", standby=standby)
    world.devices = [CARD, CPU_DEVICE]
    return await world.serving()


async def begin_gap(world: World, lease: float = LEASE) -> None:
    """The active model is unloaded by command."""
    load = world.active.load
    assert load is not None
    world.commands.retire(load.load_id, 0, gap_lease_seconds=lease)
    await world.settle()


async def begin_load(world: World) -> None:
    """The candidate's load has begun, and takes its time."""
    await begin_gap(world)
    world.holds_loads = True
    await world.candidate()


async def load_candidate(world: World) -> None:
    """The candidate is loaded, and is to be gated."""
    await begin_gap(world)
    await world.candidate()


async def begin_trial(world: World) -> None:
    """The candidate answers on trial, without a previous slot."""
    await begin_gap(world)
    await world.trial()


async def lose_trial(world: World) -> None:
    """The candidate's runner has ended on trial, and its next load takes its time."""
    await begin_trial(world)
    world.holds_loads = True
    world.runner(world.pair.active or "").end()
    await world.settle()


async def begin_return(world: World) -> None:
    """The candidate has failed its gate, and the updater has begun to load the unloaded model again."""
    await load_candidate(world)
    candidate = next(slot.load for slot in world.pair if slot.load is not None)
    world.commands.retire(candidate.load_id, 0)
    await world.settle()
    world.holds_loads = True
    await world.candidate("r1")


WHEN: dict[str, Callable[[World], Awaitable[None]]] = {
    "before the candidate is loaded": begin_gap,
    "while the candidate is being loaded": begin_load,
    "while the candidate is gated": load_candidate,
    "while the candidate answers on trial": begin_trial,
    "on trial, and the candidate's runner dies": lose_trial,
    "while the unloaded model is being loaded again": begin_return,
}
# When the updater dies, a call then, a call when the lease has run out, and what the slots hold at the end.
ROWS: dict[str, tuple[str, str, str]] = {
    "before the candidate is loaded": ("NOT_READY", "r1", "active r1"),
    "while the candidate is being loaded": ("NOT_READY", "r1", "active r1"),
    "while the candidate is gated": ("NOT_READY", "r1", "active r1"),
    "while the candidate answers on trial": ("r2", "r2", "trial r2"),
    "on trial, and the candidate's runner dies": ("r1", "r1", "active r1"),
    "while the unloaded model is being loaded again": ("NOT_READY", "NOT_READY", "active r1"),
}


async def outcome_of(pending: PendingRequest) -> str:
    """The revision that has answered, or the error's reason."""
    try:
        return (await pending.outcome).served_by.revision
    except HotslotError as error:
        return error.reason


def send(world: World, seconds: float = 300.0, version: str = "") -> PendingRequest | str:
    """Send a request; if it is refused, the reason."""
    tags = RequestTags("id", version=version)
    try:
        return world.manager.requests.predict(ask("text"), world.clock.seconds + seconds, UNNAMED, tags)
    except HotslotError as error:
        return error.reason


async def got(sent: PendingRequest | str) -> str:
    """What its caller got."""
    return sent if isinstance(sent, str) else await outcome_of(sent)


def finish_load(world: World) -> None:
    """Let the load that takes its time end."""
    world.holds_loads = False
    for slot in world.pair:
        if slot.state.name == "LOADING":
            runner = world.runner(slot.name)
            assert runner.loaded is not None
            runner.load(runner.loaded)


@pytest.mark.fault("K14")
@pytest.mark.parametrize("when", ROWS)
async def test_the_unloaded_model_returns_when_no_command_follows(tmp_path: Path, when: str) -> None:
    """Each row of the table; what waits keeps its deadline and is answered."""
    world = await serving(tmp_path, standby=when != "on trial, and the candidate's runner dies")
    await WHEN[when](world)
    early = send(world)
    await world.wait(LEASE - 1)
    assert world.pair.gap is not None
    await world.wait(2)
    late = send(world)
    finish_load(world)
    await world.wait(3)

    assert (await got(early), await got(late), describe(world)) == ROWS[when]
    assert world.manager.requests.waiting == 0
    assert sum(slot.load is not None for slot in world.pair) == 1


def test_the_table_is_on_its_page() -> None:
    """As it is played."""
    lines = ["| the updater dies | a call then | a call when the lease has run out | afterwards |", "|---|---|---|---|"]
    lines += [f"| {when} | {then} | {later} | {after} |" for when, (then, later, after) in ROWS.items()]
    assert "\n".join(lines) in PAGE.read_text(encoding="utf-8"), "\n".join(lines)


async def test_the_unloaded_model_waits_until_its_device_is_free(tmp_path: Path) -> None:
    """What was accepted before the gap is answered first; what comes then is refused, and afterwards waits."""
    world = await serving(tmp_path)
    world.holds_items = True
    accepted = world.ask(seconds=300.0)
    await world.settle()
    await begin_gap(world, 1.0)
    await world.candidate()
    await world.wait(1.2)
    is_over, refused = world.pair.gap is not None and world.pair.gap.is_over, send(world)
    states = [slot.state.name for slot in world.pair]
    world.holds_items, world.holds_loads = False, True
    for name in ("a", "b"):
        world.runner(name).compute()
    await world.settle()
    in_time, late = send(world), send(world, seconds=2.0)
    await world.wait(3)
    finish_load(world)
    await world.wait(1)

    assert (is_over, refused, states) == (True, "NOT_READY", ["RETIRING", "RETIRING"])
    assert [await got(one) for one in (accepted, in_time, late)] == ["r1", "r1", "DEADLINE_EXPIRED"]
    assert describe(world) == "active r1"


async def test_a_command_under_way_keeps_the_lease(tmp_path: Path) -> None:
    """A long load or gate is no silence; the lease begins anew at its end."""
    world = await serving(tmp_path)
    await begin_load(world)
    with world.commands.under_way():
        await world.wait(3 * LEASE, step=1.0)
    await world.wait(LEASE - 1, step=1.0)
    assert describe(world) == "candidate r2 (loading)"
    await world.wait(2, step=1.0)
    assert world.pair.gap is None


async def test_a_commit_ends_the_gap(tmp_path: Path) -> None:
    """A committed model that dies is loaded again, and no other."""
    world = await serving(tmp_path)
    await begin_gap(world)
    load = await world.trial()
    world.commands.commit(load.load_id, "t1", 0)
    world.runner(world.pair.active or "").end()
    await world.settle()
    await world.wait(2 * LEASE, step=1.0)
    assert describe(world) == "active r2"


async def test_a_gap_needs_a_lease_in_range(tmp_path: Path) -> None:
    """Nothing has changed."""
    world = await serving(tmp_path)
    load = world.active.load
    assert load is not None
    with pytest.raises(InputRefused) as error:
        world.commands.retire(load.load_id, 0, gap_lease_seconds=0.5)
    assert (error.value.reason, world.pair.active) == ("LEASE_OUT_OF_RANGE", "a")


async def test_a_load_that_comes_after_a_gap_is_told_why_it_has_no_slot(tmp_path: Path) -> None:
    """One slot is empty: it is the unloaded model's, when the other one's process has ended."""
    world = await serving(tmp_path)
    world.holds_items = True
    world.ask(seconds=300.0)
    await world.settle()
    await begin_gap(world, 1.0)
    await world.wait(1.2)
    with pytest.raises(Conflict) as error:
        await world.candidate()
    assert (error.value.reason, str(error.value)) == ("NO_FREE_SLOT", "the next load is the unloaded model's")
    world.holds_items = False
    world.runner("a").compute()
    await world.settle()
    assert world.pair.gap is None


async def drain(world: World) -> PendingRequest:
    """The active model is unloaded by command while it computes a request."""
    world.holds_items = True
    accepted = world.ask(seconds=300.0)
    await world.settle()
    await begin_gap(world)
    return accepted


async def drain_beside_load(world: World) -> PendingRequest:
    """And the candidate is being loaded."""
    accepted = await drain(world)
    world.holds_loads = True
    await world.candidate()
    return accepted


async def drain_beside_candidate(world: World) -> PendingRequest:
    """And the candidate is being gated."""
    accepted = await drain(world)
    world.holds_items = False
    await world.candidate()
    world.holds_items = True
    return accepted


@pytest.mark.fault("K14")
@pytest.mark.parametrize("act", [drain, drain_beside_load, drain_beside_candidate])
async def test_what_a_process_held_that_dies_in_a_gap_is_answered_by_the_unloaded_model(
    tmp_path: Path, act: Callable[[World], Awaitable[PendingRequest]]
) -> None:
    """It was accepted before the gap: the model is loaded again for it, whatever was to follow in the gap."""
    world = await serving(tmp_path)
    accepted = await act(world)
    world.holds_items = world.holds_loads = False
    world.runner("a").end()
    await world.wait(1)

    assert (await outcome_of(accepted), describe(world), world.pair.gap) == ("r1", "active r1", None)
    assert "gap_abandoned" in world.changes()


async def test_an_input_that_ends_a_draining_process_is_refused_after_a_second_one(tmp_path: Path) -> None:
    """Both deaths count."""
    world = await serving(tmp_path)
    accepted = await drain(world)
    world.runner("a").end()
    await world.wait(1)
    world.runner(world.pair.active or "").end()
    world.holds_items = False
    await world.wait(5)

    assert (await outcome_of(accepted), describe(world)) == ("POISON_INPUT", "active r1")


async def test_a_draining_process_without_accepted_requests_ends_no_gap(tmp_path: Path) -> None:
    """Its caller is gone: the gap goes on."""
    world = await serving(tmp_path)
    accepted = await drain(world)
    world.manager.requests.cancel(accepted)
    world.runner("a").end()
    await world.wait(1)
    assert (world.pair.gap is None, world.pair.active) == (False, None)


@pytest.mark.parametrize("standby", [True, False])
async def test_what_waits_for_a_trial_in_a_gap_survives_its_rollback(tmp_path: Path, *, standby: bool) -> None:
    """The trial's process has died; its requests are answered by the unloaded model, not failed with the trial."""
    world = await serving(tmp_path, standby=standby)
    await lose_trial(world)
    waiting = world.ask(seconds=300.0)
    candidate = world.active.load
    assert candidate is not None
    world.holds_loads = False
    world.commands.retire(candidate.load_id, 0)
    await world.wait(1)

    assert (await outcome_of(waiting), describe(world)) == ("r1", "active r1")


async def test_requests_that_wait_in_an_emptied_slot_outlive_its_next_process(tmp_path: Path) -> None:
    """The unloaded model waits until the other slot is empty; meanwhile an idle process of this one ends, too."""
    world = await serving(tmp_path)
    accepted = await drain_beside_candidate(world)
    candidate = world.pair["b"].load
    assert candidate is not None
    probe = world.manager.requests.probe("b", ask("probe"), world.clock.seconds + 300.0)
    await world.settle()
    world.runner("a").end()
    await world.settle()
    assert [slot.state.name for slot in world.pair] == ["READY", "RETIRING"]
    world.runner("a").end()
    await world.settle()
    world.holds_items = False
    world.runner("b").compute()
    await world.wait(1)

    assert (await outcome_of(accepted), await outcome_of(probe), describe(world)) == ("r1", "r2", "active r1")


@pytest.mark.fault("T6")
async def test_an_unloaded_version_is_away_and_not_unknown(tmp_path: Path) -> None:
    """Another server may have it: callers who name it are sent there, as all are while nothing answers."""
    world = await serving(tmp_path)

    async def name(*versions: str) -> list[str]:
        return [await got(send(world, version=one)) for one in versions]

    await begin_gap(world)
    in_gap = await name("stable", "r1", "canary", "r2")
    await world.trial()
    on_trial = await name("stable", "r1", world.bundle("r1").bundle_digest, "canary", "r2", "r3")

    assert in_gap == ["NOT_READY"] * 4
    assert on_trial == ["NOT_READY", "NOT_READY", "NOT_READY", "r2", "r2", "VERSION_UNKNOWN"]
