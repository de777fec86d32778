"""Settings files of stacks under test."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dev.harness.revisions import MODEL
from dev.harness.scripted_engine import ENGINES

Sections = Mapping[str, Mapping[str, Any]]  # by the table's name
TRIAL_LEASE_SECONDS = 20.0
# Short windows, and nothing that depends on the machine's free space or speed.
DEFAULTS: Sections = {
    "server": {"drain_delay_seconds": 0, "metrics_port": -1},
    "runner": {"extra_engines": ENGINES, "threads": 1},
    "updater": {
        "metrics_port": -1,
        "reserve_bytes": 0,
        "retained_bytes": 0,
        "breaker_first_seconds": 1.0,
        "max_failures_an_hour": 100,
    },
    f"updater.models.{MODEL}": {"poll_seconds": 0.5},
    f"updater.models.{MODEL}.gate": {"min_agreement": 0.0, "max_cost_factor": 100.0},
    f"updater.models.{MODEL}.observe": {
        "window_seconds": 1.0,
        "max_seconds": 60.0,
        "min_answers": 20,
        "trial_lease_seconds": TRIAL_LEASE_SECONDS,
        "keep_warm_seconds": 1.0,
    },
}
# Nothing holds a revision: neither a machine that becomes busier in a trial, nor the scripted answers, which each
# revision changes.
NEVER_HELD: Sections = {
    "observe": {"latency_margin_seconds": 60, "max_cost_factor": 100},
    "compare": {"margin": 1.0},
}
_SHORT_NAMES = {
    "model": f"updater.models.{MODEL}",
    **{name: f"updater.models.{MODEL}.{name}" for name in ("gate", "observe", "compare", "policy")},
}


def merged(*layers: Sections) -> dict[str, dict[str, Any]]:
    """Tables of all layers, a later value in the place of an earlier one.

    "model", "gate", "observe", "compare" and "policy" are short for the tables of the one model.
    """
    tables: dict[str, dict[str, Any]] = {}
    for layer in layers:
        for name, values in layer.items():
            tables.setdefault(_SHORT_NAMES.get(name, name), {}).update(values)
    return tables


def write_settings(
    path: Path,
    top: Mapping[str, Any],
    models: tuple[str, ...],
    sections: Sections,
    model_keys: Mapping[str, Any] | None = None,
) -> None:
    """Write a settings file; `model_keys` are added to the table of every model."""
    lines = [f"{key} = {_toml(value)}" for key, value in top.items()]
    for model in models:
        keys = {"name": model, **(model_keys or {})}
        lines += ["[[models]]", *(f"{key} = {_toml(value)}" for key, value in keys.items())]
    path.write_text("\n".join(lines) + "\n" + format_sections(sections), encoding="utf-8")


def format_sections(sections: Sections) -> str:
    """Tables as they are written in the file."""
    lines = []
    for section, values in sections.items():
        lines += [f"[{section}]", *(f"{key} = {_toml(value)}" for key, value in values.items())]
    return "".join(f"{line}\n" for line in lines)


def _toml(value: object) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key} = {_toml(item)}" for key, item in value.items()) + " }"
    return json.dumps(value)
