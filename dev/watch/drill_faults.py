"""What a fault of the drill is."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass

from dev.watch.drill_stack import DrillStack


@dataclass(frozen=True, slots=True)
class DrillFault:
    """A fault and the alerts that it must cause."""

    what: str  # for the table
    provoke: Callable[[DrillStack], AbstractContextManager[None]]  # the fault lasts while the block runs
    alerts: Mapping[str, str]  # name → a word that the first command of its runbook must print; empty: any output
    told_late: bool = False  # the fault is in the way of the message: it comes when the fault is over
    is_from_start: bool = False  # the stack was started with it
