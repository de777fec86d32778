"""Real decoder processes: they decode as this process does, and one that fails costs only its own picture."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from common.clock import SystemClock
from dev.harness.waiting import eventually
from dev.pictures.kinds import every_kind
from inference.runner.engines.base import Pixels
from inference.runner.pictures import process as decoder_process
from inference.runner.pictures.channel import NO_COST, DecodeRequest
from inference.runner.pictures.cost import MIB, Cost, PictureLimits
from inference.runner.pictures.decode import plan_picture, render
from inference.runner.pictures.decoder import ADDED_OOM_SCORE
from inference.runner.pictures.file import PictureRefused
from inference.runner.pictures.options import PictureOptions, Rendering
from inference.runner.pictures.pool import DecoderPool
from inference.runner.pictures.process import DecoderEnded, DecoderProcess, EndCause, PictureDropped
from inference.runner.process import CANDIDATE_NICENESS, MAX_OOM_SCORE_ADJ, read_priority
from tests.pictures.files import draw, encode, exif, with_exif

SIDE = 64
OPTIONS = PictureOptions()
SMALL = encode(draw(), "JPEG")
LARGE = encode(draw(4000, 3000), "PNG", compress_level=1)
WALL_SECONDS = 60.0
ANY = Cost(60.0, 4096 * MIB)


@pytest.fixture
def decoder() -> Iterator[DecoderProcess]:
    """A process that is ready."""
    process = DecoderProcess(SystemClock(), WALL_SECONDS)
    process.wait_ready()
    yield process
    process.close()


@pytest.fixture
def pool() -> Iterator[DecoderPool]:
    """A pool of two processes."""
    pool = DecoderPool(2, WALL_SECONDS, SystemClock(), lambda *_, **__: None)
    yield pool
    pool.close()


def always() -> bool:
    """Whether a test waits for a decoder."""
    return True


def ask(
    decoder: DecoderProcess,
    content: bytes,
    quick: Cost = ANY,
    *,
    options: PictureOptions = OPTIONS,
    may_go_on: Callable[[Cost], bool] = lambda _: True,
    is_wanted: Callable[[], bool] = lambda: True,
) -> Pixels:
    """Decode a picture there."""
    return decoder.decode(DecodeRequest(len(content), SIDE, options, quick), content, may_go_on, is_wanted)


def test_broken_metadata_writes_nothing_to_the_log() -> None:
    """Pillow warns of a tag that does not fit into the file; the runner's standard error is the server's log."""
    broken = with_exif(draw(), "JPEG", exif((0x0112, 3, 500, bytes(4))))
    log, log_end = os.pipe()  # a decoder can write to no file
    kept = os.dup(2)
    os.dup2(log_end, 2)
    try:
        decoder = DecoderProcess(SystemClock(), WALL_SECONDS)
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(log_end)
    decoder.wait_ready()

    ask(decoder, broken, options=PictureOptions(rendering=Rendering.AS_STOCK))
    decoder.close()

    with os.fdopen(log, "rb") as lines:
        assert lines.read() == b""


def test_a_decoder_answers_picture_after_picture(decoder: DecoderProcess) -> None:
    """Its pixels are those of decoding here; after a refusal and a drop it goes on."""
    expected = render(plan_picture(SMALL, SIDE, OPTIONS), OPTIONS.rendering)
    estimates: list[Cost] = []

    def drop(cost: Cost) -> bool:
        estimates.append(cost)
        return False

    with pytest.raises(PictureRefused, match="the content is text") as caught:
        ask(decoder, b"hello")
    with pytest.raises(PictureDropped):
        ask(decoder, LARGE, NO_COST, may_go_on=drop)
    with pytest.raises(PictureRefused, match="MiB"):
        ask(decoder, LARGE, options=PictureOptions(PictureLimits(max_memory_bytes=20 * MIB)))

    assert np.array_equal(ask(decoder, SMALL), np.asarray(expected))
    assert np.array_equal(ask(decoder, SMALL, NO_COST), np.asarray(expected))
    assert caught.value.reason == "IMAGE_UNREADABLE"
    assert estimates == [plan_picture(LARGE, SIDE, OPTIONS).cost]


@pytest.mark.parametrize("name", ["PNG grey 16 bit", "PNG grey 16 bit with a transparent value", "JPEG CMYK profile"])
def test_a_decoder_needs_no_more_memory_than_estimated(decoder: DecoderProcess, name: str) -> None:
    """Nothing large is imported within the limits of a picture."""
    content = dict(every_kind())[name]()

    assert ask(decoder, content).shape == (SIDE, SIDE, 3)


def test_a_decoder_imports_nothing_large() -> None:
    """Neither torch nor NumPy, nor what speaks to servers: it has to start quickly and stay small."""
    program = "import sys, inference.runner.pictures.decoder; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert {"torch", "numpy", "google.protobuf", "grpc", "common.errors"} & set(done.stdout.split()) == set()


@pytest.mark.fault("L8")
def test_a_picture_that_takes_much_longer_than_estimated_ends_its_decoder(
    decoder: DecoderProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The runner kills it, and says why."""
    monkeypatch.setattr(decoder_process, "FIXED_LIMIT_SECONDS", -1000.0)

    with pytest.raises(DecoderEnded) as caught:
        ask(decoder, LARGE)

    assert caught.value.cause is EndCause.TOO_SLOW


