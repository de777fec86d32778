"""Whether a load fits is said before anything is allocated, from what can be read; what cannot refuses nothing."""

from pathlib import Path

import pytest

from inference.runner import hardware
from inference.runner.engines.base import MemoryEstimate, estimator_for
from inference.runner.hardware import CpuOnly, measure_free_bytes
from inference.runner.plan import MARGIN, plan_load
from tests.runner.conftest import MakeStage
from tests.runner.stage import Stage
from tests.scripted_engine import CARD_BYTES, CARD_USED_VARIABLE, DEVICES_VARIABLE

GIB = 1 << 30


@pytest.mark.parametrize(
    ("need", "free", "fits"),
    [
        (MemoryEstimate(8 * GIB, GIB), 10 * GIB, True),
        (MemoryEstimate(9 * GIB, GIB), 10 * GIB, False),  # it would, without the margin
        (MemoryEstimate(0, 0), 0, True),
        (MemoryEstimate(500 * GIB, 0), None, True),  # nobody knows what is free
    ],
)
def test_a_plan_keeps_a_margin_and_refuses_on_knowledge_alone(
    need: MemoryEstimate,
    free: int | None,
    fits: bool,  # noqa: FBT001
) -> None:
    """Ten percent above what the engine foretells must be free."""
    plan = plan_load("cuda:0", need, free)

    assert (fits, round(need.total * MARGIN)) == (plan.fits, plan.needed)
    assert "cuda:0" in plan.message


STAT = "anon 100\nfile 700\nshmem 50\nslab 9\n"


@pytest.mark.parametrize(
    ("limit", "current", "stat", "left"),
    [
        ("1000\n", "900\n", STAT, 750),  # page cache is given back, shared memory is not
        ("1000", "900", "", 100),
        ("1000", "1200", "", 0),
        ("1000", "900", "file many\n", 100),
        ("max\n", "900\n", STAT, None),
        ("", "", "", None),  # no such files
    ],
)
def test_what_a_container_may_still_take(limit: str, current: str, stat: str, left: int | None) -> None:
    """Its limit less what is used, page cache not counted; without a limit the machine alone decides."""
    assert left == hardware.compute_container_free_bytes(limit, current, stat)


def test_the_host_gives_what_machine_and_container_both_have(tmp_path: Path) -> None:
    """The smaller of both; what is unreadable is no answer, never zero."""
    meminfo = tmp_path / "meminfo"
    assert None is hardware.read_available_bytes(meminfo, tmp_path)

    meminfo.write_text("MemTotal: 4000 kB\nMemAvailable:    2000 kB\n")
    assert hardware.read_available_bytes(meminfo, tmp_path) == 2000 * 1024

    for name, text in (("memory.max", "2000000"), ("memory.current", "1500000"), ("memory.stat", "file 400000")):
        (tmp_path / name).write_text(text)
    assert hardware.read_available_bytes(meminfo, tmp_path) == 900_000

    meminfo.write_text("garbage")
    assert hardware.read_available_bytes(meminfo, tmp_path) == 900_000


class BrokenCard(CpuOnly):
    """A driver that does not answer."""

    def memory_bytes(self, device: str) -> tuple[int, int]:
        raise RuntimeError("CUDA error: unknown error")


def test_a_driver_that_does_not_answer_refuses_nothing() -> None:
    """The load itself will tell."""
    assert None is measure_free_bytes(BrokenCard(), "cuda:0")


def test_engines_that_foretell_nothing_have_no_plan() -> None:
    """A plan is an engine's offer."""
    assert None is estimator_for("own", {"own": "tests.runner.stage:Stage"})
    assert None is estimator_for("unknown")
    assert estimator_for("ofa") is not None


async def test_what_does_not_fit_is_refused_with_the_numbers(
    make_stage: MakeStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the engine is asked to load, which would crash here; on the CPU the same bundle is not hindered."""
    monkeypatch.setenv(DEVICES_VARIABLE, "cuda:0,cpu")
    monkeypatch.setenv(CARD_USED_VARIABLE, str(CARD_BYTES - 10 * GIB))
    script: dict[str, float | str] = {"needs_bytes": 10 * GIB, "fail_load": "crash", "faulty_devices": "cuda"}

    outcome = await make_stage().load("r1", "cuda:0", **script)

    assert outcome.failure.reason == "DOES_NOT_FIT"
    assert (outcome.needed_bytes, outcome.free_bytes) == (11 * GIB, 10 * GIB)
    assert "11264 MiB" in outcome.failure.message
    assert "10240 MiB" in outcome.failure.message
    assert not (await make_stage().load("r1", "cpu", **script)).HasField("failure")


@pytest.mark.parametrize("where", ["fail_load", "fail_warm_up"])
async def test_memory_that_runs_out_in_a_load_is_told_with_the_numbers(
    stage: Stage, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plan that was too kind: what it said, and what is free now."""
    monkeypatch.setenv(DEVICES_VARIABLE, "cuda:0,cpu")

    outcome = await stage.load("r1", "cuda:0", needs_bytes=GIB, **{where: "oom"})

    assert outcome.failure.reason == "OUT_OF_MEMORY"
    assert (round(GIB * MARGIN), 72 * GIB) == (outcome.needed_bytes, outcome.free_bytes)
