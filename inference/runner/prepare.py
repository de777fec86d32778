"""Decodes and tokenises items while the device computes others."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from common import reasons
from common.clock import Clock
from common.errors import InputRefused
from hotslot.runner.v1 import runner_pb2
from inference.runner.engines.base import AddressItem, Engine, EntailmentItem, Item, PictureFormat, Pixels
from inference.runner.items import ENGINE_FAILED, EXPIRED, NOT_LOADED, Failure, PendingItem, postponed_outcome
from inference.runner.pictures.channel import DecodeRequest
from inference.runner.pictures.cost import Cost
from inference.runner.pictures.file import FIELD, PictureRefused
from inference.runner.pictures.joined import JoinedPictures
from inference.runner.pictures.pool import DecoderPool, DecodersMissing
from inference.runner.pictures.process import DecoderEnded, DecoderProcess, EndCause, PictureDropped
from inference.runner.pictures.tally import DECODED, PictureTally
from inference.runner.prepare_queue import (
    JOINED_COST,
    PLACES_KEPT,
    QUICK_COST,
    Pace,
    PrepareJob,
    PrepareQueue,
    pace_of,
)
from inference.runner.reporting import describe_error
from inference.wire import Picture

# Of the limit on a preparation: within it a decoder, or its replacement, gets the picture, and each of them has as long
# by the clock. Together that is less than the limit, at which the server ends this process.
TIMEOUT_SHARE = 0.4
PREPARE_TIMEOUT: Failure = (reasons.PREPARE_TIMEOUT, "the picture was not decoded in time: the machine is overloaded")
_FAILURES = {EndCause.UNWANTED: EXPIRED, EndCause.STARVED: PREPARE_TIMEOUT}
MAX_CRASHES = 2  # decoders that one picture may end
TOO_SLOW = "decoding the picture took many times what its header lets expect; it was stopped"
CRASHED = "decoding the picture ended the decoder process, twice"

Decode = Callable[[PrepareJob, bytes, PictureFormat], Pixels]


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
        self._wait_seconds = TIMEOUT_SHARE * timeout_seconds
        self.decoders = DecoderPool(places, self._wait_seconds, clock, log)
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
            joined = self._queue.take_joined(job)
            if joined:
                self._work_joined([job, *joined])
            elif self._run(job, self._decode):
                self._queue.end(job)
                self._on_end(job.item)
            else:
                self._queue.put_back(job)

    def _work_joined(self, jobs: Sequence[PrepareJob]) -> None:
        """Prepare items whose pictures one decoder gets at once."""
        pictures = JoinedPictures(self.decoders)
        for job in jobs:
            pictures.add(_joined_request(job), job.item.picture)
        for number, job in enumerate(jobs):
            if self._run(job, partial(self._read_joined, pictures, number)):
                self._on_end(job.item)
            else:
                self._queue.put(job)
        pictures.close()
        self._queue.end_joined()

    def _run(self, job: PrepareJob, decode: Decode) -> bool:
        """Prepare an item, or fail it; returns whether that has ended: its picture may have to wait."""
        item = job.item
        self._begun[item.item_id] = self._clock.monotonic()
        try:
            self._prepare(job, decode)
        except PictureDropped:
            return False
        else:
            return True
        finally:
            item.prepared_seconds += self._clock.monotonic() - self._begun.pop(item.item_id)

    def _prepare(self, job: PrepareJob, decode: Decode) -> None:
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
            item.prepared = engine.prepare(self._read(job, engine, message, decode))
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

    def _read(self, job: PrepareJob, engine: Engine, message: runner_pb2.Item, decode: Decode) -> Item:
        """The engine's item, its picture decoded if the engine wants that."""
        item = read_item(message, job.item.picture)
        if engine.pictures is None or not isinstance(item, EntailmentItem):
            return item
        return replace(item, pixels=self._count(job, item.image, engine.pictures, decode))

    def _count(self, job: PrepareJob, content: bytes, pictures: PictureFormat, decode: Decode) -> Pixels:
        """Decode a picture, and count it once it is known what becomes of it."""
        outcome, began = "", self._clock.monotonic()  # a picture that has to wait is counted later
        try:
            pixels = decode(job, content, pictures)
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
        """Decode a picture; a decoder that crashes is replaced once, since the system may have killed it.

        One that had ended before it read the picture does not count: the system may have killed all idle ones.

        Raises:
            NotPrepared: no decoder could be started in time, or the item is not wanted any more.
        """
        crashes = 0
        while crashes < MAX_CRASHES:
            request = DecodeRequest(len(content), pictures.side, pictures.options, job.cost or QUICK_COST)
            decoder = self._take_decoder(job.item)
            try:
                pixels = decoder.decode(
                    request, content, lambda cost: self._may_go_on(job, cost), lambda: self._is_wanted(job)
                )
            except DecoderEnded as end:
                self.decoders.drop(decoder)
                self._log("decoder_ended", level="warning", item_id=job.item.item_id, cause=end.cause.value)
                if job.lacks_place:  # its picture was about to be dropped, and waits for one
                    raise PictureDropped from end
                crashes += end.cause is EndCause.CRASHED
                if end.cause in _FAILURES:
                    raise NotPrepared(_FAILURES[end.cause]) from end
                if end.cause is EndCause.TOO_SLOW:
                    raise PictureRefused(TOO_SLOW, reason="IMAGE_TOO_COSTLY") from end
            except (PictureRefused, PictureDropped) as reason:
                self.decoders.give_back(decoder)
                if job.postponed_seconds:
                    raise Postponed(job.postponed_seconds) from reason
                raise
            except BaseException:  # it may be in the middle of an answer, which the next caller would get
                decoder.close()
                self.decoders.drop(decoder)
                raise
            else:
                self.decoders.give_back(decoder)
                return pixels
        raise PictureRefused(CRASHED, reason="IMAGE_TOO_COSTLY")

    def _take_decoder(self, item: PendingItem) -> DecoderProcess:
        try:
            return self.decoders.take(partial(self._may_wait, item))
        except DecodersMissing as missing:
            raise self._no_decoder(item) from missing

    def _read_joined(
        self, joined: JoinedPictures, number: int, job: PrepareJob, _content: bytes, _pictures: PictureFormat
    ) -> Pixels:
        """The pixels of a picture that was decoded together with others.

        Raises:
            NotPrepared: no decoder could be started in time, or the item is not wanted any more.
            PictureDropped: it has to be decoded alone.
        """
        job.is_alone = True
        try:
            outcome = joined.read(number, partial(self._may_wait, job.item))
        except DecodersMissing as missing:
            raise self._no_decoder(job.item) from missing
        except DecoderEnded as end:
            # The picture that has ended it is this one or one of the next: alone each has only itself to fear.
            self._log("decoder_ended", level="warning", item_id=job.item.item_id, cause=end.cause.value)
            raise PictureDropped from end
        if isinstance(outcome, PictureRefused):
            raise outcome
        if not isinstance(outcome, Cost):
            return outcome
        if pace_of(outcome) is Pace.SLOW and not job.may_take_long:
            raise Postponed(outcome.seconds)
        job.look(outcome)
        raise PictureDropped

    def _may_wait(self, item: PendingItem) -> bool:
        """Whether a preparation that has begun goes on to wait for a decoder."""
        now = self._clock.monotonic()
        return now - self._begun[item.item_id] < self._wait_seconds and item.find_drop_reason(now) is None

    def _no_decoder(self, item: PendingItem) -> NotPrepared:
        return NotPrepared(item.find_drop_reason(self._clock.monotonic()) or PREPARE_TIMEOUT)

    def _may_go_on(self, job: PrepareJob, cost: Cost) -> bool:
        """Whether a picture that is not quick is decoded now; a slow one is postponed unless the server allowed it."""
        if pace_of(cost) is Pace.SLOW and not job.may_take_long:
            job.postponed_seconds = cost.seconds
            return False
        return self._queue.may_go_on(job, cost)

    def _is_wanted(self, job: PrepareJob) -> bool:
        """Whether a decoder goes on; one that is nearly done does in any case, since starting another costs more."""
        return job.pace is not Pace.SLOW or job.item.find_drop_reason(self._clock.monotonic()) is None


def _joined_request(job: PrepareJob) -> DecodeRequest:
    pictures = job.engine.pictures if job.engine is not None else None
    if pictures is None:
        raise RuntimeError("an item without a picture cannot be joined")
    return DecodeRequest(job.file_bytes, pictures.side, pictures.options, JOINED_COST)
