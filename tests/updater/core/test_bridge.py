"""A card without room for two models: the active one answers from the CPU while the candidate is tried on the card."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from dev.harness.simulated_card import CARD, CPU, GIB, Card
from tests.updater.core.world import RULES, World
from tests.updater.simulators import Quality
from updater.core.bridge import Bridge
from updater.core.effects import EffectFailure, FailureKind
from updater.core.facts import CommandKind
from updater.core.record import HeldFor, Outcome, Stage
from updater.core.rules import Rollout, RolloutRules, Rules
from updater.service.convert import build_advice, to_model_updates
from updater.stages import reconcile
from updater.status import StatusSnapshot

FULL = EffectFailure(FailureKind.PERMANENT, "DOES_NOT_FIT", "another process took it")
BRIDGED = replace(RULES, rollout=RolloutRules(Rollout.CPU_BRIDGE))


def full_card(plan: str = "honest", rules: Rules = BRIDGED) -> World:
    """1.0.0 is committed on a card that has no room for a second model."""
    world = World(card=Card(plan=plan), rules=rules)
    world.install("1.0.0")
    assert world.card is not None
    world.card.strangers = 5 * GIB
    return world


@pytest.fixture
def full() -> World:
    """See `full_card`."""
    return full_card()


def serves(world: World) -> tuple[str, str, str]:
    """What is committed, what answers, and where."""
    return world.committed, world.serving, world.server.serving_on


@pytest.mark.fault("K14")
@pytest.mark.parametrize("plan", ["honest", "blind"])
def test_a_revision_that_does_not_fit_beside_the_active_one_is_committed_over_the_bridge(plan: str) -> None:
    """No caller is lost; the trial's previous slot is the active model on the CPU; at the end one load is there."""
    world = full_card(plan)
    world.publish("1.1.0")
    world.tick_until(Stage.OBSERVING)
    places = {slot.role: slot.device for slot in world.server.state(1.0).slots}
    assert places == {"TRIAL": CARD, "PREVIOUS": CPU}
    assert to_model_updates(StatusSnapshot(world.record)).bridge_device == CARD
    world.settle()

    assert serves(world) == ("1.1.0", "1.1.0", CARD)
    assert sum(slot is not None for slot in world.server.slots) == 1
    assert (world.record.bridge, world.server.lost) == (None, 0)
    assert "bridge_began" in world.event_names()
    assert "does not fit beside" in world.last("bridge_began").message or plan == "blind"


@pytest.mark.fault("K14")
def test_a_revision_that_is_restored_from_the_cpu_returns_to_the_card(full: World) -> None:
    """It answers from the CPU at once, where it was kept loaded after the update; the next update finds the card."""
    full.publish("1.1.0")
    full.tick_until(Stage.COMMITTING)
    while full.committed != "1.1.0" or full.record.bridge is not None:
        full.tick()
    assert {slot.role: slot.device for slot in full.server.state(1.0).slots} == {"ACTIVE": CARD, "PREVIOUS": CPU}
    reverted = reconcile.revert(full.record, full.facts()).record
    assert full.command(CommandKind.ROLLBACK) is None
    full.settle()

    assert serves(full) == ("1.0.0", "1.0.0", CARD)
    assert (full.record.bridge, full.server.lost) == (None, 0)
    assert reverted.bridge == Bridge(CARD)


@pytest.mark.fault("K14")
@pytest.mark.parametrize("rollout", [Rollout.CPU_BRIDGE, Rollout.UNLOAD_FIRST])
def test_a_revision_beside_which_nothing_fits_is_taken_back(rollout: Rollout) -> None:
    """When the one before is not loaded any more: over the CPU, or after a gap; it would answer until a restart."""
    world = full_card(rules=replace(RULES, rollout=RolloutRules(rollout)))
    world.publish("1.1.0")
    world.settle()
    assert sum(slot is not None for slot in world.server.slots) == 1
    lost = world.server.lost
    assert world.command(CommandKind.ROLLBACK) is None
    world.settle()

    assert serves(world) == ("1.0.0", "1.0.0", CARD)
    assert (world.record.bridge, world.quarantined, world.stage) == (None, {"1.1.0"}, Stage.IDLE)
    assert world.outcomes("1.1.0")[-1] is Outcome.ROLLED_BACK
    assert rollout is Rollout.UNLOAD_FIRST or world.server.lost == lost


