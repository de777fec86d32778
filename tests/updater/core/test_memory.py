"""Updates that run out of memory: before the load, at the load, in the gate, in the trial."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from dev.harness.simulated_card import CARD, CPU, GIB, Card
from tests.updater.core.world import World
from updater.core.breaker import BreakerState
from updater.core.effects import EffectFailure, FailureKind
from updater.core.facts import CommandKind
from updater.core.record import HeldFor, Stage
from updater.service.convert import build_advice, to_model_updates
from updater.status import StatusSnapshot


@pytest.fixture
def carded() -> World:
    """1.0.0 is committed and serves from a card, and 1.1.0 is published."""
    world = World(card=Card())
    world.install("1.0.0")
    world.publish("1.1.0")
    return world


def card_of(world: World) -> Card:
    """The world's card, which is there."""
    assert world.card is not None
    return world.card


def candidate_planned(world: World) -> None:
    """There is no room for a second load, by the plan."""
    card_of(world).strangers = 5 * GIB


def candidate_unplanned(world: World) -> None:
    """There is no room for a second load, and no plan: the load fails."""
    card_of(world).strangers, card_of(world).plan = 5 * GIB, "blind"


def candidate_probed(world: World) -> None:
    """The candidate is loaded, and others take the memory that its items need; the active model needs less."""
    world.tick_until(Stage.GATING)
    while not any(slot is not None and slot.bundle_digest != world.server.serving for slot in world.server.slots):
        world.tick()
    card_of(world).strangers = 3 * GIB
    world.server.frugal = world.server.serving


def on_trial(world: World) -> None:
    """The trial runs out of memory on an item, which the previous model, needing less, answers."""
    world.tick_until(Stage.OBSERVING)
    card_of(world).strangers = 3 * GIB
    world.server.frugal = world.record.committed.bundle_digest if world.record.committed else ""
    world.passes(1.0)


@pytest.mark.fault("K14")
@pytest.mark.parametrize("happens", [candidate_planned, candidate_unplanned, candidate_probed, on_trial])
def test_a_candidate_that_does_not_fit_is_held_without_blame(carded: World, happens: Callable[[World], None]) -> None:
    """The active model serves on from its device; with memory freed, `resume` tries it again."""
    happens(carded)
    carded.tick_until(Stage.HELD)

    update = carded.record.under_way
    assert update.ending is not None
    assert HeldFor.DOES_NOT_FIT is update.ending.held_for
    assert CARD in update.message
    assert carded.quarantined == set()
    assert (carded.record.activation.state, carded.record.activation.failures) == (BreakerState.CLOSED, 0)
    assert (carded.serving, carded.server.serving_on, carded.server.fallback) == ("1.0.0", CARD, None)
    assert "hotslot updates resume" in build_advice(carded.record).sentence

    card_of(carded).strangers, carded.server.frugal = 0, ""
    carded.command(CommandKind.RESUME)
    carded.settle()
    assert (carded.committed, carded.server.serving_on) == ("1.1.0", CARD)


def test_the_message_says_how_much_memory_is_missing(carded: World) -> None:
    """In GiB, with the device."""
    candidate_planned(carded)
    carded.tick_until(Stage.HELD)
    expected = "1.1.0 does not fit beside the serving model on cuda:0: it needs 5.00 GiB, 2.00 GiB are free"
    assert expected == carded.record.under_way.message


NO_ROOM = EffectFailure(
    FailureKind.TRANSIENT, "DOES_NOT_FIT", "the conversion needs about 400 MiB of memory; 100 MiB are free"
)


@pytest.mark.fault("L14")
@pytest.mark.parametrize("reason", ["DOES_NOT_FIT", "OUT_OF_MEMORY"])
def test_a_conversion_that_does_not_fit_is_held_with_the_numbers(reason: str) -> None:
    """It is tried again first, since a previous model may be about to leave; nothing is blamed."""
    world = World()
    world.install("1.0.0")
    world.publish("1.1.0")
    world.converter.faults = [replace(NO_ROOM, reason=reason)] * 3
    world.tick_until(Stage.HELD)

    update = world.record.under_way
    assert update.ending is not None
    assert update.ending.held_for is HeldFor.DOES_NOT_FIT
    assert update.message == "1.1.0: the conversion needs about 400 MiB of memory; 100 MiB are free"
    assert (world.serving, world.quarantined, world.record.failure_ages) == ("1.0.0", set(), ())
    assert world.record.activation.failures == 0

    world.command(CommandKind.RESUME)
    world.settle()
    assert world.committed == "1.1.0"


