"""Decoders of a pool that prepares items: what fails at one item changes no other one."""

import errno
import os
import queue
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from common.clock import Clock, SystemClock
from dev.bench.null_engine import NullEngine, NullItem
from dev.harness.waiting import eventually
from hotslot.runner.v1 import runner_pb2
from inference.runner.engines.base import Item, PictureFormat, Pixels
from inference.runner.items import ENGINE_FAILED, PendingItem
from inference.runner.pictures import pool as decoder_pool
from inference.runner.pictures.channel import DecodeRequest
from inference.runner.pictures.cost import MIB, Cost
from inference.runner.pictures.options import PictureOptions
from inference.runner.pictures.process import DecoderEnded, EndCause
from inference.runner.prepare import MAX_CRASHES, TIMEOUT_SHARE, PreparePool
from inference.runner.prepare_queue import PLACES_KEPT, SLOW_SECONDS
from tests.common.clock import SimClock
from tests.pictures.files import draw, encode

CLOCK = SystemClock()
LIMIT_SECONDS = 10.0  # of waits that take a tick
NORMAL = Cost(SLOW_SECONDS / 2, 64 * MIB)  # of a picture that is not quick
TIMEOUT_SECONDS = 1.0  # of a preparation, after which the server would end the runner


def picture_engine() -> NullEngine:
    """An engine that wants its pictures decoded."""
    engine = NullEngine()
    engine.pictures = PictureFormat(64, PictureOptions())
    return engine


def picture_item(number: int, picture: bytes, clock: Clock = CLOCK, *, may_take_long: bool = True) -> PendingItem:
    """An item about a picture."""
    task = runner_pb2.EntailmentTask(statements=["a dog"])
    message = runner_pb2.Item(item_id=number, entailment=task, may_take_long=may_take_long)
    return PendingItem(number, 0, number, clock.monotonic() + 60.0, message, picture)


def reason_of(item: PendingItem) -> str:
    """Why an item has failed."""
    assert item.outcome is not None
    return item.outcome.failure.reason


class SimulatedDecoder:
    """A decoder without a process; a test says what becomes of a picture, in a subclass."""

    pid = 0

    def __init__(self, _clock: Clock, _wall_seconds: float) -> None:
        self.idle_since = 0.0

    def wait_ready(self) -> None:
        """It is ready at once."""

    def close(self) -> None:
        """There is nothing to end."""


class HeldEngine(NullEngine):
    """An engine that is in the middle of preparing until the test lets it go on."""

    def __init__(self) -> None:
        self.may_go_on = threading.Event()

    def prepare(self, item: Item) -> NullItem:
        """Wait."""
        self.may_go_on.wait()
        return super().prepare(item)


class SystemWithoutDecoders:
    """A pool on a system that can start no process, and a clock that only the test advances."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.clock = SimClock()
        self._events: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._ended: queue.SimpleQueue[PendingItem] = queue.SimpleQueue()
        monkeypatch.setattr(decoder_pool, "DecoderProcess", self._refuse)
        self.pool = PreparePool(
            1, 64 * MIB, TIMEOUT_SECONDS, self.clock, lambda event, **_: self._events.put(event), self._ended.put
        )

    def submit_picture(self, number: int, *, may_take_long: bool = True) -> PendingItem:
        """An item arrives that needs a decoder."""
        item = picture_item(number, encode(draw(), "PNG"), self.clock, may_take_long=may_take_long)
        self.pool.submit(picture_engine(), item)
        return item

    def submit_address(self, number: int) -> HeldEngine:
        """An item arrives that needs none; its preparation has begun, and takes as long as the test wants."""
        engine = HeldEngine()
        message = runner_pb2.Item(item_id=number, address=runner_pb2.AddressTask(addresses=["an address"]))
        self.pool.submit(engine, PendingItem(number, 0, number, self.clock.monotonic() + 60.0, message))
        return engine

    def await_refusal(self) -> None:
        """A picture waits for a decoder, and one could not be started."""
        assert self._events.get(timeout=LIMIT_SECONDS) == "decoder_not_started"

    def next_ended(self) -> PendingItem:
        """The next item that ends."""
        return self._ended.get(timeout=LIMIT_SECONDS)

    @staticmethod
    def _refuse(*_: object) -> None:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))


@pytest.mark.fault("L8")
def test_a_decoder_in_the_middle_of_an_answer_takes_no_other_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """No memory for a picture's pixels: its item fails, another decoder takes the next one, and the old one ends."""
    ended: queue.SimpleQueue[PendingItem] = queue.SimpleQueue()
    pool = PreparePool(1, 64 * MIB, 60.0, CLOCK, lambda *_, **__: None, ended.put)
    engine = picture_engine()
    allocate, pids = np.empty, set[int]()

    def fail_once(shape: tuple[int, ...], dtype: type[np.uint8]) -> NDArray[np.uint8]:
        if not pids:
            pids.update(pool.decoders.pids)
            monkeypatch.undo()
            raise MemoryError
        return allocate(shape, dtype)

    def prepare(number: int, picture: bytes) -> PendingItem:
        pool.submit(engine, picture_item(number, picture))
        return ended.get(timeout=60.0)

    monkeypatch.setattr(np, "empty", fail_once)
    failed, refused = prepare(1, encode(draw(), "PNG")), prepare(2, b"hello")
    pool.decoders.close()

    assert failed.outcome is not None
    assert refused.outcome is not None
    assert failed.outcome.failure.reason == ENGINE_FAILED[0]
    assert refused.outcome.failure.reason == "IMAGE_UNREADABLE"
    assert pool.decoders.ended == 1
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


