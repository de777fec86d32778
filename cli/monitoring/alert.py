"""What an alert and a recording rule are, as data: rules, runbooks and their index are made from it."""

import re
from dataclasses import dataclass
from enum import StrEnum


class Severity(StrEnum):
    """How soon a person must look."""

    CRITICAL = "critical"  # callers are refused or will be soon: at once
    WARNING = "warning"  # today
    INFO = "info"  # when there is time


@dataclass(frozen=True, slots=True)
class Step:
    """A possible cause and what to do about it."""

    cause: str
    action: str


@dataclass(frozen=True, slots=True)
class Alert:
    """One alert with its runbook."""

    name: str  # in CamelCase, with the prefix Hotslot
    severity: Severity
    expression: str  # PromQL
    lasts: str  # how long it must hold, as Prometheus writes it
    summary: str  # one line for people; may name labels as Prometheus's templates do
    meaning: str  # what it means for callers or updates
    command: str  # the first one to type: it shows the cause
    steps: tuple[Step, ...]
    settings: tuple[str, ...] = ()  # keys in hotslot.toml that the advice is about

    @property
    def page(self) -> str:
        """Name of its runbook, without folder: HotslotErrorShareHigh → error-share-high.md."""
        words = re.findall(r"[A-Z][a-z]*", self.name.removeprefix("Hotslot"))
        return "-".join(words).lower() + ".md"


@dataclass(frozen=True, slots=True)
class AlertGroup:
    """Alerts that are evaluated together."""

    name: str
    title: str
    alerts: tuple[Alert, ...]


@dataclass(frozen=True, slots=True)
class Recording:
    """A number that Prometheus computes ahead: dashboards, autoscaling and alerts read it."""

    name: str  # level:metric:operation
    expression: str
    use: str


def grew(selector: str, window: str = "15m") -> str:
    """PromQL for "this counter grew", also if its series has only just begun.

    `increase` alone misses the first count of a series that begins with it.
    """
    return f"(increase({selector}[{window}]) > 0) or (({selector} > 0) unless ({selector} offset {window}))"
