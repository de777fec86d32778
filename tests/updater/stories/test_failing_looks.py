"""What the system refuses during a look ends that look: never the loop, never the journal's trust, never a decision."""

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.updater.simulators import Quality
from tests.updater.stories.world import StoryWorld
from updater.core.record import ModelRecord

_CALLS = ("open", "scandir", "listdir", "stat")  # of the module os; pathlib and io use them
REFUSALS = (errno.EMFILE, errno.EACCES, errno.ENOSPC)


class Refusals:
    """Counts the calls of one look, and refuses one of them."""

    def __init__(self, code: int = 0, number: int = -1) -> None:
        self.code, self.number = code, number
        self.calls = 0

    @contextmanager
    def mounted(self) -> Iterator[None]:
        """Within the block each call is counted."""
        well = {name: getattr(os, name) for name in _CALLS}
        try:
            for name, call in well.items():
                setattr(os, name, self._refusing(call))
            yield
        finally:
            for name, call in well.items():
                setattr(os, name, call)

    def _refusing(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def refuse(*args: object, **kwargs: object) -> object:
            self.calls += 1
            if self.calls == self.number:
                raise OSError(self.code, os.strerror(self.code))
            return call(*args, **kwargs)

        return refuse


@pytest.fixture
def world() -> Iterator[StoryWorld]:
    """A committed revision, at rest."""
    made = StoryWorld()
    made.publish("1.0.0", Quality())
    made.settle(400.0)
    yield made
    made.close()


def look(world: StoryWorld, refusals: Refusals) -> ModelRecord:
    """One step, with refusals; returns the record after it."""
    with refusals.mounted():
        world.step()
    return world.record


@pytest.mark.fault("H15")
@pytest.mark.parametrize("code", REFUSALS)
def test_every_refused_open_of_a_look_ends_only_that_look(world: StoryWorld, code: int) -> None:
    """One after the other; then the next revision is taken as always."""
    number, before = 1, world.record
    while True:
        refusals = Refusals(code, number)
        look(world, refusals)
        if refusals.calls < number:
            break
        number += 1
    assert world.record.committed == before.committed
    assert world.starts == 1
    world.publish("1.1.0", Quality())
    world.settle(400.0)

    assert world.record.committed is not None
    assert world.record.committed.revision == "1.1.0"
    assert number > 5


@pytest.mark.fault("H15")
@pytest.mark.parametrize("code", REFUSALS)
def test_every_refused_open_of_an_update_only_delays_it(world: StoryWorld, code: int) -> None:
    """In each step of an update one call is refused; no content is blamed."""
    world.publish("1.1.0", Quality())
    number = 1
    for _ in range(400):
        look(world, Refusals(code, number))
        number = number % 40 + 1
        committed = world.record.committed
        if committed is not None and committed.revision == "1.1.0":
            break
    else:
        world.settle(4000.0)

    assert world.record.committed is not None
    assert world.record.committed.revision == "1.1.0"
    assert world.record.quarantine == ()
    assert world.record.min_version == "1.1.0"


def test_a_failed_look_is_shown_until_one_succeeds(world: StoryWorld) -> None:
    """In the status, within one look."""
    shown = world.shown_fault
    refusals = Refusals()
    look(world, refusals)
    assert shown() == ""
    look(world, Refusals(errno.EMFILE, 1))
    assert shown() == "the state cannot be read: too many open files"
    world.settle(400.0)
    world.publish("1.1.0", Quality())
    world.settle(400.0)
    assert shown() == ""
