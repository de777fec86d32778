"""The steps of `make chaos`: faults, time limit and module of each."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Step:
    """One step."""

    name: str
    faults: tuple[str, ...]  # numbers of docs/faults.md
    about: str  # a sentence, for `--list`
    limit_seconds: float  # after which it is killed and has failed
    module: str  # that has `run(task: Task) -> Findings`


@dataclass(frozen=True, slots=True)
class Task:
    """The inputs of a step."""

    folder: Path  # the step's own, initially empty; deleted afterwards
    seed: int
    seconds: float | None  # duration of a step without an end of its own; None: its default
    count: int | None  # repetitions of a step that counts; None: its default
    say: Callable[[str], None]  # prints a line of progress


@dataclass(slots=True)
class Findings:
    """The result of a step; it passed if there are no violations and no reason to skip it."""

    count: int = 0  # repetitions: points, swaps, clients
    numbers: dict[str, float | str] = field(default_factory=dict)  # measurements; the unit is part of the name
    troubles: list[str] = field(default_factory=list)  # violations
    skipped: str = ""  # what this machine lacks

    def expect(self, *, so: bool, otherwise: str) -> None:
        """Record `otherwise` as a violation unless `so` is true."""
        if not so:
            self.troubles.append(otherwise)

    @property
    def result(self) -> str:
        """The outcome in one word: passed, failed or skipped."""
        return "failed" if self.troubles else "skipped" if self.skipped else "passed"


class Skipped(Exception):
    """The machine lacks something that the step needs; the message names it."""


STEPS: tuple[Step, ...] = (
    Step("sweep", ("K4",), "the updater is killed, or its disk fails, at every system call that makes a change durable",
         2400.0, "dev.chaos.steps.sweep"),
    Step("stories", ("K1", "K3", "D1", "N1", "R11", "R16", "B9"),
         "random sequences of events for the updater's decisions and store; 10,000 or --count",
         7200.0, "dev.chaos.steps.stories"),
    Step("server-stories", ("K5", "K7", "K13", "K14", "K15", "K17"),
         "random sequences of events for a model's two slots, with simulated runners; 10,000 or --count",
         7200.0, "dev.chaos.steps.server_stories"),
    Step("clock", ("B9",), "the wall clock jumps a year while a breaker is open, and while a trial is observed",
         600.0, "dev.chaos.steps.clock"),
    Step("pauses", ("B10",), "processes are stopped for minutes, idle and during an update, and resumed",
         1500.0, "dev.chaos.steps.pauses"),
    Step("deaf", ("U7",), "supervisord, which reads the logs, is stopped for half a minute under load",
         300.0, "dev.chaos.steps.deaf"),
    Step("live-failure", ("S7",), "a revision that fails only on live traffic is rolled back",
         300.0, "dev.chaos.steps.live_failure"),
    Step("rollback", ("S8",), "an operator rolls the demo model back, warm and cold",
         600.0, "dev.chaos.steps.rollback"),
    Step("swaps", ("S1", "S9"), "five hundred swaps under load, a hundred of them bad: nothing lost, nothing grows",
         5400.0, "dev.chaos.steps.swaps"),
    Step("gone-clients", ("I14",), "ten thousand clients disconnect during their calls",
         600.0, "dev.chaos.steps.gone_clients"),
    Step("idle-clients", ("I17",), "a thousand idle connections beside active clients",
         300.0, "dev.chaos.steps.idle_clients"),
    Step("bombs", ("I3", "L8"), "500 small pictures that would cost a naive decoder much, beside another caller",
         3600.0, "dev.chaos.steps.bombs"),
    Step("certificates", ("L25",), "certificates and tokens change twice a second under load, broken ones among them",
         600.0, "dev.chaos.steps.certificates"),
    Step("container", ("L14", "L15"), "an update in a control group with too little memory, with enough, with less",
         1200.0, "dev.chaos.steps.container"),
    Step("stalled-reader", ("L17",), "the reader of the output stalls; a server is killed, the stack is stopped",
         300.0, "dev.chaos.steps.stalled_reader"),
    Step("descriptors", ("L19",), "a thousand connections to a stack that may open 512 files: update, killed server",
         600.0, "dev.chaos.steps.descriptors"),
    Step("read-only", ("L20",), "a read-only root without a temporary folder, and odd names of the state folder",
         600.0, "dev.chaos.steps.read_only"),
    Step("disk", ("D1",), "the disk is full while an update is staged, sealed, recorded, committed",
         900.0, "dev.chaos.steps.disk"),
    Step("wrong-hub", ("H9", "H11", "H12", "H15", "H16", "H17"),
         "a wrong hub, a lost journal, no descriptors, a full disk, at random under load; ten minutes or --seconds",
         3600.0, "dev.chaos.steps.wrong_hub"),
    Step("random", ("K1", "K2", "K3", "K5", "K7", "D1", "N1", "B9"),
         "kills, hub errors, a full disk and clock jumps, at random under load; ten minutes or --seconds",
         3600.0, "dev.chaos.steps.storm"),
    Step("hour", ("K1", "K2", "K3", "K5", "K7", "L14"), "random faults with little memory; an hour or --seconds",
         7200.0, "dev.chaos.steps.hour"),
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
