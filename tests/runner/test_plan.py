"""Load plans: free memory, estimates, and refusals before anything is allocated."""

from pathlib import Path

import pytest

from dev.harness.scripted_engine import CARD_BYTES, CARD_USED_VARIABLE, DEVICES_VARIABLE
from inference.runner import hardware
from inference.runner.engines.base import MemoryEstimate, estimator_for
from inference.runner.hardware import CpuOnly, measure_free_bytes
from inference.runner.plan import MARGIN, plan_load
from tests.runner.conftest import MakeRunner
from tests.runner.harness import RunnerHarness

GIB = 1 << 30


@pytest.mark.parametrize(
    ("need", "free", "fits"),
    [
        (MemoryEstimate(8 * GIB, GIB), 10 * GIB, True),
        (MemoryEstimate(9 * GIB, GIB), 10 * GIB, False),  # it would, without the margin
        (MemoryEstimate(0, 0), 0, True),
        (MemoryEstimate(500 * GIB, 0), None, True),  # unknown free memory
    ],
)
def test_a_load_needs_a_margin_above_the_estimate(
    need: MemoryEstimate,
    free: int | None,
    fits: bool,  # noqa: FBT001
) -> None:
    """10 % above the estimate must be free; unknown free memory refuses nothing."""
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
def test_free_memory_of_a_container(limit: str, current: str, stat: str, left: int | None) -> None:
    """Its limit minus used memory, page cache not counted; None without a limit."""
    assert left == hardware.compute_container_free_bytes(limit, current, stat)


def test_free_host_memory_is_the_least_of_machine_and_container(tmp_path: Path) -> None:
    """An unreadable file is ignored."""
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


def test_a_driver_error_refuses_no_load() -> None:
    """Free memory is unknown then; the load itself reports the error."""
    assert None is measure_free_bytes(BrokenCard(), "cuda:0")


def test_engines_without_an_estimator_have_no_plan() -> None:
    """An estimator is optional."""
    assert None is estimator_for("own", {"own": "tests.runner.harness:RunnerHarness"})
    assert None is estimator_for("unknown")
    assert estimator_for("ofa") is not None


async def test_a_load_that_does_not_fit_is_refused_with_both_numbers(
    make_runner: MakeRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the engine is asked to load, which would crash here; on the CPU the same bundle loads."""
    monkeypatch.setenv(DEVICES_VARIABLE, "cuda:0,cpu")
    monkeypatch.setenv(CARD_USED_VARIABLE, str(CARD_BYTES - 10 * GIB))
    script: dict[str, float | str] = {"needs_bytes": 10 * GIB, "fail_load": "crash", "faulty_devices": "cuda"}

    outcome = await make_runner().load("r1", "cuda:0", **script)

    assert outcome.failure.reason == "DOES_NOT_FIT"
    assert (outcome.needed_bytes, outcome.free_bytes) == (11 * GIB, 10 * GIB)
    assert "11264 MiB" in outcome.failure.message
    assert "10240 MiB" in outcome.failure.message
    assert not (await make_runner().load("r1", "cpu", **script)).HasField("failure")


@pytest.mark.parametrize("where", ["fail_load", "fail_warm_up"])
async def test_a_memory_error_in_a_load_is_reported_with_both_numbers(
    runner: RunnerHarness, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The estimate was too low: both the estimate and the free memory are reported."""
    monkeypatch.setenv(DEVICES_VARIABLE, "cuda:0,cpu")

    outcome = await runner.load("r1", "cuda:0", needs_bytes=GIB, **{where: "oom"})

    assert outcome.failure.reason == "OUT_OF_MEMORY"
    assert (round(GIB * MARGIN), 72 * GIB) == (outcome.needed_bytes, outcome.free_bytes)
