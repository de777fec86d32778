"""What a step's stack is made of: its settings, supervisord's configuration, its environment, and its processes."""

import os
import socket
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil

from dev.harness.process import ROOT, write_settings
from dev.harness.revisions import MODEL
from tests.scripted_engine import ENGINES

Sections = Mapping[str, Mapping[str, Any]]
TRIAL_LEASE_SECONDS = 20.0
MARK = "HOTSLOT_CHAOS_STACK"
PROGRAMS = {
    "server": "-m inference.server.server",
    "updater": "-m dev.chaos.updater",
    "watchdog": "-m hotslot_watchdog --run-folder",
    "supervisord": "-m supervisor.supervisord",
}
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
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


def write_config(path: Path, state: Path, hub: Path, golden: Path, port: int, sections: Sections) -> None:
    """Write hotslot.toml.

    Args:
        path: where.
        state: hotslot's own folder.
        hub: folder of revisions.
        golden: folder of the golden set.
        port: of the server.
        sections: beside the defaults, by their table's name; "observe" and "model" stand for the model's.
    """
    names = {"observe": f"updater.models.{MODEL}.observe", "model": f"updater.models.{MODEL}"}
    given = {names.get(name, name): values for name, values in sections.items()}
    is_http = "hub_model" in sections.get("model", {})
    places: Sections = {
        f"updater.models.{MODEL}": {"golden": str(golden), **({} if is_http else {"hub_folder": str(hub)})},
        "server": {"port": port},
    }
    tables = [*DEFAULTS, *(name for name in given if name not in DEFAULTS)]
    whole = {name: {**DEFAULTS.get(name, {}), **places.get(name, {}), **given.get(name, {})} for name in tables}
    write_settings(path, {"state_dir": str(state), "node": "chaos"}, (MODEL,), whole)


def write_supervisor(path: Path) -> None:
    """Write what ships, with the step's updater in the place of the real one.

    Raises:
        RuntimeError: what ships no longer names the updater as it did.
    """
    shipped = (ROOT / "supervisor.conf").read_text(encoding="utf-8")
    own = shipped.replace("-m updater.daemon", PROGRAMS["updater"])
    if own == shipped:
        raise RuntimeError("supervisor.conf no longer names the updater as it did")
    path.write_text(own, encoding="utf-8")


def environment(mark: str, folder: Path, more: Mapping[str, str]) -> dict[str, str]:
    """Of all processes of one stack."""
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "protos"))),
        "PYTHONDONTWRITEBYTECODE": "1",
        "HOTSLOT_PYTHON": sys.executable,
        # Whatever writes where it should not, writes here; see `dev.chaos.promises`.
        "HOME": str(folder / "home"),
        "TMPDIR": str(folder / "tmp"),
        MARK: mark,
        **more,
    }


def processes_of(mark: str) -> Iterator[psutil.Process]:
    """Every living process of one stack."""
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                yield process
        except (psutil.Error, OSError):
            continue


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as asked:
        asked.bind(("127.0.0.1", 0))
        return int(asked.getsockname()[1])
