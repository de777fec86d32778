"""An input that ended two runners is refused at once when it is sent again, and ends none."""

from pathlib import Path

import pytest

from common.errors import Failed
from inference.server.model.stats import MAX_INPUTS, PoisonMemory
from inference.server.request import MAX_DEATHS, EntailmentInput
from tests.server.simulator import World

SECONDS = 600.0


def payload(text: str, image: bytes = b"picture") -> EntailmentInput:
    """An input."""
    return EntailmentInput(image, (text,), "")


def is_refused(memory: PoisonMemory, payload: EntailmentInput, now: float) -> bool:
    """Whether an input has ended as many runners as one may."""
    return (memory.count_deaths(payload, now) or 0) >= MAX_DEATHS


def deaths_in_row(world: World) -> int:
    """By which the pause before the next restart is chosen."""
    active = world.manager.pair.active_slot
    return -1 if active is None else active.deaths_in_row


@pytest.mark.fault("L10")
async def test_poison_that_is_sent_again_ends_no_runner(tmp_path: Path) -> None:
    """It is refused before it costs anything; others are answered, and after a while it may be tried again."""
    world = await World(tmp_path, poison_seconds=SECONDS).serving()
    first = world.ask("!crash")
    await world.wait(10)
    with pytest.raises(Failed):
        await first.outcome
    runners = len(world.runners)

    for _ in range(5):
        with pytest.raises(Failed) as error:
            world.ask("!crash")
        assert error.value.reason == "POISON_INPUT"
    answered = world.ask("a dog")
    await world.wait(10)

    assert await answered.outcome
    assert len(world.runners) == runners
    assert world.manager.requests.poison.count(world.clock.monotonic()) == 1

    await world.wait(SECONDS)
    again = world.ask("!crash")
    await world.wait(10)
    with pytest.raises(Failed):
        await again.outcome
    assert len(world.runners) > runners


async def end_after_its_caller(world: World, *texts: str) -> None:
    """Let the caller of the first text leave while it is computed, with the others, and the runner end after that."""
    world.holds_items = True
    first, *others = [world.ask(text) for text in texts]
    await world.settle()
    world.manager.requests.cancel(first)
    world.runner(world.manager.pair.active or "").end()
    world.holds_items = False
    await world.wait(10)
    assert all([await other.outcome for other in others])


@pytest.mark.fault("L10")
async def test_poison_whose_caller_leaves_before_the_runner_ends_is_remembered(tmp_path: Path) -> None:
    """By what the device call contained at the end; the second time it is refused."""
    world = await World(tmp_path, poison_seconds=SECONDS).serving()

    for _ in range(MAX_DEATHS):
        await end_after_its_caller(world, "poison")

    with pytest.raises(Failed) as error:
        world.ask("poison")
    assert error.value.reason == "POISON_INPUT"


@pytest.mark.fault("L10")
async def test_an_input_that_is_answered_is_suspected_no_more(tmp_path: Path) -> None:
    """Runners that are killed while they compute it, from outside, do not make it poison."""
    world = await World(tmp_path, poison_seconds=SECONDS).serving()

    for _ in range(2 * MAX_DEATHS):
        await end_after_its_caller(world, "a dog")
        answered = world.ask("a dog")
        await world.wait(10)
        assert await answered.outcome

    assert not world.ask("a dog").alone


@pytest.mark.fault("L10")
async def test_an_input_that_is_suspected_with_others_is_computed_alone_when_it_is_sent_again(tmp_path: Path) -> None:
    """Its caller had left, so that it could not be run again; the others were, and it alone is suspected."""
    world = await World(tmp_path, poison_seconds=SECONDS).serving()

    await end_after_its_caller(world, "poison", "a dog", "a cat")
    again, innocent = world.ask("poison"), world.ask("a dog")

    assert (again.alone, innocent.alone) == (True, False)
    assert world.manager.requests.poison.count(world.clock.monotonic()) == 0


@pytest.mark.fault("L10")
async def test_poison_makes_the_restart_pauses_neither_grow_nor_start_anew(tmp_path: Path) -> None:
    """The deaths that have other reasons count as if it had not been sent."""
    world = await World(tmp_path).serving()
    for _ in range(2):
        world.runner(world.manager.pair.active or "").end()
        await world.wait(0.5)  # it answers for less than its restart takes
    before = deaths_in_row(world)

    poison = world.ask("!crash")
    await world.wait(10)
    with pytest.raises(Failed):
        await poison.outcome

    assert (before, deaths_in_row(world)) == (2, 2)


def test_an_input_that_ends_a_runner_alone_twice_is_poison() -> None:
    """Although its caller left each time after the first death, and sent it again."""
    memory = PoisonMemory(SECONDS)
    for _ in range(2):
        assert not is_refused(memory, payload("x"), 0.0)
        memory.add(payload("x").identify(), 0.0)

    assert is_refused(memory, payload("x"), 0.0)


def test_the_memory_is_bounded() -> None:
    """In number and in time; a single death is not enough."""
    memory = PoisonMemory(SECONDS)
    for number in range(MAX_INPUTS + 10):
        memory.add(payload(f"{number}").identify(), 0.0, deaths=2)
    memory.add(payload("once").identify(), 0.0)

    assert memory.count(0.0) == MAX_INPUTS - 1
    assert not is_refused(memory, payload("once"), 0.0)
    assert not is_refused(memory, payload("0"), 0.0)
    assert is_refused(memory, payload(f"{MAX_INPUTS}"), SECONDS - 1)
    assert not is_refused(memory, payload(f"{MAX_INPUTS}"), SECONDS)
    assert memory.count(SECONDS) == 0


def test_only_the_same_input_is_refused() -> None:
    """Another picture, statement or premise is another input; so is the same text cut elsewhere."""
    memory = PoisonMemory(SECONDS)
    memory.add(EntailmentInput(memoryview(b"picture"), ("ab", "c"), "").identify(), 0.0, deaths=2)

    assert is_refused(memory, EntailmentInput(b"picture", ("ab", "c"), ""), 0.0)
    for other in (
        EntailmentInput(b"picturf", ("ab", "c"), ""),
        EntailmentInput(b"picture", ("a", "bc"), ""),
        EntailmentInput(b"picture", ("ab",), "c"),
    ):
        assert not is_refused(memory, other, 0.0)


def test_nothing_is_remembered_for_no_time() -> None:
    """The setting switches it off."""
    memory = PoisonMemory(0.0)
    memory.add(payload("x").identify(), 0.0, deaths=2)

    assert not is_refused(memory, payload("x"), 0.0)
