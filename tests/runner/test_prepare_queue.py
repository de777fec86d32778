"""Pictures that take long never take the places of quicker ones, nor more memory together than they may."""

import pytest

from dev.bench.null_engine import NullEngine
from hotslot.runner.v1 import runner_pb2
from inference.runner.engines.base import PictureFormat
from inference.runner.items import PendingItem
from inference.runner.pictures.cost import MIB, Cost
from inference.runner.pictures.options import PictureOptions
from inference.runner.prepare_queue import (
    JOINED_BYTES,
    MAX_JOINED,
    PLACES_KEPT,
    SLOW_SECONDS,
    Pace,
    PrepareJob,
    PrepareQueue,
    pace_of,
)

NORMAL = Cost(SLOW_SECONDS / 2, 64 * MIB)
SLOW = Cost(SLOW_SECONDS * 4, 128 * MIB)
WORKING = 2  # pictures that take long, at once
PLACES = WORKING + PLACES_KEPT


class World:
    """A queue, and jobs by number."""

    def __init__(self, memory_bytes: int = 1024 * MIB) -> None:
        self.queue = PrepareQueue(PLACES, memory_bytes)
        self.arrived = 0

    def put(self, cost: Cost | None = None, priority: int = 0) -> PrepareJob:
        """A job arrives; its picture's cost was seen before if it is given."""
        self.arrived += 1
        item = PendingItem(self.arrived, priority, self.arrived, 60.0, None)
        job = PrepareJob(None, item, Pace.QUICK if cost is None else pace_of(cost), cost)
        self.queue.put(job)
        return job

    def begin(self, cost: Cost | None = None) -> PrepareJob:
        """A job arrives and begins at once."""
        job = self.put(cost)
        assert self.queue.take() is job
        return job

    def look(self, job: PrepareJob, cost: Cost) -> bool:
        """The cost of a running job's picture is seen; puts it back if it may not go on."""
        may_go_on = self.queue.may_go_on(job, cost)
        if not may_go_on:
            self.queue.put_back(job)
        return may_go_on

    @property
    def has_work(self) -> bool:
        """Whether a thread that looks for work would find some."""
        return self.queue._choose() is not None  # noqa: SLF001  `take` would wait


@pytest.fixture
def world() -> World:
    """An empty queue with plenty of memory."""
    return World()


def test_items_are_taken_by_priority_and_arrival(world: World) -> None:
    """A lower number comes first."""
    bulk, first, second = world.put(priority=1), world.put(), world.put()

    assert [world.queue.take() for _ in range(3)] == [first, second, bulk]


@pytest.mark.fault("L8")
def test_slow_pictures_leave_places_for_all_others(world: World) -> None:
    """However many come, two places stay free for others, and one of them for quick ones."""
    slow = [world.begin() for _ in range(PLACES)]
    assert [world.look(job, SLOW) for job in slow] == [True, True, False, False]

    normal = world.begin()
    assert world.look(normal, NORMAL)

    assert not world.look(world.begin(), NORMAL)
    assert world.begin().pace is Pace.QUICK
    world.put()
    assert not world.has_work  # all places are taken


def test_a_picture_that_was_put_back_begins_when_a_place_is_free(world: World) -> None:
    """In its turn, before those that came later."""
    running = [world.begin(SLOW) for _ in range(WORKING)]
    held_up = world.begin()
    assert not world.look(held_up, SLOW)
    later = world.put(SLOW)

    world.queue.end(running[0])
    assert world.queue.take() is held_up
    world.queue.end(running[1])
    assert world.queue.take() is later


@pytest.mark.fault("L8")
def test_memory_in_sum_is_bounded() -> None:
    """A picture begins when the estimates of those that are decoded leave room for it; quick ones do not wait."""
    world = World(memory_bytes=150 * MIB)
    first = world.begin(SLOW)

    held_up = world.begin()
    assert not world.look(held_up, NORMAL)
    quick = world.begin()
    world.queue.end(quick)
    world.queue.end(first)

    assert world.queue.take() is held_up


def test_a_picture_that_waits_for_memory_is_not_overtaken() -> None:
    """Smaller ones that come later do not take the memory away from it."""
    world = World(memory_bytes=150 * MIB)
    running = world.begin(NORMAL)
    large = world.put(SLOW)
    small = world.put(NORMAL)
    assert not world.has_work
    assert not world.look(world.begin(), NORMAL)

    world.queue.end(running)
    assert world.queue.take() is large
    world.queue.end(large)
    assert world.queue.take() is small


def test_a_picture_larger_than_all_memory_is_decoded_alone() -> None:
    """The limit on one picture is checked elsewhere; the queue never waits for ever."""
    world = World(memory_bytes=64 * MIB)

    job = world.begin(SLOW)
    assert not world.look(world.begin(), NORMAL)
    world.queue.end(job)

    assert world.has_work


def small_pictures(queue: PrepareQueue, sizes: list[int]) -> list[PrepareJob]:
    """Jobs whose pictures' files have these sizes, put into the queue."""
    engine = NullEngine()
    engine.pictures = PictureFormat(64, PictureOptions())
    jobs = []
    for number, size in enumerate(sizes):
        message = runner_pb2.Item(entailment=runner_pb2.EntailmentTask())
        jobs.append(PrepareJob(engine, PendingItem(number, 0, number, 60.0, message, bytes(size))))
        queue.put(jobs[-1])
    return jobs


@pytest.mark.parametrize(
    ("cpus", "waiting", "expected"), [(1, 3, [3]), (1, 10, [MAX_JOINED, 2]), (2, 8, [4, 4]), (4, 4, [1, 1, 1, 1])]
)
def test_small_pictures_are_joined_where_a_cpu_has_several_to_decode(
    cpus: int, waiting: int, expected: list[int]
) -> None:
    """So that they take one hand-over; the CPUs share what waits."""
    queue = PrepareQueue(cpus + PLACES_KEPT, 1024 * MIB)
    jobs = small_pictures(queue, [5000] * waiting)

    taken: list[list[PrepareJob]] = []
    while len(jobs) > sum(len(group) for group in taken):
        first = queue.take()
        taken.append([first, *queue.take_joined(first)])

    assert [job for group in taken for job in group] == jobs
    assert [len(group) for group in taken] == expected


def test_pictures_that_may_take_long_are_not_joined() -> None:
    """By their size, by what the server says, by what was seen of them, or because a decoder ended with them."""
    queue = PrepareQueue(PLACES, 1024 * MIB)
    large, expected, told, ended = small_pictures(queue, [JOINED_BYTES + 1, 100, 100, 100])
    told.item.message.may_take_long = True  # type: ignore[union-attr]
    expected.look(NORMAL)
    ended.is_alone = True

    assert [job.may_be_joined for job in (large, expected, told, ended)] == [False] * 4


def test_joined_pictures_fit_into_the_socket_together() -> None:
    """Their requests are sent before the first answer is read."""
    queue = PrepareQueue(1 + PLACES_KEPT, 1024 * MIB)
    jobs = small_pictures(queue, [JOINED_BYTES // 2] * 3)

    first = queue.take()

    assert [first, *queue.take_joined(first)] == jobs[:2]


def test_joined_jobs_have_one_place_together() -> None:
    """It is free again when they have ended."""
    queue = PrepareQueue(1 + PLACES_KEPT, 1024 * MIB)
    small_pictures(queue, [100] * 3)
    first = queue.take()
    joined = queue.take_joined(first)
    queue.end_joined()
    others = small_pictures(queue, [100] * 3)

    assert len(joined) == 2
    assert [queue.take() for _ in others] == others
