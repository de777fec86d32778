"""A real runner whose engine takes decoded pictures: a picture costs its caller an error, never the runner its life."""

import asyncio
import os
import signal
from pathlib import Path

import pytest

from dev.harness.waiting import eventually
from hotslot.runner.v1 import runner_pb2
from inference.runner.prepare_queue import SLOW_SECONDS
from tests.pictures.files import draw, encode
from tests.runner.harness import RunnerHarness

pytestmark = pytest.mark.asyncio

CASES = Path(__file__).parents[1] / "pictures" / "cases"
PICTURE = encode(draw(), "PNG")


def children_of(pid: int) -> list[int]:
    """Processes that a process has started."""
    return [
        int(child)
        for task in Path(f"/proc/{pid}/task").iterdir()
        for child in (task / "children").read_text(encoding="ascii").split()
    ]


def is_running(pid: int) -> bool:
    """Whether a process exists and has not ended."""
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text(encoding="ascii")
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.fault("I3")
@pytest.mark.fault("L8")
async def test_bombs_are_refused_and_others_are_answered(runner: RunnerHarness) -> None:
    """Pictures of a few bytes that ended runners before; the item beside each is answered."""
    await runner.load(picture_side=32)

    for path in sorted(CASES.iterdir()):
        [outcome] = await runner.ask(["a dog"], image=path.read_bytes())
        [beside] = await runner.ask(["a dog"], image=PICTURE)
        is_bomb = not path.name[0].isdigit()
        assert (outcome.failure.reason, outcome.failure.field) == (
            ("IMAGE_TOO_COSTLY", "image.content") if is_bomb else ("", "")
        ), path.name
        assert len(beside.entailment.scores) == 1

    files = list(CASES.iterdir())
    await runner.listener.until(lambda: sum(row.count for row in runner.listener.heartbeat.pictures) == 2 * len(files))
    together = await asyncio.gather(
        *(runner.ask(["a dog"], image=image) for path in files for image in (PICTURE, path.read_bytes(), PICTURE))
    )

    assert runner.listener.endings == []
    assert [bool(outcome.entailment.scores) for [outcome] in together] == [
        one for path in files for one in (True, path.name[0].isdigit(), True)
    ]

    def is_done() -> bool:
        beat = runner.listener.heartbeat
        is_counted = sum(row.count for row in beat.pictures) == 5 * len(files)
        return is_counted and (beat.queued_preparations, beat.picture_bytes) == (0, 0)

    await runner.listener.until(is_done)
    beat = runner.listener.heartbeat
    totals = {(row.format, row.outcome): row.count for row in beat.pictures}
    assert totals["png", "DECODED"] >= 3 * len(files)
    bombs = [count for (_, outcome), count in totals.items() if outcome == "IMAGE_TOO_COSTLY"]
    assert sum(bombs) == 2 * sum(not path.name[0].isdigit() for path in files)
    assert all(row.seconds > 0 for row in beat.pictures)


@pytest.mark.fault("L8")
async def test_a_decoder_that_dies_costs_nothing(runner: RunnerHarness) -> None:
    """Killed by the system for example: its picture is decoded by another one, and it is replaced."""
    await runner.load(picture_side=32)
    await runner.ask(["a dog"], image=PICTURE)
    decoders = children_of(runner.process.pid)

    for pid in decoders:
        os.kill(pid, signal.SIGKILL)
    [outcome] = await runner.ask(["a dog"], image=PICTURE)

    assert decoders
    assert len(outcome.entailment.scores) == 1
    assert not set(decoders) & set(children_of(runner.process.pid))


async def test_no_decoder_outlives_its_runner(runner: RunnerHarness) -> None:
    """However the runner ends."""
    await runner.load(picture_side=32)
    await runner.ask(["a dog"], image=PICTURE)
    decoders = children_of(runner.process.pid)

    runner.process.kill("test")
    await runner.ended()

    assert decoders
    assert await asyncio.to_thread(eventually, lambda: not any(map(is_running, decoders)))


@pytest.mark.fault("L8")
async def test_a_picture_that_takes_long_is_postponed_unless_it_may(runner: RunnerHarness) -> None:
    """The server hears what it takes, and sends it again when it keeps nobody waiting."""
    await runner.load(picture_side=32)
    slow = encode(draw(3000, 2000), "PNG", compress_level=1)

    [postponed] = await runner.ask(["a dog"], image=slow)
    [answered] = await runner.ask(["a dog"], image=slow, may_take_long=True)

    assert postponed.postponed.seconds > SLOW_SECONDS
    assert postponed.postponed.places >= 1
    assert len(answered.entailment.scores) == 1


async def test_rules_of_the_load_are_applied(runner: RunnerHarness) -> None:
    """The server's settings reach the decoder."""
    runner.rules = runner_pb2.PictureRules(
        max_pixels=1000, max_side_pixels=100, max_scans=1, max_seconds=1.0, max_memory_bytes=1 << 30
    )
    await runner.load(picture_side=32)

    [outcome] = await runner.ask(["a dog"], image=PICTURE)

    assert outcome.failure.reason == "IMAGE_TOO_LARGE"
