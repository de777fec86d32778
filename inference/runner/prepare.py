"""Decodes and tokenises items while the device computes others.

`PrepareQueue` decides which item is prepared next, so that pictures that take long never keep the others waiting.
"""

import heapq
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import IntEnum

from common.clock import Clock
from common.errors import InputRefused
from hotslot.runner.v1 import runner_pb2
from inference.runner.engines.base import AddressItem, Engine, EntailmentItem, Item, PictureFormat, Pixels
from inference.runner.items import ENGINE_FAILED, EXPIRED, NOT_LOADED, Failure, PendingItem, postponed_outcome
from inference.runner.pictures.channel import DecodeRequest
from inference.runner.pictures.cost import MIB, Cost
from inference.runner.pictures.file import FIELD, PictureRefused
from inference.runner.pictures.pool import DecoderPool
from inference.runner.pictures.process import DecoderEnded, EndCause, PictureDropped
from inference.runner.pictures.tally import DECODED, PictureTally
from inference.runner.reporting import describe_error
from inference.wire import Picture

QUICK_COST = Cost(seconds=0.03, memory_bytes=32 * MIB)  # most pictures of the web
SLOW_SECONDS = 0.15  # above most pictures of phones


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

    @property
    def may_take_long(self) -> bool:
        """Whether the server has said so."""
        return self.item.message is not None and self.item.message.may_take_long

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

    def may_go_on(self, job: PrepareJob, cost: Cost) -> bool:
        """Set the estimate of a running job; returns whether it has a place now, else it has to be put back."""
        with self._changed:
            self._finish(job)
            job.pace, job.cost = pace_of(cost), cost
            if self._has_place(job) and not self._is_overtaking(job):
                self._begin(job)
                return True
            self._running[Pace.QUICK] += 1  # until it is put back
            return False

    def put_back(self, job: PrepareJob) -> None:
        """Let a job wait that may not go on."""
        with self._changed:
            self._running[Pace.QUICK] -= 1
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
        self._running[job.pace] -= 1
        self._used_bytes -= job.memory_bytes


TIMEOUT_SHARE = 0.4  # of the limit on a preparation: a decoder ends before the server doubts this process
PREPARE_TIMEOUT: Failure = ("PREPARE_TIMEOUT", "the picture was not decoded in time: the machine is overloaded")
_FAILURES = {EndCause.UNWANTED: EXPIRED, EndCause.STARVED: PREPARE_TIMEOUT}
MAX_CRASHES = 2  # decoders that one picture may end
TOO_SLOW = "decoding the picture took many times what its header lets expect; it was stopped"
CRASHED = "decoding the picture ended the decoder process, twice"


class Postponed(Exception):
    """The item's picture takes long, and the server did not say that it may."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"decoding takes {seconds:.2f} s")
        self.seconds = seconds


class NotPrepared(Exception):
    """The item fails although its input may be valid."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure[1])
        self.failure = failure


class TaskMissing(ValueError):
    """The server sent an item without a known task."""


def read_item(message: runner_pb2.Item, picture: Picture = b"") -> Item:
    """Convert a message and its picture to an engine's item, which has a copy of the picture.

    Raises:
        TaskMissing: the message has no task that this build knows.
    """
    match message.WhichOneof("task"):
        case "entailment":
            task = message.entailment
            return EntailmentItem(bytes(picture), tuple(task.statements), task.premise)
        case "address":
            return AddressItem(tuple(message.address.addresses))
        case _:
            raise TaskMissing(f"item {message.item_id} has no task")


