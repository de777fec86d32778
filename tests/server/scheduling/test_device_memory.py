"""The memory plans of all models on a device are added."""

from pathlib import Path

import pytest

from dev.harness.pointer import commit_bundle
from hotslot.runner.v1 import runner_pb2
from inference.server.runner_client.protocol import EndReason
from inference.server.scheduling.device_memory import DeviceMemories, DeviceMemory, LoadReservation, spread_devices
from tests.server.simulator import SimRunner, World

GIB = 1 << 30


def reserve(memory: DeviceMemory, started: list[int]) -> LoadReservation:
    """A load that notes how much was reserved when it was started."""
    return memory.reserve(started.append)


def test_a_load_is_told_what_the_others_have_still_to_take() -> None:
    """What is planned and taken is missing from the free memory already; what is planned and not taken is added up."""
    memory, started = DeviceMemories().of("cpu"), list[int]()
    reserve(memory, started).update(needed_bytes=5 * GIB, taken_bytes=3 * GIB)
    reserve(memory, started).update(needed_bytes=4 * GIB, taken_bytes=0)
    reserve(memory, started).update(needed_bytes=GIB, taken_bytes=2 * GIB)  # the estimate was too low
    reserve(memory, started)
    assert started == [0, 2 * GIB, 6 * GIB, 6 * GIB]


def test_a_load_starts_when_the_plans_before_it_are_known() -> None:
    """Loads that are requested at once start one after the other, in order; a load that ends is not waited for."""
    memory, started = DeviceMemory(), list[int]()
    first, second, third = (reserve(memory, started) for _ in range(3))
    assert started == [0]

    first.update(needed_bytes=GIB, taken_bytes=0)
    assert (started, third.is_started) == ([0, GIB], False)

    second.release()
    assert started == [0, GIB, GIB]


def test_a_load_that_was_cancelled_is_not_started() -> None:
    """Its process is retired before its turn."""
    memory, started = DeviceMemory(), list[int]()
    first, second = reserve(memory, started), reserve(memory, started)
    second.release()
    second.release()
    first.update(needed_bytes=GIB, taken_bytes=0)
    assert (started, second.is_started) == ([0], False)


def test_other_devices_are_planned_apart() -> None:
    """A load on one card waits for none on another."""
    memories, started = DeviceMemories(), list[int]()
    reserve(memories.of("cuda:0"), started)
    reserve(memories.of("cuda:1"), started)
    assert started == [0, 0]


@pytest.fixture
async def worlds(tmp_path: Path) -> tuple[World, World]:
    """Two models on the same device, whose loads report nothing by themselves."""
    memories = DeviceMemories()
    made = []
    for name in ("shapes", "addresses"):
        state = tmp_path / name
        state.mkdir()
        world = World(state, model=name, device_memories=memories, standby=False)
        world.holds_loads = True
        commit_bundle(state, world.bundle("r1"), name)
        assert world.commands.boot() == ""
        await world.settle()
        made.append(world)
    return made[0], made[1]


def only_runner(world: World) -> SimRunner:
    """The runner of a model without a standby process."""
    (runner,) = [runner for runner in world.runners if not runner.has_ended]
    return runner


async def test_two_models_that_start_together_do_not_count_on_the_same_memory(worlds: tuple[World, World]) -> None:
    """The second loads when the first has planned, and is told of its plan; a loaded model's rest counts too."""
    shapes, addresses = (only_runner(world) for world in worlds)
    assert shapes.loaded is not None
    assert addresses.loaded is None

    shapes.listener.on_load_progress(runner_pb2.LoadProgress(phase="reading", needed_bytes=5 * GIB, taken_bytes=GIB))
    assert addresses.loaded is not None
    assert addresses.loaded.reserved_bytes == 4 * GIB

    addresses.listener.on_load_progress(runner_pb2.LoadProgress(phase="reading", needed_bytes=GIB))
    outcome = runner_pb2.LoadOutcome(device="cpu", needed_bytes=5 * GIB, taken_bytes=3 * GIB, call_rows=4)
    shapes.listener.on_load_outcome(outcome)
    worlds[0].holds_loads = True
    await worlds[0].candidate()
    candidate = worlds[0].runners[-1].loaded
    assert candidate is not None
    assert candidate.reserved_bytes == 3 * GIB  # 2 of the active model, 1 of the other


async def test_a_runner_that_ends_leaves_its_memory(worlds: tuple[World, World]) -> None:
    """A load that waits for the plan of a process that dies goes on."""
    shapes, addresses = (only_runner(world) for world in worlds)
    shapes.end(EndReason.DIED)
    await worlds[0].settle()
    assert addresses.loaded is not None
    assert addresses.loaded.reserved_bytes == 0


async def test_a_load_that_fails_leaves_its_memory(worlds: tuple[World, World]) -> None:
    """A load that does not fit has taken nothing."""
    shapes, addresses = (only_runner(world) for world in worlds)
    failure = runner_pb2.Failure(reason="DOES_NOT_FIT", message="bad")
    shapes.listener.on_load_outcome(runner_pb2.LoadOutcome(device="cpu", failure=failure, needed_bytes=5 * GIB))
    assert addresses.loaded is not None
    assert addresses.loaded.reserved_bytes == 0


CARDS = ["cuda:0", "cuda:1", "cuda:2", "cpu"]


@pytest.mark.parametrize(
    ("plans", "order"),
    [
        ({}, CARDS),
        ({"cuda:0": [GIB]}, ["cuda:1", "cuda:2", "cuda:0", "cpu"]),
        ({"cuda:0": [GIB], "cuda:1": [3 * GIB], "cuda:2": [2 * GIB]}, ["cuda:0", "cuda:2", "cuda:1", "cpu"]),
        ({"cuda:0": [0], "cuda:1": [0, 0]}, ["cuda:2", "cuda:0", "cuda:1", "cpu"]),
        ({"cuda:0": [4 * GIB], "cuda:1": [0], "cuda:2": [GIB]}, ["cuda:2", "cuda:0", "cuda:1", "cpu"]),
        ({"cpu": [0], "cuda:1": [0]}, ["cuda:0", "cuda:2", "cuda:1", "cpu"]),
    ],
)
def test_the_card_with_the_least_planned_memory_is_next(plans: dict[str, list[int]], order: list[str]) -> None:
    """A plan that is not known counts as the largest; the CPU is the last resort."""
    assert spread_devices(CARDS, plans) == order


async def test_models_spread_over_the_cards(tmp_path: Path) -> None:
    """Three models on `auto` and two cards; a new revision of one is loaded on the card of that model."""
    memories = DeviceMemories()
    worlds = [World(tmp_path, model=name, device="auto", device_memories=memories) for name in ("one", "two", "three")]
    for world in worlds:
        world.devices = ["cuda:0", "cuda:1", "cpu"]
        commit_bundle(tmp_path, world.bundle("r1"), world.manager.options.model)
        world.commands.boot()
        await world.settle()
    await worlds[1].wait(5.0)
    await worlds[1].candidate("r2")

    devices = [[slot.load.device for slot in world.pair if slot.load is not None] for world in worlds]
    assert devices == [["cuda:0"], ["cuda:1", "cuda:1"], ["cuda:0"]]
