"""Requests handed over from a trial: late results, and restarts of emptied slots."""

from pathlib import Path

import pytest

from common.errors import HotslotError, Interrupted
from inference.server.model.route import HANDOVER_SECONDS, HANDOVER_SHARE, trial_limit
from inference.server.runner_client.protocol import EndReason
from tests.server.simulator import World


@pytest.mark.fault("K15")
@pytest.mark.parametrize("reason", ["CANCELLED", "DEADLINE_EXPIRED", "ENGINE_FAILED"])
async def test_late_failures_of_a_handed_over_request_are_ignored(tmp_path: Path, reason: str) -> None:
    """The caller still gets the answer of the previous slot."""
    world = await World(tmp_path).serving()
    await world.trial()
    await world.wait(1)
    world.holds_items = True
    pending = world.ask(seconds=1.5)
    await world.settle()
    trial, previous = world.runner("b"), world.runner("a")
    assert trial.items
    await world.wait(1.4)
    assert previous.items, "it was handed over"

    trial.refuse(reason)
    await world.settle()
    assert not pending.is_done

    previous.answer(*previous.items)
    assert (await pending.outcome).served_by.revision == "r1"


@pytest.mark.fault("S2")
async def test_a_request_whose_time_in_a_trial_ends_after_the_commit_is_computed_again(tmp_path: Path) -> None:
    """The runner drops it, as for a handover; the previous slot is gone, and the caller's deadline is far."""
    world = await World(tmp_path).serving()
    load = await world.trial()
    await world.wait(1)
    world.holds_items = True
    pending = world.ask(seconds=60)
    await world.settle()
    previous = world.previous
    assert previous.load is not None
    world.commands.commit(load.load_id, "t2", 0)
    world.commands.retire(previous.load.load_id, 0)
    await world.settle()

    world.runner("b").refuse("DEADLINE_EXPIRED")
    await world.settle()
    world.runner("b").answer(*world.runner("b").items)

    assert (await pending.outcome).served_by.revision == "r2"


@pytest.mark.fault("S7")
async def test_what_a_trial_failed_is_told_while_the_previous_slot_starts_again(tmp_path: Path) -> None:
    """Only its answer makes it a failure of the trial; until then the updater must not keep the trial."""
    world = await World(tmp_path).serving()
    await world.trial()
    digest = world.bundle("r2").bundle_digest
    await world.wait(1)
    world.holds_loads = world.holds_items = True
    world.runner("a").end()
    await world.wait(1)
    pending = world.ask()
    await world.settle()

    world.runner("b").refuse("NOT_FINITE")
    await world.settle()
    assert world.manager.requests.count_awaiting_previous(digest) == 1
    assert not pending.is_done

    world.holds_loads = world.holds_items = False
    world.runner("a").end()
    await world.wait(3)
    assert (await pending.outcome).served_by.revision == "r1"
    assert world.manager.requests.count_awaiting_previous(digest) == 0


@pytest.mark.fault("K15")
async def test_after_a_rollback_a_hung_request_is_handed_over_within_its_deadline(tmp_path: Path) -> None:
    """A request that hangs in the rolled-back revision goes to the active slot."""
    world = await World(tmp_path).serving()
    await world.trial()
    pending = world.ask("!hang@r2", seconds=1.5)
    await world.settle()
    previous = world.previous
    assert previous.load is not None
    world.commands.activate(previous.load.load_id, 0.0, "t2", 0)

    await world.wait(1.4)

    assert (await pending.outcome).served_by.revision == "r1"


async def test_a_failed_slot_that_is_retired_restarts_as_standby(tmp_path: Path) -> None:
    """A slot retired during its restart pause starts again without a model."""
    world = await World(tmp_path).serving()
    load = await world.trial()
    for _ in range(2):
        world.runner("b").end()
        await world.settle()
        if not world.pair["b"].has_process:
            break
        await world.settle()
    assert world.pair["b"].state.name == "FAILED"
    previous = world.previous
    assert previous.load is not None
    world.commands.activate(previous.load.load_id, 0.0, "t2", 0)
    world.commands.retire(load.load_id, 0)

    await world.wait(3)

    assert world.pair["b"].state.name == "READY"
    assert world.pair["b"].load is None


async def test_a_load_ends_when_it_is_retired(tmp_path: Path) -> None:
    """Whoever waits for it hears why, at once: while it loads, and while its process is about to start again."""
    world = await World(tmp_path).serving()
    world.holds_loads = True
    load = await world.candidate()
    before, runner = load.failure, world.runner("b")
    world.commands.retire(load.load_id, 0)
    await world.settle()

    assert before is None
    assert load.failure is not None
    assert load.failure.reason == "LOAD_RETIRED"
    assert runner.is_retiring  # it has as long to free its memory as one that had loaded
    assert world.pair["b"].load is None


