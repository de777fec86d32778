"""Which item is prepared next, and the places in which items are: pictures that take long hold up no others."""

import heapq
import threading
from dataclasses import dataclass
from enum import IntEnum

from inference.runner.engines.base import Engine
from inference.runner.items import PendingItem
from inference.runner.pictures.cost import MIB, Cost

QUICK_COST = Cost(seconds=0.03, memory_bytes=32 * MIB)  # most pictures of the web
SLOW_SECONDS = 0.15  # above most pictures of phones
JOINED_COST = Cost(seconds=0.005, memory_bytes=32 * MIB)  # of each picture that is decoded together with others
JOINED_BYTES = 64 << 10  # of their files together; a socket takes more at once
MAX_JOINED = 8


def is_within(cost: Cost, limit: Cost) -> bool:
    """Whether neither part of a cost exceeds a limit."""
    return cost.seconds <= limit.seconds and cost.memory_bytes <= limit.memory_bytes


class Pace(IntEnum):
    """How long a preparation takes. The value is how many places are kept free for quicker ones."""

    QUICK = 0
    NORMAL = 1
    SLOW = 2


PLACES_KEPT = max(Pace)


def pace_of(cost: Cost) -> Pace:
    """The pace of a picture that is not quick."""
    return Pace.SLOW if cost.seconds > SLOW_SECONDS else Pace.NORMAL


@dataclass(slots=True, eq=False)
class PrepareJob:
    """The preparation of one item."""

    engine: Engine | None
    item: PendingItem
    pace: Pace = Pace.QUICK  # until it is known
    cost: Cost | None = None  # the estimate, once it is known
    postponed_seconds: float = 0.0  # the estimate of a picture that takes long, if the server did not say that it may
    is_alone: bool = False  # its picture is decoded alone: it takes longer than those that are joined, or ended them
    lacks_place: bool = False  # it is not quick, and has only a quick one's place: it has to be put back

    @property
    def may_take_long(self) -> bool:
        """Whether the server has said so."""
        return self.item.message is not None and self.item.message.may_take_long

    @property
    def may_be_joined(self) -> bool:
        """Whether its picture, of which only the size is known, may be decoded together with others."""
        has_decoder = self.engine is not None and self.engine.pictures is not None
        is_quick = self.cost is None and not self.may_take_long  # for all that is known
        return has_decoder and is_quick and not self.is_alone and 0 < self.file_bytes <= JOINED_BYTES

    @property
    def file_bytes(self) -> int:
        """Size of its picture's file."""
        return len(self.item.picture)

    def look(self, cost: Cost) -> None:
        """Keep the estimate of a picture that was not decoded together with others, but is decoded alone."""
        self.is_alone = True
        if not is_within(cost, QUICK_COST):
            self.pace, self.cost = pace_of(cost), cost

    @property
    def memory_bytes(self) -> int:
        """Memory that it takes beside the quick ones."""
        return self.cost.memory_bytes if self.cost else 0


