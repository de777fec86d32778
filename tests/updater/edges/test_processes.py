"""Kills of real processes: after each the state is what the design says, and no accepted call was lost."""

import signal

import pytest

from common.exit_codes import ExitCode
from dev.harness.process import UpdaterProcess
from tests.updater.edges.conftest import MakeWorld
from tests.updater.edges.world import World

pytestmark = [pytest.mark.timeout(180)]

FORWARD = ("STAGING", "VERIFYING", "GATING", "ACTIVATING", "OBSERVING", "COMMITTING", "IDLE")
BETWEEN = ("after:LoadBundle", "after:ActivateLoad", "after:WritePointer", "before:CommitLoad", "after:CommitLoad")
NAN_TO = "there is a bird !nan@{}"  # callers whose question only this revision answers with NaN


@pytest.mark.fault("K1")
@pytest.mark.parametrize("place", FORWARD + BETWEEN)
def test_an_update_commits_after_the_updater_was_killed(world: World, place: str) -> None:
    """Right after entering any stage, or between an effect and its record."""
    updater = world.start_updater(crash_at=place)
    revision = world.publish_next()
    world.ask_until(lambda: updater.exit_code is not None, f"the updater dies at {place}")
    assert updater.exit_code == -signal.SIGKILL
    assert world.serving()

    world.restart_updater()
    world.ask_until(lambda: _is_committed(world, revision), "it is committed after all")
    assert revision == world.serving()


@pytest.mark.fault("K1")
@pytest.mark.parametrize("place", ["ROLLING_BACK", "after:ActivatePrevious", "before:RetireLoad"])
def test_a_rollback_completes_after_the_updater_was_killed(world: World, place: str) -> None:
    """And the revision stays in quarantine."""
    before = world.serving()
    updater = world.start_updater(crash_at=place)
    revision = world.publish_next()
    world.ask_until(lambda: updater.exit_code is not None, f"dies at {place}", NAN_TO.format(revision))
    assert updater.exit_code == -signal.SIGKILL

    world.restart_updater()
    world.ask_until(lambda: world.is_quarantined(revision), "it is in quarantine")
    world.wait_rest()
    assert before == world.serving()


@pytest.mark.fault("K2")
def test_the_gate_runs_again_after_the_server_was_killed(world: World) -> None:
    """The revision is committed."""
    world.start_updater()
    revision = world.publish_next(load_seconds=0.5)
    world.wait_stage("GATING")
    world.restart_server()
    world.wait_committed(revision)
    assert not world.is_quarantined(revision)


@pytest.mark.fault("K2")
@pytest.mark.parametrize("place", ["ACTIVATING", "after:ActivateLoad", "OBSERVING", "ROLLING_BACK"])
def test_a_restarted_server_serves_the_committed_bundle(world: World, place: str) -> None:
    """A crash during a trial counts against the candidate."""
    before = world.serving()
    is_bad = place == "ROLLING_BACK"
    updater = world.start_updater(crash_at=f"stop:{place}")
    revision = world.publish_next()
    statement = NAN_TO.format(revision) if is_bad else "there is a cat"
    world.ask_until(lambda: _is_frozen(updater), f"frozen at {place}", statement)
    world.restart_server()
    updater.thaw()
    world.wait(lambda: world.serving() in (before, revision), "something serves")
    if place == "ACTIVATING":  # never on trial
        world.wait_committed(revision)
    else:
        world.wait(lambda: world.is_quarantined(revision), f"{revision} is in quarantine")
        world.wait_rest()
        assert before == world.serving()


@pytest.mark.fault("K3")
@pytest.mark.parametrize("place", ["ACTIVATING", "OBSERVING", "COMMITTING", "after:WritePointer"])
def test_journal_and_pointer_agree_after_both_were_killed(world: World, place: str) -> None:
    """And the server serves that bundle."""
    before = world.serving()
    updater = world.start_updater(crash_at=place)
    revision = world.publish_next()
    world.ask_until(lambda: updater.exit_code is not None, f"the updater dies at {place}")
    world.restart_server()
    world.wait(world.serving, "something serves without an updater")
    assert world.serving() == (revision if place == "after:WritePointer" else before)

    world.restart_updater()
    if place in ("ACTIVATING", "after:WritePointer"):
        world.wait_committed(revision)
    else:
        world.wait(lambda: world.is_quarantined(revision), "a crash on trial counts against it")
    world.wait_rest()


@pytest.mark.fault("K16")
def test_an_orderly_stop_during_a_trial_does_not_quarantine(world: World) -> None:
    """After a restart the update is tried again and committed."""
    updater = world.start_updater()
    revision = world.publish_next()
    world.wait_stage("OBSERVING")
    updater.stop()
    world.stack.process.send(signal.SIGTERM)
    assert world.stack.process.wait_exit() == 0
    world.restart_server()
    world.restart_updater()
    world.wait_committed(revision)
    assert not world.is_quarantined(revision)


@pytest.mark.fault("K16")
def test_an_orderly_stop_during_a_first_install_does_not_quarantine(make_world: MakeWorld) -> None:
    """It is tried again."""
    world = make_world(committed=None, observe={"window_seconds": 2.0})
    world.start()
    world.publish("v1.0.0")
    updater = world.start_updater()
    world.wait_stage("OBSERVING")
    updater.stop()
    world.stack.process.send(signal.SIGTERM)
    assert world.stack.process.wait_exit() == 0
    world.restart_server()
    world.restart_updater()
    world.wait_committed("v1.0.0")
    assert not world.is_quarantined("v1.0.0")
    world.close()


@pytest.mark.fault("K17")
def test_a_trial_without_updater_expires(make_world: MakeWorld) -> None:
    """The server rolls it back, and the next updater tries it again."""
    world = make_world(observe={"window_seconds": 60.0, "max_seconds": 60.0, "trial_lease_seconds": 5.0})
    world.start_with_short_window()
    world.publish("v1.0.1")
    updater = world.start_updater(crash_at="OBSERVING")
    world.ask_until(lambda: updater.exit_code is not None, "the updater dies on trial")
    assert world.serving() == "v1.0.1"
    world.ask_until(lambda: world.serving() == "v1.0.0", "the trial lease runs out")
    assert world.control.status().last_trial.outcome == "LEASE_EXPIRED"
    world.restart_updater()
    world.wait_stage("OBSERVING")
    assert not world.is_quarantined("v1.0.1")
    world.updates_hold()
    world.wait_rest()
    world.close()


@pytest.mark.fault("U6")
def test_a_second_updater_exits_with_its_own_code(world: World) -> None:
    """Two updaters would conflict."""
    world.start_updater()
    world.status()
    second = UpdaterProcess(world.folder, world.stack.config)
    assert second.wait_exit() == ExitCode.BUSY
    world.wait(lambda: world.status().stage == 1, "the first goes on")


def _is_committed(world: World, revision: str) -> bool:
    row = world.committed()
    return row is not None and row.revision == revision and world.status().stage == 1


def _is_frozen(updater: UpdaterProcess) -> bool:
    assert updater.exit_code is None, updater.tail()
    return updater.is_frozen()
