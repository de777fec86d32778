"""docs/chaos-report.json: the last results of the steps, with commit, seed and count.

One row per step. A run of some steps replaces only their rows, so each row names its own commit.
"""

import json
import os
import platform
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from dev.chaos.catalog import STEPS

ROOT = Path(__file__).resolve().parents[2]
REPORT = ROOT / "docs" / "chaos-report.json"
UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Machine:
    """The machine of a run."""

    cores: int
    processor: str
    load: float  # of the machine when the step began: runnable processes, one minute's average


@dataclass(frozen=True, slots=True)
class Row:
    """One step's last run."""

    step: str
    faults: tuple[str, ...]
    result: str  # "passed", "failed", "skipped"
    count: int
    numbers: dict[str, float | str]
    troubles: tuple[str, ...]  # of a failed step; why, of a skipped one
    seconds: float
    seed: int
    commit: str  # "-changed" at its end: with changes that are in no commit
    date: str  # UTC
    machine: Machine = field(default_factory=lambda: Machine(0, UNKNOWN, 0.0))


def read_report(path: Path = REPORT) -> dict[str, Row]:
    """Rows by step; none if there is no report yet."""
    if not path.exists():
        return {}
    rows = json.loads(path.read_text(encoding="utf-8"))["steps"]
    return {
        row["step"]: Row(
            **{
                **row,
                "faults": tuple(row["faults"]),
                "troubles": tuple(row["troubles"]),
                "machine": Machine(**row["machine"]),
            }
        )
        for row in rows
    }


def write_report(new: Iterable[Row], path: Path = REPORT) -> None:
    """Replace the rows of these steps; rows of removed steps are dropped."""
    rows = {**read_report(path), **{row.step: row for row in new}}
    kept = [asdict(rows[step.name]) for step in STEPS if step.name in rows]
    path.write_text(json.dumps({"steps": kept}, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def this_machine() -> Machine:
    """The machine that runs the steps, with its present load."""
    return Machine(os.cpu_count() or 0, _processor(), round(os.getloadavg()[0], 2))


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor() or UNKNOWN
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else UNKNOWN