@pytest.mark.fault("K14")
def test_a_revision_that_can_no_longer_be_loaded_leaves_the_one_that_was_taken_back() -> None:
    """What answers badly is better than nothing: it is unloaded once, and no more."""
    world = full_card(rules=replace(RULES, rollout=RolloutRules(Rollout.UNLOAD_FIRST)))
    world.publish("1.1.0")
    world.settle()
    world.server.load_faults = [FULL] * 1000
    assert world.command(CommandKind.ROLLBACK) is None
    world.tick_until(Stage.HELD)
    lost = world.server.lost
    for _ in range(200):
        world.tick()
    assert (world.serving, world.stage) == ("1.1.0", Stage.HELD)
    assert world.server.lost == lost


BAD: dict[str, tuple[Quality, set[str], Stage]] = {
    "fails the gate": (Quality(right=5), {"1.1.0"}, Stage.IDLE),
    "fails callers": (Quality(fails_callers="ENGINE_FAILED"), {"1.1.0"}, Stage.IDLE),
    "changes answers": (Quality(changes=0.6), set(), Stage.HELD),
    "cannot be loaded": (Quality(loads="WEIGHTS_BROKEN"), {"1.1.0"}, Stage.IDLE),
}


@pytest.mark.fault("K14")
@pytest.mark.parametrize("name", BAD)
def test_the_active_model_returns_to_the_card_when_the_candidate_has_failed(full: World, name: str) -> None:
    """Refused, rolled back or held: the update ends after the return, and the first failing step blames as always."""
    quality, quarantined, stage = BAD[name]
    full.requests_a_second = 10.0
    full.publish("1.1.0", quality)
    full.settle()

    assert serves(full) == ("1.0.0", "1.0.0", CARD)
    assert (full.quarantined, full.stage, full.record.bridge) == (quarantined, stage, None)
    assert sum(slot is not None for slot in full.server.slots) == 1
    assert full.last("bridge_ended").message == "1.0.0 answers from cuda:0"


def test_a_candidate_that_fits_needs_no_bridge() -> None:
    """The active model stays on its card."""
    world = World(card=Card(), rules=BRIDGED)
    world.install("1.0.0")
    world.publish("1.1.0")
    world.settle()
    assert serves(world) == ("1.1.0", "1.1.0", CARD)
    assert world.server.tried.count(CPU) == 0


def test_without_the_policy_the_update_is_held(full: World) -> None:
    """As before."""
    full.with_rules(rollout=RolloutRules(Rollout.TRIAL))
    full.publish("1.1.0")
    full.settle()
    assert full.record.under_way.reason == "DOES_NOT_FIT"
    assert full.server.tried.count(CPU) == 0


def test_a_candidate_that_does_not_fit_alone_is_held(full: World) -> None:
    """The sentence does not blame the model that has left, which returns."""
    assert full.card is not None
    full.publish("1.1.0")
    while full.server.serving_on != CPU:
        full.tick()
    full.card.strangers = 6 * GIB  # room for the active model, which needs no more than it had
    full.server.load_faults = [FULL]
    full.tick_until(Stage.ROLLING_BACK)
    assert full.record.under_way.message.startswith("1.1.0 does not fit in memory")
    full.card.strangers = 5 * GIB
    full.settle()
    assert serves(full) == ("1.0.0", "1.0.0", CARD)
    assert full.record.under_way.reason == "DOES_NOT_FIT"


