"""The steps of `make chaos`: what each provokes, how long it may take, and where it stands."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Step:
    """One step."""

    name: str
    faults: tuple[str, ...]  # numbers of docs/faults.md
    about: str  # a sentence, for `--list`
    limit_seconds: float  # then it is ended, and has failed
    module: str  # that has `run(task: Task) -> Findings`


@dataclass(frozen=True, slots=True)
class Task:
    """What a step is given."""

    folder: Path  # its own, empty; gone afterwards
    seed: int
    seconds: float | None  # how long a step without an end of its own goes on; None: its own default
    count: int | None  # how often a step that counts does it; None: its own default
    say: Callable[[str], None]  # a line for who watches


@dataclass(slots=True)
class Findings:
    """What a step found. Without troubles and without a reason to skip it has passed."""

    count: int = 0  # of what the step is about: points, swaps, clients
    numbers: dict[str, float | str] = field(default_factory=dict)  # measured; the unit stands in the name
    troubles: list[str] = field(default_factory=list)  # what should not have been
    skipped: str = ""  # what is missing here

    def expect(self, *, so: bool, otherwise: str) -> None:
        """Note what should have been."""
        if not so:
            self.troubles.append(otherwise)

    @property
    def result(self) -> str:
        """In one word."""
        return "failed" if self.troubles else "skipped" if self.skipped else "passed"


class Skipped(Exception):
    """This machine lacks what the step needs; the sentence says what."""


STEPS: tuple[Step, ...] = (
    Step("sweep", ("K4",), "the updater is killed, or its disk fails, at every system call that makes something last",
         1200.0, "dev.chaos.steps.sweep"),
    Step("stories", ("K1", "K3", "D1", "N1", "R11", "R16", "B9"),
         "random stories of the updater's decisions and its store, ten thousand unless --count says less",
         7200.0, "dev.chaos.steps.stories"),
    Step("server-stories", ("K5", "K7", "K13", "K14", "K15", "K17"),
         "random stories of a model's two slots with simulated runners, ten thousand unless --count says less",
         7200.0, "dev.chaos.steps.server_stories"),
    Step("clock", ("B9",), "the wall clock jumps a year while a breaker is open, and while a trial is observed",
         600.0, "dev.chaos.steps.clock"),
    Step("pauses", ("B10",), "processes stand still for minutes, idle and in an update, and go on",
         1500.0, "dev.chaos.steps.pauses"),
    Step("deaf", ("U7",), "supervisord stands still for half a minute under load: who reads the logs is gone",
         300.0, "dev.chaos.steps.deaf"),
    Step("live-failure", ("S7",), "a revision that fails only on callers' traffic is taken back",
         300.0, "dev.chaos.steps.live_failure"),
    Step("rollback", ("S8",), "the demo model is rolled back by hand, warm and cold",
         600.0, "dev.chaos.steps.rollback"),
    Step("flat", ("S9",), "a hundred swaps leave memory, descriptors and threads where they were",
         1800.0, "dev.chaos.steps.flat"),
    Step("swaps", ("S1",), "fifty swaps under load, ten of them of bad revisions",
         1200.0, "dev.chaos.steps.swaps"),
    Step("gone-clients", ("I14",), "ten thousand clients are gone in the middle of their calls",
         600.0, "dev.chaos.steps.gone_clients"),
    Step("idle-clients", ("I17",), "a thousand idle connections stand beside those that call",
         300.0, "dev.chaos.steps.idle_clients"),
    Step("disk", ("D1",), "the disk is really full while an update is staged, sealed, written down, committed",
         900.0, "dev.chaos.steps.disk"),
    Step("random", ("K1", "K2", "K3", "K5", "K7", "D1", "N1", "B9"),
         "kills, a hub that errs, a full disk and a jumping clock, at random under load, ten minutes or --seconds",
         3600.0, "dev.chaos.steps.storm"),
)  # fmt: skip


def step_named(name: str) -> Step:
    """One step.

    Raises:
        KeyError: there is none of this name.
    """
    return {step.name: step for step in STEPS}[name]


def chosen(names: Sequence[str]) -> tuple[Step, ...]:
    """Steps in the order of the catalog; all without names.

    Raises:
        KeyError: there is none of a name.
    """
    wanted = {step_named(name).name for name in names}
    return tuple(step for step in STEPS if step.name in wanted or not wanted)