@pytest.mark.fault("L8")
def test_a_picture_is_decoded_although_all_idle_decoders_have_been_killed() -> None:
    """By a system that is short of memory, say: none of them had read the picture."""
    ended: queue.SimpleQueue[PendingItem] = queue.SimpleQueue()
    causes: list[str] = []
    pool = PreparePool(2, 64 * MIB, 60.0, CLOCK, lambda *_, **fields: causes.append(fields["cause"]), ended.put)
    decoders = [pool.decoders.take(lambda: True) for _ in range(MAX_CRASHES + 1)]
    for decoder in decoders:
        pool.decoders.give_back(decoder)
    for decoder in decoders:
        os.kill(decoder.pid, signal.SIGKILL)

    pool.submit(picture_engine(), picture_item(1, encode(draw(), "PNG")))
    item = ended.get(timeout=60.0)
    pool.decoders.close()

    assert item.prepared is not None
    assert causes == ["gone"] * len(decoders)


def test_a_picture_that_ends_its_decoders_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """After two of them: the first may have been killed by the system."""
    ended: queue.SimpleQueue[PendingItem] = queue.SimpleQueue()
    causes: list[str] = []
    pool = PreparePool(2, 64 * MIB, 60.0, CLOCK, lambda *_, **fields: causes.append(fields.get("cause", "")), ended.put)
    large = encode(draw(4000, 3000), "PNG", compress_level=1)

    def kill_all(*_: object) -> bool:
        for pid in pool.decoders.pids:
            os.kill(pid, signal.SIGKILL)
        return True

    monkeypatch.setattr(PreparePool, "_may_go_on", kill_all)
    pool.submit(picture_engine(), picture_item(1, large))
    item = ended.get(timeout=60.0)
    pool.decoders.close()

    assert item.outcome is not None
    assert (item.outcome.failure.reason, item.outcome.failure.field) == ("IMAGE_TOO_COSTLY", "image.content")
    assert causes.count("crashed") == MAX_CRASHES


@pytest.mark.fault("L8")
def test_a_picture_for_which_no_decoder_can_be_started_fails_before_the_runner_is_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Memory or processes are short: the picture has no part in it, and a runner without decoders is not stuck."""
    system = SystemWithoutDecoders(monkeypatch)
    system.submit_picture(1)
    system.await_refusal()

    system.clock.advance(TIMEOUT_SHARE * TIMEOUT_SECONDS + 0.01)
    item = system.next_ended()
    system.pool.decoders.close()

    assert reason_of(item) == "PREPARE_TIMEOUT"
    assert item.prepared_seconds < TIMEOUT_SECONDS / 2  # from which on the model would not be ready
    assert [(one.outcome, one.count) for one in system.pool.pictures.read()] == [("PREPARE_TIMEOUT", 1)]


def test_a_picture_that_is_cancelled_does_not_wait_for_a_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its place is free for the next one."""
    system = SystemWithoutDecoders(monkeypatch)
    item = system.submit_picture(1)
    system.await_refusal()

    item.is_cancelled = True
    assert system.next_ended() is item
    system.pool.decoders.close()

    assert reason_of(item) == "CANCELLED"
    assert system.pool.measure() == (0, 0.0)


