"""An updater that is asked to stop in the middle of a conversion repeats it after the restart."""

from collections.abc import Iterator
from typing import Any

import pytest

from common.source import ConversionRefused
from dev.harness.revisions import convert_scripted
from tests.updater.simulators import Quality
from tests.updater.stories.world import StoryWorld
from updater.core.record import HeldFor, Stage


@pytest.fixture
def world() -> Iterator[StoryWorld]:
    """A committed revision, and an updater that is not running."""
    made = StoryWorld()
    made.publish("1.0.0", Quality())
    made.settle(400.0)
    made.end_updater(orderly=True)
    yield made
    made.close()


class FailingConversion:
    """A conversion whose child was killed: because the updater stops, or by somebody else."""

    def __init__(self, world: StoryWorld, reason: str, *, by_stop: bool) -> None:
        self._world, self._reason, self._by_stop = world, reason, by_stop
        self.calls = 0

    def __call__(self, *_args: object, **_named: object) -> Any:  # noqa: ANN401  as Convert
        """Fail."""
        self.calls += 1
        if self._by_stop:
            self._world.request_stop()
        raise ConversionRefused(self._reason, "the conversion ended with exit code -9")

    def step_until_called(self) -> None:
        """Step until a child was killed once more."""
        before = self.calls
        for _ in range(200):
            if self.calls > before:
                return
            self._world.step()
        raise AssertionError(f"nothing is converted in {self._world.record.stage}")


@pytest.mark.fault("K16")
@pytest.mark.parametrize("reason", ["CONVERT_FAILED", "OUT_OF_MEMORY"])
def test_a_conversion_that_a_stop_has_killed_is_no_failed_verification(world: StoryWorld, reason: str) -> None:
    """However often the updater is restarted: no attempt is counted, and nothing is reported."""
    world.convert = killed = FailingConversion(world, reason, by_stop=True)
    world.publish("1.1.0", Quality())
    for _ in range(world.rules.max_attempts + 1):
        killed.step_until_called()
        world.end_updater(orderly=True)
        assert world.record.stage is Stage.VERIFYING
        assert world.record.under_way.attempts == 0
    assert "verification_failed" not in world.book.events

    world.convert = convert_scripted
    world.settle(400.0)
    assert world.record.committed is not None
    assert world.record.committed.revision == "1.1.0"


def test_a_conversion_whose_child_somebody_else_has_killed_counts(world: StoryWorld) -> None:
    """The updater goes on, and reports it."""
    world.convert = killed = FailingConversion(world, "CONVERT_FAILED", by_stop=False)
    world.publish("1.1.0", Quality())
    killed.step_until_called()
    assert world.record.under_way.attempts == 1
    assert "verification_failed" in world.book.events


@pytest.mark.parametrize("reason", ["CONVERT_FAILED", "TIME_LIMIT"])
def test_a_conversion_that_fails_each_time_waits_for_a_person(world: StoryWorld, reason: str) -> None:
    """Its files are not downloaded again every ten minutes, nothing is quarantined, and a newer revision is taken."""
    world.convert = failing = FailingConversion(world, reason, by_stop=False)
    world.publish("1.1.0", Quality())
    failing.step_until_called()
    world.settle(4000.0)

    held = world.record.under_way
    assert (world.record.stage, held.ending and held.ending.held_for) == (Stage.HELD, HeldFor.INCONCLUSIVE)
    assert failing.calls == world.rules.max_attempts
    assert world.record.quarantine == ()

    world.end_updater(orderly=True)
    world.convert = convert_scripted
    world.publish("1.2.0", Quality())
    world.settle(4000.0)
    assert world.record.committed is not None
    assert world.record.committed.revision == "1.2.0"
