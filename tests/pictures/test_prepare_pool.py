"""Decoders of a pool that prepares items: what fails at one item changes no other one."""

import queue
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
from inference.runner.prepare import PreparePool
from tests.pictures.files import draw, encode


@pytest.mark.fault("L8")
def test_a_decoder_in_the_middle_of_an_answer_takes_no_other_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """No memory for a picture's pixels: its item fails, another decoder takes the next one, and the old one ends."""
    ended: queue.SimpleQueue[PendingItem] = queue.SimpleQueue()
    clock = SystemClock()
    pool = PreparePool(1, 64 * MIB, 60.0, clock, lambda *_, **__: None, ended.put)
    engine = NullEngine()
    engine.pictures = PictureFormat(64, PictureOptions())
    allocate, pids = np.empty, set[int]()

    def fail_once(shape: tuple[int, ...], dtype: type[np.uint8]) -> NDArray[np.uint8]:
        if not pids:
            pids.update(pool.decoders.pids)
            monkeypatch.undo()
            raise MemoryError
        return allocate(shape, dtype)

    def prepare(number: int, picture: bytes) -> PendingItem:
        task = runner_pb2.EntailmentTask(statements=["a dog"])
        message = runner_pb2.Item(item_id=number, entailment=task, may_take_long=True)
        pool.submit(engine, PendingItem(number, 0, number, clock.monotonic() + 60.0, message, picture))
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