def test_a_decoder_that_ended_before_it_read_a_picture_was_not_ended_by_it(decoder: DecoderProcess) -> None:
    """Whether it is gone already, or ends while the picture waits for it; once it decodes, the picture counts."""
    stopped, decoding = DecoderProcess(SystemClock(), WALL_SECONDS), DecoderProcess(SystemClock(), WALL_SECONDS)
    for started in (stopped, decoding):
        started.wait_ready()

    def kill(process: DecoderProcess) -> bool:
        os.kill(process.pid, signal.SIGKILL)
        return True

    kill(decoder)
    os.kill(stopped.pid, signal.SIGSTOP)
    with pytest.raises(DecoderEnded) as gone:
        ask(decoder, SMALL)
    with pytest.raises(DecoderEnded) as gone_later:
        ask(stopped, SMALL, is_wanted=lambda: kill(stopped))
    with pytest.raises(DecoderEnded) as crashed:
        ask(decoding, LARGE, NO_COST, may_go_on=lambda _: kill(decoding))

    assert [caught.value.cause for caught in (gone, gone_later, crashed)] == [
        EndCause.GONE,
        EndCause.GONE,
        EndCause.CRASHED,
    ]


def test_a_decoder_is_killed_when_its_picture_is_not_wanted_any_more(decoder: DecoderProcess) -> None:
    """For example because the caller has gone."""
    with pytest.raises(DecoderEnded) as caught:
        ask(decoder, LARGE, is_wanted=lambda: False)

    assert caught.value.cause is EndCause.UNWANTED


@pytest.mark.fault("L8")
def test_a_decoder_has_limits_of_its_own(decoder: DecoderProcess) -> None:
    """Memory, CPU time, files; and the kernel takes it first when memory is short."""
    ask(decoder, SMALL)

    lines = Path(f"/proc/{decoder.pid}/limits").read_text(encoding="ascii").splitlines()
    limits = {line[:26].strip(): line[26:].split()[0] for line in lines}
    scores = [int(Path(f"/proc/{pid}/oom_score_adj").read_text(encoding="ascii")) for pid in (decoder.pid, os.getpid())]

    assert int(limits["Max address space"]) < 400 * MIB
    assert int(limits["Max data size"]) < 400 * MIB
    assert int(limits["Max cpu time"]) < 100
    assert limits["Max file size"] == "0"
    assert scores[0] == min(MAX_OOM_SCORE_ADJ, scores[1] + ADDED_OOM_SCORE)


