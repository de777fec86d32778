"""Decoders of a pool that prepares items: what fails at one item changes no other one."""

import os
import queue
import signal
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from common.clock import SystemClock
from dev.bench.null_engine import NullEngine
from hotslot.runner.v1 import runner_pb2
from inference.runner.engines.base import PictureFormat
from inference.runner.items import ENGINE_FAILED, PendingItem
from inference.runner.pictures.cost import MIB
from inference.runner.pictures.options import PictureOptions
from inference.runner.prepare import MAX_CRASHES, PreparePool
from tests.pictures.files import draw, encode

CLOCK = SystemClock()


def picture_engine() -> NullEngine:
    """An engine that wants its pictures decoded."""
    engine = NullEngine()
    engine.pictures = PictureFormat(64, PictureOptions())
    return engine


def picture_item(number: int, picture: bytes) -> PendingItem:
    """An item about a picture, which may take long."""
    task = runner_pb2.EntailmentTask(statements=["a dog"])
    message = runner_pb2.Item(item_id=number, entailment=task, may_take_long=True)
    return PendingItem(number, 0, number, CLOCK.monotonic() + 60.0, message, picture)


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
    decoders = [pool.decoders.take() for _ in range(MAX_CRASHES + 1)]
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
