"""The process that stands by: when one is started, and at which priority."""

from pathlib import Path

from tests.server.simulator import World


async def test_a_process_is_prepared_while_a_candidate_uses_the_standby(tmp_path: Path) -> None:
    """The next update, or a death, does not wait until another process has imported its engine."""
    world = await World(tmp_path).serving()
    before = world.prepared

    await world.candidate()

    assert (before, world.prepared) == (0, 1)


async def test_no_process_is_prepared_where_no_standby_is_wanted(tmp_path: Path) -> None:
    """Its memory is for those who have it."""
    world = await World(tmp_path, standby=False).serving()

    await world.candidate()

    assert world.prepared == 0


async def test_a_standby_imports_its_engine_at_full_priority(tmp_path: Path) -> None:
    """Until then nothing can take over; afterwards it computes at low priority."""
    world = await World(tmp_path).serving()
    standby = world.runner("b").priorities[:]

    await world.candidate()

    assert standby == [True, False]
    assert world.runner("b").priorities == [True, False]