def test_a_pool_that_is_started_has_a_decoder_before_one_is_needed(pool: DecoderPool) -> None:
    """The first picture after a load does not wait for one to start."""
    before = pool.pids
    pool.start()
    eventually(lambda: pool.pids, what="there is a decoder")

    assert before == []


def test_a_thread_that_could_not_be_started_is_started_at_the_next_attempt(
    pool: DecoderPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit on processes counts threads, too: without the one that starts decoders no picture was decoded again."""
    refusals = 2  # at the start of the runner, and at the first picture

    def refuse(thread: threading.Thread) -> None:
        nonlocal refusals
        refusals -= 1
        if not refusals:
            monkeypatch.undo()
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(RuntimeError):
        pool.start()
    decoder = pool.take(lambda: True)
    pixels = ask(decoder, SMALL)
    pool.give_back(decoder)

    assert pixels.shape == (SIDE, SIDE, 3)
    assert refusals == 0


def test_a_further_decoder_starts_at_low_priority(pool: DecoderPool) -> None:
    """While others decode; the first one has full priority from its start, the next one when it is ready."""
    changes: list[tuple[int, bool]] = []
    pool.set_priority = lambda pid, is_needed: changes.append((pid, is_needed))

    first, second = pool.take(always), pool.take(always)
    pool.give_back(second)
    pool.give_back(first)

    is_needed = {pid: [needed for changed, needed in changes if changed == pid] for pid in (first.pid, second.pid)}
    assert is_needed == {first.pid: [True, True], second.pid: [False, True]}


def test_a_decoder_that_starts_is_listed(pool: DecoderPool) -> None:
    """If its runner begins to serve meanwhile, it gets that priority; otherwise callers would wait for it."""
    seen: list[list[int]] = []
    pool.set_priority = lambda _pid, _is_needed: seen.append(pool.pids)

    decoder = pool.take(always)
    pool.give_back(decoder)

    assert seen[:2] == [[decoder.pid], [decoder.pid]]


def test_a_child_has_the_priority_of_the_thread_that_sets_it() -> None:
    """Or a lower one; only where it can be raised again."""
    own, priority = os.getpriority(os.PRIO_PROCESS, 0), read_priority(0)
    lower = min(19, own + CANDIDATE_NICENESS) if priority.can_lower else own
    with subprocess.Popen(["/bin/sleep", "60"]) as child:
        found = []
        for is_needed in (False, True):
            priority.set_child(child.pid, is_needed)
            found.append(os.getpriority(os.PRIO_PROCESS, child.pid))
        child.kill()

    assert found == [lower, own]


def test_a_child_that_started_while_its_parent_yielded_the_cpus_gets_its_policy_again() -> None:
    """Otherwise it would decode callers' pictures only when no other process wants a CPU."""
    priority = read_priority(0)
    with subprocess.Popen(["/bin/sleep", "60"]) as child:
        os.sched_setscheduler(child.pid, os.SCHED_IDLE, os.sched_param(0))
        priority.set_child(child.pid, True)
        found = os.sched_getscheduler(child.pid)
        child.kill()

    assert found == (os.SCHED_OTHER if priority.can_lower else os.SCHED_IDLE)


def test_a_pool_replaces_a_decoder_that_has_ended(pool: DecoderPool) -> None:
    """Another one takes its place; of several that are idle, the last used one is used again."""
    first = pool.take(always)
    os.kill(first.pid, signal.SIGKILL)
    with pytest.raises(DecoderEnded) as caught:
        ask(first, SMALL)
    pool.drop(first)

    second = pool.take(always)
    pixels = ask(second, SMALL)
    pool.give_back(second)
    third = pool.take(always)
    pool.give_back(third)

    assert caught.value.cause is EndCause.GONE
    assert pixels.shape == (SIDE, SIDE, 3)
    assert (pool.ended, second.pid != first.pid) == (1, True)
    assert third is second