@pytest.mark.fault("L8")
def test_of_joined_pictures_without_a_decoder_one_fails_and_the_others_wait_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The wait was that of the first one; each of the others has its own."""
    system = SystemWithoutDecoders(monkeypatch)
    held = [system.submit_address(number) for number in range(1, 2 + PLACES_KEPT)]
    eventually(lambda: system.pool.measure()[0] == len(held))
    first, second = [system.submit_picture(number, may_take_long=False) for number in (11, 12)]
    held[0].may_go_on.set()  # one thread is free: it takes both pictures
    assert system.next_ended().prepared is not None
    system.await_refusal()

    system.clock.advance(TIMEOUT_SHARE * TIMEOUT_SECONDS + 0.01)
    assert system.next_ended() is first
    second.is_cancelled = True
    assert system.next_ended() is second
    for engine in held:
        engine.may_go_on.set()
    system.pool.decoders.close()

    assert [reason_of(first), reason_of(second)] == ["PREPARE_TIMEOUT", "CANCELLED"]


@pytest.mark.fault("L8")
def test_all_decoders_that_end_before_they_read_a_picture_have_one_limit_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A system that kills each of them at once does not make the preparation endless."""
    clock = SimClock()
    ended: queue.SimpleQueue[PendingItem] = queue.SimpleQueue()

    class GoneDecoder(SimulatedDecoder):
        def decode(self, *_: object) -> Pixels:
            clock.advance(0.05)
            raise DecoderEnded(EndCause.GONE)

    monkeypatch.setattr(decoder_pool, "DecoderProcess", GoneDecoder)
    pool = PreparePool(1, 64 * MIB, TIMEOUT_SECONDS, clock, lambda *_, **__: None, ended.put)
    pool.submit(picture_engine(), picture_item(1, b"a picture", clock))
    item = ended.get(timeout=LIMIT_SECONDS)
    pool.decoders.close()

    assert reason_of(item) == "PREPARE_TIMEOUT"
    assert item.prepared_seconds < TIMEOUT_SECONDS / 2


@pytest.mark.fault("L8")
@pytest.mark.parametrize("cause", [EndCause.CRASHED, EndCause.STARVED, EndCause.TOO_SLOW])
def test_a_picture_waits_for_memory_although_its_decoder_has_ended_meanwhile(
    monkeypatch: pytest.MonkeyPatch, cause: EndCause
) -> None:
    """It is decoded once, when the memory is free; after that the queue counts neither a place nor bytes too many."""
    release, has_begun, decoded = threading.Event(), threading.Event(), list[bytes]()
    lost: list[bytes] = []
    ended: queue.SimpleQueue[PendingItem] = queue.SimpleQueue()

    class LostDecoder(SimulatedDecoder):
        """It ends when it should drop a picture for which there is no memory."""

        def decode(
            self, request: DecodeRequest, content: bytes, may_go_on: Callable[[Cost], bool], _: Callable[[], bool]
        ) -> Pixels:
            if request.quick != NORMAL and not may_go_on(NORMAL):
                lost.append(content)
                raise DecoderEnded(cause)
            if content == b"first":
                has_begun.set()
                release.wait()
            decoded.append(content)
            return np.zeros((request.side, request.side, 3), np.uint8)

    monkeypatch.setattr(decoder_pool, "DecoderProcess", LostDecoder)
    pool = PreparePool(1, NORMAL.memory_bytes, 60.0, CLOCK, lambda *_, **__: None, ended.put)
    pool.submit(picture_engine(), picture_item(1, b"first"))
    assert has_begun.wait(LIMIT_SECONDS)
    pool.submit(picture_engine(), picture_item(2, b"second"))
    eventually(lambda: lost)
    eventually(lambda: not ended.empty() or pool.measure_queue() == (1, NORMAL.memory_bytes))  # it waits again
    release.set()
    items = [ended.get(timeout=LIMIT_SECONDS) for _ in range(2)]
    pool.decoders.close()

    assert lost == [b"second"]
    assert decoded == [b"first", b"second"]
    assert [item.outcome for item in items] == [None, None]
    assert pool.measure_queue() == (0, 0)
    assert not any(pool._queue._running.values())  # noqa: SLF001  a place too few shows only under load
