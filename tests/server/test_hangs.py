"""Runners that hang: noticed within the limit of one device call, not ready meanwhile, nothing lost."""

from pathlib import Path

import pytest

from common.errors import Failed
from inference.server.request import EntailmentInput
from inference.server.scheduling.limits import LOST_HEARTBEATS, LimitRules
from tests.server.simulator import UNIT_SECONDS, World


@pytest.mark.fault("K8")
async def test_a_hung_runner_is_killed_and_its_requests_are_answered(tmp_path: Path) -> None:
    """A runner that exceeds its time limit is killed; its requests are retried in the other slot."""
    world = await World(tmp_path).serving()
    world.holds_items = True
    pending = world.ask()
    await world.wait(1.9)
    assert not world.runners[0].has_ended
    world.holds_items = False
    await world.wait(0.3)

    assert "limit" in world.runners[0].killed_by
    assert (await pending.outcome).served_by.slot == "b"


@pytest.mark.fault("K8")
async def test_a_model_whose_runner_seems_to_hang_is_not_ready(tmp_path: Path) -> None:
    """From half of the time limit on, until the call ends or the runner is replaced."""
    world = await World(tmp_path).serving()
    world.holds_items = True
    world.ask()
    await world.wait(0.9)
    assert world.manager.is_ready
    await world.wait(0.2)
    assert not world.manager.is_ready
    assert not world.runners[0].has_ended

    world.runner("a").answer(*world.runner("a").items)
    await world.wait(0.1)
    assert world.manager.is_ready
    world.runner("a").is_silent = True
    assert not world.manager.is_ready


@pytest.mark.fault("K8")
async def test_a_trial_whose_runner_is_silent_makes_no_model_unready(tmp_path: Path) -> None:
    """It may have crashed, and be ending: the previous slot answers, unless that is silent, too."""
    world = await World(tmp_path).serving()
    await world.trial()
    await world.wait(0.2)
    world.runner("b").is_silent = True
    is_ready = world.manager.is_ready
    world.runner("a").is_silent = True

    assert world.active.name == "b"
    assert (is_ready, world.manager.is_ready) == (True, False)


@pytest.mark.fault("L11")
async def test_a_hang_is_seen_within_the_limit_of_one_device_call(tmp_path: Path) -> None:
    """A request of 32 rows is computed in calls of four: the one that hangs has the limit of four rows."""
    world = await World(tmp_path, limits=LimitRules(min_timeout_seconds=0.1, factor=8.0)).serving()
    world.manager.requests.predict(EntailmentInput(b"", ("!hang",) * 32, ""), world.clock.seconds + 60)
    await world.settle()
    limit = 8 * 4 * UNIT_SECONDS
    await world.wait(limit - 0.1)
    assert not world.runners[0].has_ended
    await world.wait(0.15)
    assert world.runners[0].has_ended


@pytest.mark.fault("K8")
async def test_a_hang_costs_the_other_requests_one_time_limit(tmp_path: Path) -> None:
    """They are answered by the next runner before the request that hangs is tried again, alone, and fails."""
    world = World(tmp_path)
    world.call_rows = 1
    await world.serving()
    hung = world.ask("!hang")
    await world.settle()
    others = [world.ask(f"item {number}") for number in range(4)]
    await world.wait(2.3)
    assert [(await other.outcome).served_by.slot for other in others] == ["b"] * 4
    assert not hung.is_done

    await world.wait(3)
    with pytest.raises(Failed) as error:
        await hung.outcome
    assert error.value.reason == "POISON_INPUT"


async def test_a_runner_that_has_lost_an_item_is_killed(tmp_path: Path) -> None:
    """It reports for ten seconds that it holds none, while one has no outcome: the slot would never be empty."""
    world = await World(tmp_path).serving()
    world.holds_items = True
    pending = world.ask(seconds=60)
    await world.settle()
    world.runner("a").items.clear()
    world.holds_items = False
    await world.wait(LOST_HEARTBEATS * 0.05 + 0.2)

    assert "does not hold" in world.runners[0].killed_by
    assert (await pending.outcome).served_by.slot == "b"
