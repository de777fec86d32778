"""The files of core and stages that one update visits, from the hub's listing to the commit."""

from dataclasses import dataclass

from tests.call_trace import Visits
from tests.updater.core.world import World
from updater.core.record import Stage

_PURE = ("updater/core", "updater/stages")
_MAX_STEPS = 2000


@dataclass(frozen=True, slots=True)
class UpdateFiles:
    """What a reader opens to follow an update."""

    all: list[str]  # of the whole update, in the order of their first call
    most: list[str]  # of the step that visits most


def list_update_files() -> UpdateFiles:
    """Run a whole update on simulated ports and record each step."""
    world = World()
    world.install("1.0.0")
    world.publish("1.1.0")
    whole, most = Visits(*_PURE), Visits(*_PURE)
    for _ in range(_MAX_STEPS):
        step = Visits(*_PURE)
        with step.recording():
            world.tick()
        whole.files += [name for name in step.files if name not in whole.files]
        most = max(most, step, key=lambda visits: len(visits.files))
        if world.stage is Stage.IDLE and world.committed == "1.1.0":
            return UpdateFiles(whole.files, most.files)
    raise RuntimeError("the update was not committed")
