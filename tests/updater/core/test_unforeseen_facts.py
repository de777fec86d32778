"""A port that fails as it never should costs one fact: operators' commands are served, and the failure is shown."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.updater.core.world import World
from updater.core.facts import CommandKind
from updater.core.record import Stage

Broken = tuple[str, Callable[[], None]]
PORTS: dict[str, tuple[str, str, str]] = {
    "golden": ("golden", "facts", "the golden set"),
    "server": ("server", "state", "the server's state"),
    "pointer": ("store", "pointer", "the committed pointer"),
    "source": ("store", "converts_to", "the committed source"),
}


@pytest.fixture(params=PORTS)
def broken(
    request: pytest.FixtureRequest, world: World, monkeypatch: pytest.MonkeyPatch
) -> tuple[str, Callable[[], None]]:
    """One port raises what nobody has foreseen; returns what it reads, and how it is repaired."""
    part, name, what = PORTS[request.param]

    def fail(*_: object, **__: object) -> Any:  # noqa: ANN401  never returns
        "\ud83d".encode()

    monkeypatch.setattr(type(getattr(world, part)), name, fail)
    return what, monkeypatch.undo


def test_commands_are_served_and_the_failure_is_shown(world: World, broken: Broken) -> None:
    """A look with an unknown fact is a look."""
    what, repair = broken
    assert world.command(CommandKind.PAUSE, "a broken port") is None
    assert world.record.paused
    shown = world.loop.publisher.snapshot.fault
    assert shown.startswith(f"{what} cannot be read: UnicodeEncodeError at test_unforeseen_facts.py:")

    repair()
    world.tick()
    assert world.loop.publisher.snapshot.fault == ""


def test_a_rollback_needs_no_golden_set(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is written into the set while a bad revision serves."""
    world.publish("1.1.0")
    world.settle()

    def fail(_: object) -> Any:  # noqa: ANN401  never returns
        raise ValueError("bug")

    monkeypatch.setattr(type(world.golden), "facts", fail)
    assert world.command(CommandKind.ROLLBACK) is None
    world.settle()
    assert world.committed == "1.0.0"


def test_a_trial_keeps_its_lease(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A set that is edited during a trial is no reason to end it."""
    world.publish("1.1.0")
    world.tick_until(Stage.OBSERVING)

    def fail(_: object) -> Any:  # noqa: ANN401  never returns
        raise ValueError("bug")

    monkeypatch.setattr(type(world.golden), "facts", fail)
    world.settle()
    assert world.committed == "1.1.0"