class PreparePool:
    """Threads that prepare items, by priority and then in order of arrival; decoder processes decode their pictures.

    Args:
        processes: decoder processes that may work on pictures that take long, at once; PLACES_KEPT more work on others.
        memory_bytes: of all pictures that are decoded at once, but the quick ones.
        timeout_seconds: of one preparation, after which the server ends this process.
        on_end: called once for each submitted item, from any thread, when it has `prepared` or `outcome` set.
    """

    def __init__(
        self,
        processes: int,
        memory_bytes: int,
        timeout_seconds: float,
        clock: Clock,
        log: Callable[..., None],
        on_end: Callable[[PendingItem], None],
    ) -> None:
        self._clock = clock
        self._log = log
        self._on_end = on_end
        self._processes = max(1, processes)
        places = self._processes + PLACES_KEPT
        self.decoders = DecoderPool(places, TIMEOUT_SHARE * timeout_seconds, clock, log)
        self._queue = PrepareQueue(places, memory_bytes)
        self.pictures = PictureTally()
        self._begun: dict[int, float] = {}  # by item id: when its preparation began
        for number in range(places):
            threading.Thread(target=self._work, name=f"prepare-{number}", daemon=True).start()

    def submit(self, engine: Engine | None, item: PendingItem) -> None:
        """Queue an item. Any thread."""
        self._queue.put(PrepareJob(engine, item))

    def measure(self) -> tuple[int, float]:
        """Return how many preparations have begun and not ended, and the seconds of the oldest. Any thread."""
        begun = list(self._begun.values())
        return len(begun), self._clock.monotonic() - min(begun) if begun else 0.0

    def measure_queue(self) -> tuple[int, int]:
        """Return how many items wait for a place, and the memory of the pictures that are decoded. Any thread."""
        return self._queue.measure()

    def _work(self) -> None:
        while True:
            job = self._queue.take()
            item = job.item
            self._begun[item.item_id] = self._clock.monotonic()
            try:
                self._prepare(job)
            except PictureDropped:
                has_ended = False
            else:
                has_ended = True
            item.prepared_seconds += self._clock.monotonic() - self._begun.pop(item.item_id)
            if has_ended:
                self._queue.end(job)
                self._on_end(item)
            else:
                self._queue.put_back(job)

    def _prepare(self, job: PrepareJob) -> None:
        """Prepare an item, or fail it.

        Raises:
            PictureDropped: there is no place for its picture now.
        """
        item, engine, message = job.item, job.engine, job.item.message
        drop_reason = item.find_drop_reason(self._clock.monotonic())
        if engine is None or message is None or drop_reason:
            item.drop_input()
            item.fail(drop_reason or NOT_LOADED)
            return
        try:
            item.prepared = engine.prepare(self._read(job, engine, message))
        except PictureDropped:
            raise
        except InputRefused as refusal:
            item.fail((refusal.reason, str(refusal)), refusal.field)
        except PictureRefused as refusal:
            item.fail((refusal.reason, str(refusal)), FIELD)
        except Postponed as postponed:
            item.outcome = postponed_outcome(item.item_id, postponed.seconds, self._processes + 1)
        except NotPrepared as reason:
            item.fail(item.find_drop_reason(self._clock.monotonic()) or reason.failure)
        except Exception as error:  # noqa: BLE001  an error of any kind fails this item only
            self._log("prepare_failed", level="warning", item_id=item.item_id, error=describe_error(error))
            item.fail(ENGINE_FAILED)
        else:
            if item.prepared.rows < 1:
                item.fail(ENGINE_FAILED)
        item.drop_input()

    def _read(self, job: PrepareJob, engine: Engine, message: runner_pb2.Item) -> Item:
        """The engine's item, its picture decoded if the engine wants that."""
        item = read_item(message, job.item.picture)
        if engine.pictures is None or not isinstance(item, EntailmentItem):
            return item
        return replace(item, pixels=self._count(job, item.image, engine.pictures))

    def _count(self, job: PrepareJob, content: bytes, pictures: PictureFormat) -> Pixels:
        """Decode a picture, and count it once it is known what becomes of it."""
        outcome, began = "", self._clock.monotonic()  # a picture that has to wait is counted later
        try:
            pixels = self._decode(job, content, pictures)
            outcome = DECODED
        except PictureRefused as refusal:
            outcome = refusal.reason
            raise
        except NotPrepared as reason:
            outcome = reason.failure[0]
            raise
        else:
            return pixels
        finally:
            if outcome:
                self.pictures.add(content, outcome, self._clock.monotonic() - began)

    def _decode(self, job: PrepareJob, content: bytes, pictures: PictureFormat) -> Pixels:
        """Decode a picture; a decoder that crashes is replaced once, since the system may have killed it."""
        for _ in range(MAX_CRASHES):
            request = DecodeRequest(len(content), pictures.side, pictures.options, job.cost or QUICK_COST)
            decoder = self.decoders.take()
            try:
                pixels = decoder.decode(
                    request, content, lambda cost: self._may_go_on(job, cost), lambda: self._is_wanted(job)
                )
            except DecoderEnded as end:
                self.decoders.drop(decoder)
                self._log("decoder_ended", level="warning", item_id=job.item.item_id, cause=end.cause.value)
                if end.cause in _FAILURES:
                    raise NotPrepared(_FAILURES[end.cause]) from end
                if end.cause is EndCause.TOO_SLOW:
                    raise PictureRefused(TOO_SLOW, reason="IMAGE_TOO_COSTLY") from end
            except (PictureRefused, PictureDropped) as reason:
                self.decoders.give_back(decoder)
                if job.postponed_seconds:
                    raise Postponed(job.postponed_seconds) from reason
                raise
            else:
                self.decoders.give_back(decoder)
                return pixels
        raise PictureRefused(CRASHED, reason="IMAGE_TOO_COSTLY")

    def _may_go_on(self, job: PrepareJob, cost: Cost) -> bool:
        """Whether a picture that is not quick is decoded now; a slow one is postponed unless the server allowed it."""
        if pace_of(cost) is Pace.SLOW and not job.may_take_long:
            job.postponed_seconds = cost.seconds
            return False
        return self._queue.may_go_on(job, cost)

    def _is_wanted(self, job: PrepareJob) -> bool:
        """Whether a decoder goes on; one that is nearly done does in any case, since starting another costs more."""
        return job.pace is not Pace.SLOW or job.item.find_drop_reason(self._clock.monotonic()) is None