async def test_a_stop_ends_the_loads(tmp_path: Path) -> None:
    """A server that stops leaves no caller of LoadSlot waiting."""
    world = await World(tmp_path).serving()
    world.holds_loads = True
    load = await world.candidate()
    await world.commands.stop(1.0)

    assert load.failure is not None
    assert load.failure.reason == "LOAD_RETIRED"


async def test_without_standby_an_emptied_slot_stays_empty(tmp_path: Path) -> None:
    """Without a configured standby process no restart follows."""
    world = await World(tmp_path, standby=False).serving()
    load = await world.trial()
    for _ in range(2):
        if world.pair["b"].has_process:
            world.runner("b").end()
            await world.settle()
    previous = world.previous
    assert previous.load is not None
    world.commands.activate(previous.load.load_id, 0.0, "t2", 0)
    world.commands.retire(load.load_id, 0)

    await world.wait(3)

    assert world.pair["b"].state.name == "EMPTY"


@pytest.mark.fault("K6")
@pytest.mark.parametrize(
    ("ending", "reason"), [(EndReason.DIED, "LOAD_FAILED"), (EndReason.LOAD_STALLED, "LOAD_STALLED")]
)
async def test_a_lost_candidate_reports_how_it_ended(tmp_path: Path, ending: EndReason, reason: str) -> None:
    """The reason says whether its process died or stalled."""
    world = await World(tmp_path).serving()
    world.holds_loads = True
    load = await world.candidate()

    world.runner("b").end(ending)
    await world.settle()

    assert isinstance(load.failure, Interrupted)
    assert load.failure.reason == reason


@pytest.mark.parametrize(
    ("deadline", "own", "need", "limit"),
    [
        (10.0, 2.0, 0.5, 2.0),  # its own limit is the lesser
        (2.0, 2.0, 0.5, 1.5 - 2.0 * HANDOVER_SHARE),  # what the previous slot needs is kept back, and time for the way
        (0.6, 2.0, 0.0, 0.6 - HANDOVER_SECONDS),  # even a model that costs nothing needs a way there
        (0.5, 2.0, 0.5, None),  # no room for both
        (HANDOVER_SECONDS, 2.0, 0.0, None),
    ],
)
def test_the_time_limit_of_a_trial_leaves_time_for_the_previous_slot(
    deadline: float, own: float, need: float, limit: float | None
) -> None:
    """It is the lesser of the trial's own limit and the deadline minus the time that the previous slot needs."""
    assert trial_limit(0.0, deadline, own, need) == (None if limit is None else pytest.approx(limit))


async def test_the_end_of_a_trial_s_runner_does_not_run_a_handed_over_request_twice(tmp_path: Path) -> None:
    """The previous slot computes it already. Twice in its queue, it ended the server when that runner died too."""
    world = await World(tmp_path).serving()
    await world.trial()
    await world.wait(1)
    world.holds_items = True
    pending = world.ask(seconds=30)
    await world.settle()
    await world.wait(2.5)
    trial, previous = world.runner("b"), world.runner("a")
    assert (len(trial.items), len(previous.items)) == (1, 1), "it was handed over"

    trial.end()
    await world.settle()

    assert sum(len(slot.dispatcher.queue) for slot in world.manager.machine.slots.values()) == 0
    previous.answer(*previous.items)
    assert (await pending.outcome).served_by.revision == "r1"
    assert len(previous.received) == 2


async def test_the_active_model_is_unloaded_by_command_when_a_gap_is_accepted(tmp_path: Path) -> None:
    """What it has accepted is answered; what comes then is refused, until another revision is active."""
    world = await World(tmp_path).serving()
    world.holds_items = True
    accepted = world.ask("before")
    await world.settle()
    old = world.active.load
    assert old is not None
    world.commands.retire(old.load_id, 0, gap_lease_seconds=60.0)
    with pytest.raises(HotslotError) as refused:
        await world.ask("in the gap").outcome
    world.holds_items = False
    world.runner("a").compute()
    await world.settle()

    assert (await accepted.outcome).served_by.revision == "r1"
    assert (refused.value.reason, world.pair.active) == ("NOT_READY", None)
    load = world.commands.load(world.bundle("r2").bundle_digest, "", "t1", 0)
    await world.settle()
    world.commands.activate(load.load_id, 600.0, "t1", 0)
    assert (await world.ask("after").outcome).served_by.revision == "r2"


async def test_no_gap_is_left_beside_a_candidate_or_a_trial(tmp_path: Path) -> None:
    """The command is refused, and the active slot answers."""
    world = await World(tmp_path).serving()
    load = await world.candidate()
    active = world.active.load
    assert active is not None
    with pytest.raises(HotslotError) as error:
        world.commands.retire(active.load_id, 0, gap_lease_seconds=60.0)
    assert error.value.reason == "SLOT_IN_USE"
    world.commands.activate(load.load_id, 600.0, "t1", 0)
    with pytest.raises(HotslotError) as error:
        world.commands.retire(load.load_id, 0, gap_lease_seconds=60.0)
    assert error.value.reason == "SLOT_IN_USE"
