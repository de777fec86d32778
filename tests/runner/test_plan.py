"""Load plans: free memory, estimates, and refusals before anything is allocated."""

import pytest

from dev.harness.scripted_engine import CARD_BYTES, CARD_USED_VARIABLE, DEVICES_VARIABLE
from inference.runner.engines.base import MemoryEstimate, estimator_for
from inference.runner.hardware import CpuOnly, measure_free_bytes, measure_own_bytes
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


async def test_what_other_loads_have_planned_is_not_free(
    make_runner: MakeRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused with what is left, and the message names the rest; without them it loads, and reports its plan first."""
    monkeypatch.setenv(DEVICES_VARIABLE, "cuda:0,cpu")
    monkeypatch.setenv(CARD_USED_VARIABLE, str(CARD_BYTES - 12 * GIB))
    refused, fitting = make_runner(), make_runner()
    refused.reserved_bytes, fitting.reserved_bytes = 2 * GIB, GIB

    outcome = await refused.load("r1", "cuda:0", needs_bytes=10 * GIB)

    assert (outcome.failure.reason, outcome.free_bytes) == ("DOES_NOT_FIT", 10 * GIB)
    assert "10240 MiB are free beside 2048 MiB that other models need" in outcome.failure.message
    assert not (await fitting.load("r1", "cuda:0", needs_bytes=10 * GIB)).HasField("failure")
    first = fitting.listener.progress[0]
    assert (first.phase, first.needed_bytes) == ("reading", 11 * GIB)


def test_memory_taken_is_that_of_this_process() -> None:
    """On a CPU, what is resident."""
    before = measure_own_bytes("cpu")
    block = b"x" * (GIB // 8)
    assert len(block) == (GIB // 8)
    assert measure_own_bytes("cpu") - before > (GIB // 8) // 2


@pytest.mark.parametrize("where", ["fail_load", "fail_warm_up"])
async def test_a_memory_error_in_a_load_is_reported_with_both_numbers(
    runner: RunnerHarness, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The estimate was too low: both the estimate and the free memory are reported."""
    monkeypatch.setenv(DEVICES_VARIABLE, "cuda:0,cpu")

    outcome = await runner.load("r1", "cuda:0", needs_bytes=GIB, **{where: "oom"})

    assert outcome.failure.reason == "OUT_OF_MEMORY"
    assert (round(GIB * MARGIN), 72 * GIB) == (outcome.needed_bytes, outcome.free_bytes)
