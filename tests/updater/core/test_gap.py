"""The active model is unloaded for a candidate that does not fit beside it: nothing answers until that is on trial."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from dev.harness.simulated_card import CARD, CPU, GIB, Held
from tests.updater.core.test_bridge import BAD, FULL, full_card, serves, settle_after_death
from tests.updater.core.world import RULES, World
from tests.updater.simulators import Quality
from updater.core.effects import Gated, RunGate
from updater.core.record import Stage
from updater.core.rules import Rollout, RolloutRules
from updater.stages import gate
from updater.store.record_json import to_json

UNLOADED = replace(RULES, rollout=RolloutRules(Rollout.UNLOAD_FIRST))


@pytest.mark.fault("K14")
def test_an_active_model_that_is_unloaded_first_leaves_a_gap_until_the_candidate_answers() -> None:
    """By policy only; what comes meanwhile is refused, and the candidate is committed alone."""
    world = full_card(rules=UNLOADED)
    world.publish("1.1.0")
    world.tick_until(Stage.OBSERVING)
    roles = [(slot.role, slot.device) for slot in world.server.state(1.0).slots if slot.load_id]
    lost = world.server.lost
    assert roles == [("TRIAL", CARD)]
    assert world.last("bridge_began").message.endswith("1.0.0 is unloaded first: nothing answers meanwhile")
    world.settle()

    assert serves(world) == ("1.1.0", "1.1.0", CARD)
    assert world.record.bridge is None
    assert world.server.lost == lost
    assert world.server.tried.count(CPU) == 0


@pytest.mark.parametrize("name", ["fails the gate", "fails callers", "cannot be loaded"])
def test_the_unloaded_model_is_loaded_again_when_the_candidate_has_failed(name: str) -> None:
    """From the golden answers or in the trial; the revision is quarantined."""
    quality, quarantined, stage = BAD[name]
    world = full_card(rules=UNLOADED)
    world.publish("1.1.0", quality)
    world.settle()
    assert serves(world) == ("1.0.0", "1.0.0", CARD)
    assert (world.quarantined, world.stage) == (quarantined, stage)
    assert world.record.bridge is None


def test_a_candidate_that_does_not_fit_alone_ends_the_gap() -> None:
    """The committed model is loaded again, and the update is held with the numbers."""
    world = full_card(rules=UNLOADED)
    world.publish("1.1.0")
    while world.server.serving:
        world.tick()
    world.server.load_faults = [FULL]
    world.settle()
    assert serves(world) == ("1.0.0", "1.0.0", CARD)
    assert world.record.under_way.message.startswith("1.1.0 does not fit in memory")


@pytest.mark.parametrize("dies", ["before", "after"])
def test_an_updater_that_dies_at_any_step_of_the_gap_goes_on(dies: str) -> None:
    """The gap ends in any case."""
    for number in range(20):
        world = full_card(rules=UNLOADED)
        expected = settle_after_death(world, number, dies)
        assert serves(world) == (expected, expected, CARD)
        assert world.record.bridge is None


def test_a_server_that_starts_again_in_the_gap_serves_the_committed_model() -> None:
    """Then the gap is opened once more."""
    world = full_card(rules=UNLOADED)
    world.publish("1.1.0")
    while world.server.serving:
        world.tick()
    world.crash_server()
    assert (world.serving, world.server.serving_on) == ("1.0.0", CARD)
    world.settle()
    assert serves(world) == ("1.1.0", "1.1.0", CARD)


@pytest.mark.fault("K14")
def test_the_server_ends_a_gap_in_which_the_updater_does_not_run() -> None:
    """When the lease has run out the committed model answers; the updater opens the gap once more when it runs."""
    world = full_card(rules=UNLOADED)
    world.publish("1.1.0")
    while world.server.serving:
        world.tick()
    world.server.passes(RULES.observe.trial_lease_seconds)
    assert (world.serving, world.server.serving_on) == ("1.0.0", CARD)
    world.settle()
    assert serves(world) == ("1.1.0", "1.1.0", CARD)
    assert world.record.bridge is None


def test_an_update_whose_gap_ends_again_and_again_is_held() -> None:
    """Each gap costs callers a load: after max_attempts a person looks."""
    world = full_card(rules=UNLOADED)
    world.publish("1.1.0")
    for _ in range(RULES.max_attempts):
        while world.server.serving:
            world.tick()
        world.server.passes(RULES.observe.trial_lease_seconds)
    world.settle()
    assert serves(world) == ("1.0.0", "1.0.0", CARD)
    assert (world.record.under_way.reason, world.record.bridge) == ("INCONCLUSIVE", None)
    assert "loaded the committed revision again" in world.record.under_way.message


def gap_decided(quality: Quality | None = None) -> World:
    """The update to 1.1.0 is to unload 1.0.0, which has not answered the golden questions yet."""
    world = full_card(rules=UNLOADED)
    world.publish("1.1.0", quality)
    while world.record.bridge is None:
        world.tick()
    return world


def set_active_state(world: World, state: str) -> None:
    """The active runner is being loaded again, or is back."""
    held = world.server.slots[world.server.active]
    assert held is not None
    world.server.slots[world.server.active] = replace(held, state=state)


def wait(world: World, ticks: int = 10) -> None:
    """Let the updater look again and again."""
    for _ in range(ticks):
        world.tick()


@pytest.mark.parametrize("strangers", [5 * GIB, 0], ids=["no room for both", "room for both"])
def test_a_gap_waits_until_the_committed_model_can_answer_the_golden_questions(strangers: int) -> None:
    """It is being loaded again: no candidate is loaded meanwhile, and none gets its own answers to be compared with."""
    world = gap_decided(Quality(agrees=5))
    assert world.card is not None
    world.card.strangers = strangers
    set_active_state(world, "LOADING")
    loads = len(world.server.tried)
    wait(world)
    assert (world.stage, len(world.server.tried)) == (Stage.GATING, loads)
    set_active_state(world, "LOADED")
    world.settle()

    assert world.record.under_way.reason == "AGREEMENT"
    assert serves(world) == ("1.0.0", "1.0.0", CARD)


def test_answers_of_a_candidate_are_not_kept_as_the_committed_model_s() -> None:
    """Whatever has asked it."""
    world = gap_decided()
    facts, record = world.facts(), world.record
    assert facts.server is not None
    active = facts.server.active_load_id
    answers = world.golden.run(active, "", "golden", 1.0)
    candidate = gate.apply_result(record, RunGate("of the candidate", "", None), Gated(answers), facts, UNLOADED).record
    committed = gate.apply_result(record, RunGate(active, "", None), Gated(answers), facts, UNLOADED).record

    assert candidate == record
    assert committed.bridge is not None
    assert committed.bridge.answers is not None


def test_a_committed_model_that_is_being_loaded_again_is_not_unloaded_meanwhile() -> None:
    """The server would refuse that, every second."""
    world = gap_decided()
    while world.server.serving:
        world.tick()
    world.server.passes(RULES.observe.trial_lease_seconds)
    set_active_state(world, "LOADING")
    wait(world)
    assert world.event_names().count("step_failed") == 0
    set_active_state(world, "LOADED")
    world.settle()
    assert serves(world) == ("1.1.0", "1.1.0", CARD)


def open_and_lose_result(world: World) -> None:
    """The updater dies after the unload, before that is written."""
    while world.server.serving:
        world.tick("after:RetireLoad")


def reach_activation(world: World) -> None:
    """The updater dies after the gate."""
    while world.serving:
        world.tick()
    world.tick_until(Stage.ACTIVATING)
    world.start_updater()


@pytest.mark.parametrize("dies", [open_and_lose_result, reach_activation])
def test_every_gap_is_counted(dies: Callable[[World], None]) -> None:
    """Whenever the updater dies, and whatever became of the unload: after max_attempts a person looks."""
    world = gap_decided()
    for _ in range(RULES.max_attempts):
        dies(world)
        assert world.serving == ""
        world.server.passes(RULES.observe.trial_lease_seconds)
        assert world.serving == "1.0.0"
    world.settle()

    assert serves(world) == ("1.0.0", "1.0.0", CARD)
    assert (world.record.under_way.reason, world.record.bridge) == ("INCONCLUSIVE", None)


@pytest.mark.parametrize("quality", [Quality(), Quality(right=5)], ids=["the candidate", "the committed model"])
def test_nothing_is_loaded_in_a_gap_beside_a_process_that_is_being_retired(quality: Quality) -> None:
    """Its memory is not free yet; what cannot be loaded for that is not held, and no trouble of the committed one."""
    world = gap_decided(quality)
    while world.server.serving:
        world.tick()
    if quality.right < 20:
        while world.server.slots != [None, None] or world.stage is not Stage.ROLLING_BACK:
            world.tick()
    loads = len(world.server.tried)
    world.server.slots[1] = Held("load that leaves", "", "RETIRING", device=CARD)
    wait(world)
    assert len(world.server.tried) == loads
    world.server.slots[1] = None
    world.settle()

    serving = "1.0.0" if quality.right < 20 else "1.1.0"
    assert serves(world) == (serving, serving, CARD)
    assert world.event_names().count("committed_load_failed") == 0


def test_a_bridge_is_written_as_before_until_a_gap_has_begun() -> None:
    """A build that did not count gaps can read it: it refuses what it does not know."""
    record = gap_decided().record
    assert set(to_json(record)["bridge"]) == {"device", "is_gap", "answers", "failed", "retry_in_seconds"}
