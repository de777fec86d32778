"""What a panel of the dashboard is."""

from dataclasses import dataclass
from enum import StrEnum

RATE = "$__rate_interval"


class PanelKind(StrEnum):
    """Grafana's panel types that are used."""

    LINES = "timeseries"
    NUMBER = "stat"
    TABLE = "table"
    STATES = "state-timeline"


@dataclass(frozen=True, slots=True)
class Query:
    """One query of a panel; `$where` stands for the chosen instances and models, `$on` for the instances alone."""

    expression: str
    legend: str = ""


@dataclass(frozen=True, slots=True)
class Panel:
    """A panel of the dashboard: its queries, and how they are drawn."""

    title: str
    description: str
    unit: str  # Grafana's name: "reqps", "s", "bytes", "percentunit", "short" …
    queries: tuple[Query, ...]
    kind: PanelKind = PanelKind.LINES
    width: int = 8
    stacks: bool = False


@dataclass(frozen=True, slots=True)
class PanelRow:
    """A row with a heading."""

    title: str
    panels: tuple[Panel, ...]
