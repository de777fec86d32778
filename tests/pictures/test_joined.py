"""Small pictures that one decoder gets at once: each has its own outcome, whatever becomes of the others."""

import contextlib
import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from common.clock import SystemClock
from inference.runner.pictures.channel import DecodeRequest
from inference.runner.pictures.cost import MIB, Cost
from inference.runner.pictures.decode import plan_picture, render
from inference.runner.pictures.file import PictureRefused
from inference.runner.pictures.joined import JoinedPictures
from inference.runner.pictures.options import PictureOptions
from inference.runner.pictures.pool import DecoderPool
from inference.runner.pictures.process import DecoderEnded, PictureDropped
from tests.pictures.files import draw, encode

SIDE = 64
OPTIONS = PictureOptions()
QUICK = Cost(0.005, 32 * MIB)
PNG, JPEG = encode(draw(), "PNG"), encode(draw(), "JPEG")
LARGE = encode(draw(2000, 1500), "PNG")


@pytest.fixture
def pool() -> Iterator[DecoderPool]:
    """A pool of one process."""
    pool = DecoderPool(1, 60.0, SystemClock(), lambda *_, **__: None)
    yield pool
    pool.close()


def always() -> bool:
    """Whether a test waits for a decoder."""
    return True


def join(pool: DecoderPool, contents: Sequence[bytes]) -> JoinedPictures:
    """These pictures, for one decoder."""
    joined = JoinedPictures(pool)
    for content in contents:
        joined.add(DecodeRequest(len(content), SIDE, OPTIONS, QUICK), content)
    return joined


def test_each_picture_has_its_own_outcome(pool: DecoderPool) -> None:
    """Pixels as if it were alone, a refusal, or the estimate of one that is not quick; the decoder goes on."""
    expected = [np.asarray(render(plan_picture(one, SIDE, OPTIONS), OPTIONS.rendering)) for one in (PNG, JPEG)]
    joined = join(pool, [PNG, b"hello", LARGE, JPEG, b""])

    first, refused, estimated, last, empty = [joined.read(number, always) for number in range(5)]
    joined.close()
    others = join(pool, [PNG])
    again = others.read(0, always)
    others.close()

    assert isinstance(first, np.ndarray)
    assert isinstance(last, np.ndarray)
    assert isinstance(again, np.ndarray)
    assert np.array_equal(first, expected[0])
    assert np.array_equal(last, expected[1])
    assert np.array_equal(again, expected[0])
    assert [type(refused), type(empty)] == [PictureRefused, PictureRefused]
    assert estimated == plan_picture(LARGE, SIDE, OPTIONS).cost
    assert pool.ended == 0


def test_a_picture_that_is_not_wanted_any_more_is_passed_over(pool: DecoderPool) -> None:
    """Its pixels are read for none of the others; the decoder can be used again."""
    joined = join(pool, [PNG, b"hello", JPEG, b"hello"])
    found = joined.read(2, always)
    joined.close()

    others = join(pool, [b"hello"])
    refused = others.read(0, always)
    others.close()

    assert isinstance(found, np.ndarray)
    assert np.array_equal(found, np.asarray(render(plan_picture(JPEG, SIDE, OPTIONS), OPTIONS.rendering)))
    assert isinstance(refused, PictureRefused)


@pytest.mark.fault("L8")
def test_pictures_of_a_decoder_that_has_ended_are_dropped(pool: DecoderPool) -> None:
    """One of them has ended it: each has to be decoded alone."""
    decoder = pool.take(always)
    pool.give_back(decoder)
    os.kill(decoder.pid, signal.SIGKILL)
    joined = join(pool, [PNG, JPEG, PNG])

    with pytest.raises(DecoderEnded):
        joined.read(0, always)
    for number in (1, 2):
        with pytest.raises(PictureDropped):
            joined.read(number, always)
    joined.close()
    other = pool.take(always)
    pool.give_back(other)

    assert other.pid != decoder.pid
    assert pool.ended == 1


@pytest.mark.fault("L8")
@pytest.mark.parametrize("failing", [0, 2])
def test_a_decoder_in_the_middle_of_an_answer_is_not_given_back(
    pool: DecoderPool, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    """No memory for a picture's pixels: the next caller's picture does not get the rest of the answers as its own."""
    decoder = pool.take(always)
    pool.give_back(decoder)
    joined = join(pool, [PNG, JPEG, PNG])
    allocate, calls = np.empty, iter(range(100))

    def fail_once(shape: tuple[int, ...], dtype: type[np.uint8]) -> NDArray[np.uint8]:
        if next(calls) == failing:
            raise MemoryError
        return allocate(shape, dtype)

    monkeypatch.setattr(np, "empty", fail_once)
    with pytest.raises(MemoryError) if failing == 0 else contextlib.nullcontext():
        joined.read(0, always)
    joined.close()
    monkeypatch.undo()
    others = join(pool, [b"hello"])
    refused = others.read(0, always)
    others.close()

    assert isinstance(refused, PictureRefused)
    assert not Path(f"/proc/{decoder.pid}").exists()
    assert pool.ended == 1