class PrepareQueue:
    """Items to prepare, by priority and arrival, and the places in which they are prepared. Any thread.

    Of the places, one is kept free for items that are not slow, and another one for quick ones. Items start as quick;
    the first look at a picture may change that.

    Args:
        places: preparations at once, more than PLACES_KEPT.
        memory_bytes: memory that all pictures but the quick ones take together, by their estimates; one picture that
            needs more is decoded alone.
    """

    def __init__(self, places: int, memory_bytes: int) -> None:
        self._places = places
        self._memory_bytes = memory_bytes
        self._waiting: dict[Pace, list[tuple[int, int, PrepareJob]]] = {pace: [] for pace in Pace}
        self._running: dict[Pace, int] = dict.fromkeys(Pace, 0)
        self._used_bytes = 0
        self._changed = threading.Condition()

    def put(self, job: PrepareJob) -> None:
        """Add a job."""
        with self._changed:
            heapq.heappush(self._waiting[job.pace], (*job.item.order, job))
            self._changed.notify()

    def take(self) -> PrepareJob:
        """Remove and return the first job for which there is a place; waits for one."""
        with self._changed:
            while (job := self._choose()) is None:
                self._changed.wait()
            heapq.heappop(self._waiting[job.pace])
            self._begin(job)
            return job

    def take_joined(self, job: PrepareJob) -> list[PrepareJob]:
        """Remove and return further jobs that are prepared in the place of this one, which was just taken.

        They are the next ones with small pictures: this thread's part, if those of the other CPUs take theirs.
        """
        if not job.may_be_joined:
            return []
        with self._changed:
            waiting = self._waiting[Pace.QUICK]
            threads = 1 + max(0, self._places - PLACES_KEPT - sum(self._running.values()))
            most = min(MAX_JOINED, -(-(1 + len(waiting)) // threads)) - 1
            joined: list[PrepareJob] = []
            left = JOINED_BYTES - job.file_bytes
            while waiting and len(joined) < most and waiting[0][-1].may_be_joined and waiting[0][-1].file_bytes <= left:
                joined.append(heapq.heappop(waiting)[-1])
                left -= joined[-1].file_bytes
            return joined

    def end_joined(self) -> None:
        """Free the place of jobs that were prepared together."""
        with self._changed:
            self._running[Pace.QUICK] -= 1
            self._changed.notify_all()

    def may_go_on(self, job: PrepareJob, cost: Cost) -> bool:
        """Set the estimate of a running job; returns whether it has a place now, else it has to be put back."""
        with self._changed:
            self._finish(job)
            job.pace, job.cost = pace_of(cost), cost
            if self._has_place(job) and not self._is_overtaking(job):
                self._begin(job)
                return True
            self._running[Pace.QUICK] += 1  # until it is put back
            job.lacks_place = True
            return False

    def put_back(self, job: PrepareJob) -> None:
        """Let a job wait that may not go on."""
        with self._changed:
            self._finish(job)
            heapq.heappush(self._waiting[job.pace], (*job.item.order, job))
            self._changed.notify_all()

    def end(self, job: PrepareJob) -> None:
        """Free a job's place."""
        with self._changed:
            self._finish(job)
            self._changed.notify_all()

    def measure(self) -> tuple[int, int]:
        """Return how many jobs wait, and the memory of those that run, bytes."""
        with self._changed:
            return sum(map(len, self._waiting.values())), self._used_bytes

    def _choose(self) -> PrepareJob | None:
        firsts = sorted(waiting[0] for waiting in self._waiting.values() if waiting)
        is_short = False  # of memory: what comes later must not take it away from the first in need
        for *_, job in firsts:
            if self._has_place(job) and not (is_short and job.cost):
                return job
            is_short |= not self._has_memory(job)
        return None

    def _is_overtaking(self, job: PrepareJob) -> bool:
        """Whether another job's turn comes first that waits for memory."""
        firsts = [waiting[0] for pace, waiting in self._waiting.items() if waiting and pace is not Pace.QUICK]
        return any(other.item.order < job.item.order and not self._has_memory(other) for *_, other in firsts)

    def _has_place(self, job: PrepareJob) -> bool:
        as_slow = sum(count for pace, count in self._running.items() if pace >= job.pace)
        return as_slow < self._places - job.pace and self._has_memory(job)

    def _has_memory(self, job: PrepareJob) -> bool:
        return not (self._used_bytes and job.cost) or self._used_bytes + job.memory_bytes <= self._memory_bytes

    def _begin(self, job: PrepareJob) -> None:
        self._running[job.pace] += 1
        self._used_bytes += job.memory_bytes

    def _finish(self, job: PrepareJob) -> None:
        if job.lacks_place:
            job.lacks_place = False
            self._running[Pace.QUICK] -= 1
        else:
            self._running[job.pace] -= 1
            self._used_bytes -= job.memory_bytes
