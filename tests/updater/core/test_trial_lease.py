"""The lease of a trial outlasts what the updater does meanwhile."""

from dataclasses import replace

import pytest

from tests.updater.core.world import RULES, World
from tests.updater.simulators import Quality
from updater.core.record import HeldFor, Installed, Outcome, Stage


@pytest.fixture
def quiet(world: World) -> World:
    """1.0.0 is committed, and no caller comes."""
    world.requests_a_second = 0.0
    world.golden.passes = world.passes
    return world


@pytest.mark.fault("S11")
@pytest.mark.parametrize(("lease", "item_seconds"), [(60.0, 5.0), (60.0, 30.0), (5.0, 2.5)])
def test_a_trial_outlasts_slow_probes(quiet: World, lease: float, item_seconds: float) -> None:
    """A large model on a CPU takes seconds for each item: fewer are sent at once, and the lease is renewed before."""
    observe = replace(RULES.observe, trial_lease_seconds=lease, max_seconds=1800.0)
    quiet.with_rules(observe=observe)
    quiet.golden.probe_seconds = item_seconds
    quiet.publish("1.1.0")
    quiet.settle(3600.0)

    assert quiet.outcomes("1.1.0") == [Outcome.COMMITTED]
    assert quiet.event_names().count("trial_began") == 2  # of 1.0.0, and one of 1.1.0
    assert "on probes" in quiet.last("update_committed").message


def test_items_that_take_longer_than_the_lease_leave_the_verdict_to_a_person(quiet: World) -> None:
    """The trial does not end by its lease, and blames nothing."""
    quiet.golden.probe_seconds = 100.0
    quiet.publish("1.1.0")
    quiet.settle()

    ending = quiet.record.under_way.ending
    assert (quiet.stage, quiet.committed, quiet.quarantined) == (Stage.HELD, "1.0.0", set())
    assert ending is not None
    assert ending.held_for is HeldFor.INCONCLUSIVE
    assert quiet.event_names().count("trial_began") == 2


@pytest.mark.fault("S11")
def test_probes_of_which_all_are_void_do_not_follow_one_another_at_once(quiet: World) -> None:
    """If the previous model has begun to fail them as well, no number of them leads to a verdict."""
    quiet.publish("1.1.0", content="new")
    quiet.tick_until(Stage.OBSERVING)
    broken = Quality(failure="IMAGE_UNREADABLE")
    quiet.qualities = {**quiet.qualities, **dict.fromkeys(quiet.qualities, broken)}
    quiet.golden.qualities = quiet.qualities
    actions = []
    while quiet.stage is Stage.OBSERVING:
        actions.append(quiet.tick())

    assert 0 < actions.count("Probe") <= quiet.rules.observe.max_seconds + 1
    assert quiet.record.under_way.reason == HeldFor.INCONCLUSIVE


def test_the_lease_is_renewed_before_the_pointer_is_written(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which may wait for its lock, as long as half a lease."""
    write = world.store.write_pointer

    def wait_and_write(installed: Installed | None) -> None:
        world.passes(29.0)
        write(installed)

    world.publish("1.1.0")
    world.tick_until(Stage.COMMITTING)
    monkeypatch.setattr(type(world.store), "write_pointer", lambda _, installed: wait_and_write(installed))
    world.server.lease_left = 25.0
    world.settle()

    assert world.committed == world.serving == "1.1.0"
    last = world.server.last_trial
    assert last is not None
    assert last.outcome == "COMMITTED"
    assert world.server.activated.count(last.bundle_digest) == 1


def test_a_draining_server_is_not_asked_for_a_longer_lease(world: World) -> None:
    """It refuses; the commit is completed nevertheless."""
    world.publish("1.1.0")
    world.tick_until(Stage.COMMITTING)
    world.server.lease_left, world.server.is_draining = 25.0, True
    assert world.tick() == "WritePointer"