@pytest.mark.fault("L14")
def test_a_conversion_waits_for_the_warm_previous_model_to_leave() -> None:
    """An update soon after another one finds less memory than there will be."""
    world = World()
    world.install("1.0.0")
    world.publish("1.1.0")
    world.tick_until(Stage.COMMITTING)
    world.tick_until(Stage.IDLE)
    world.publish("1.2.0")
    world.converter.faults = [NO_ROOM]
    world.command(CommandKind.CHECK_NOW)
    while "verification_failed" not in world.event_names():
        world.tick()

    assert world.record.under_way.retry_in_seconds == world.record.warm_seconds_left > world.rules.retry_seconds
    world.settle()
    assert world.committed == "1.2.0"


@pytest.mark.fault("K14")
def test_an_update_is_retried_on_the_cpu_when_trial_and_previous_slot_run_out(carded: World) -> None:
    """The slot was needed for the fallback: nothing is blamed, and no person has to decide."""
    carded.tick_until(Stage.OBSERVING)
    card_of(carded).strangers = 3 * GIB
    carded.passes(1.0)
    assert (carded.serving, carded.server.serving_on) == ("1.0.0", CPU)
    carded.settle()

    assert (carded.committed, carded.server.serving_on) == ("1.1.0", CPU)
    assert "update_started_again" in carded.event_names()
    assert carded.quarantined == set()
    assert BreakerState.OPEN is carded.record.device.state


@pytest.mark.fault("K14")
def test_a_candidate_is_loaded_on_the_cpu_after_the_active_slot_ran_out(carded: World) -> None:
    """The candidate's slot is taken for the fallback, then the candidate is loaded on the active model's device."""
    carded.tick_until(Stage.GATING)
    while len([slot for slot in carded.server.slots if slot is not None]) < 2:
        carded.tick()
    card_of(carded).strangers = 3 * GIB
    carded.passes(1.0)
    assert carded.server.serving_on == CPU
    carded.settle()
    assert (carded.committed, carded.server.serving_on) == ("1.1.0", CPU)
    assert carded.quarantined == set()


def test_status_shows_the_fallback_and_when_the_failback_is_tried(carded: World) -> None:
    """With the reason, the time that is left, and advice."""
    carded.settle()
    card_of(carded).strangers = 9 * GIB
    carded.passes(1.0)
    for _ in range(3):
        carded.tick()
    state = to_model_updates(StatusSnapshot(carded.record))

    assert (
        state.cpu_fallback.device,
        state.cpu_fallback.fallback_device,
        state.cpu_fallback.reason,
    ) == (CARD, CPU, "OUT_OF_MEMORY")
    (device,) = [row for row in state.breakers if row.name == "device"]
    assert (device.state, device.open_left.seconds > 0) == ("OPEN", True)
    assert "cuda:0 ran out of memory" in device.reason
    assert "breaker reset device" in state.advice


@pytest.mark.fault("R10")
def test_a_listing_that_never_changes_shows_its_age(carded: World) -> None:
    """The hub answers, and nothing new has come for a day."""
    carded.settle()
    changed = carded.record.watch.changed_at
    carded.clock.passes(86_400.0)
    carded.settle()

    state = to_model_updates(StatusSnapshot(carded.record))
    assert changed == carded.record.watch.changed_at
    assert state.last_checked_at.seconds - state.listing_changed_at.seconds >= 86_400
    assert state.last_checked_at.seconds - state.newest_listed_at.seconds >= 86_400
    carded.publish("1.2.0")
    carded.settle()
    after = carded.record.watch.changed_at
    assert changed is not None
    assert after is not None
    assert (after - changed).total_seconds() >= 86_400