def test_an_active_model_that_cannot_move_to_the_cpu_stays(full: World) -> None:
    """The update is held, with both reasons."""
    full.publish("1.1.0")
    while full.record.bridge is None:
        full.tick()
    full.server.load_faults = [replace(FULL, message="the host is full")]
    full.settle()
    update = full.record.under_way
    assert update.ending is not None
    assert update.ending.held_for is HeldFor.DOES_NOT_FIT
    assert update.message.endswith("cannot be moved to the CPU: DOES_NOT_FIT: the host is full")
    assert serves(full) == ("1.0.0", "1.0.0", CARD)
    assert full.record.bridge is None


def test_a_return_that_fails_is_tried_again_and_costs_no_answer(full: World) -> None:
    """Others have taken the card meanwhile: the CPU answers, an operator is told, and nothing is reverted."""
    assert full.card is not None
    full.publish("1.1.0", Quality(right=5))
    full.tick_until(Stage.ROLLING_BACK)
    full.card.strangers = 9 * GIB
    for _ in range(400):
        full.tick()
    assert (serves(full), full.stage) == (("1.0.0", "1.0.0", CPU), Stage.IDLE)
    assert "cannot return to cuda:0" in build_advice(full.record).sentence
    assert full.record.trouble is None
    full.card.strangers = 0
    while full.record.bridge is not None:
        full.tick()
    assert (serves(full), full.record.bridge, full.server.lost) == (("1.0.0", "1.0.0", CARD), None, 0)


WHEN: dict[str, Callable[[World], bool]] = {
    "it is decided": lambda world: world.record.bridge is not None,
    "the active model is on the CPU": lambda world: world.server.serving_on == CPU,
    "the candidate is on trial": lambda world: world.stage is Stage.OBSERVING,
}


@pytest.mark.parametrize("when", WHEN)
def test_a_server_that_starts_again_during_the_bridge_boots_on_its_card(full: World, when: str) -> None:
    """An orderly restart costs the update nothing but time: it crosses again."""
    full.publish("1.1.0")
    while not WHEN[when](full):
        full.tick()
    full.stop_server()
    assert full.server.serving_on == CARD
    full.settle()
    assert serves(full) == ("1.1.0", "1.1.0", CARD)
    assert full.outcomes("1.1.0") == [Outcome.COMMITTED]


def settle_after_death(world: World, number: int, dies: str) -> str:
    """Let the updater die `number` steps after the first one; every second revision is a bad one.

    Returns:
        The version that is to serve then.
    """
    world.publish("1.1.0", Quality(right=5) if number % 2 else Quality())
    while world.record.bridge is None:
        world.tick()
    for _ in range(number):
        world.tick()
    world.tick(dies)
    world.settle()
    return "1.0.0" if number % 2 else "1.1.0"


@pytest.mark.parametrize("dies", ["before", "after"])
def test_an_updater_that_dies_at_any_step_of_the_bridge_goes_on(dies: str) -> None:
    """The record names the device before the first step; every step follows from what the server holds."""
    for number in range(24):
        world = full_card()
        expected = settle_after_death(world, number, dies)
        assert serves(world) == (expected, expected, CARD)
        assert world.record.bridge is None
        assert world.server.lost == 0


def test_an_operator_who_approves_a_held_revision_crosses_again(full: World) -> None:
    """The hold did not keep the active model on the CPU."""
    full.requests_a_second = 10.0
    full.publish("1.1.0", Quality(changes=0.6))
    full.settle()
    assert serves(full) == ("1.0.0", "1.0.0", CARD)
    full.command(CommandKind.APPROVE, full.record.under_way.source_digest)
    full.settle()
    assert serves(full) == ("1.1.0", "1.1.0", CARD)
    assert full.event_names().count("bridge_began") == 2


@pytest.mark.fault("K14")
def test_a_journal_that_is_lost_during_the_bridge_does_not_leave_the_model_on_the_cpu(full: World) -> None:
    """The new journal knows what is committed, and the server says where it answers and that there is a card."""
    full.publish("1.1.0", Quality(right=5))
    while not WHEN["the active model is on the CPU"](full):
        full.tick()
    full.disk.record = None
    full.start_updater()
    full.settle()

    assert serves(full) == ("1.0.0", "1.0.0", CARD)
    assert (full.record.bridge, full.server.lost) == (None, 0)
