"""`make bench-update`: the time of an update by step, compared with the minimum time on this machine.

The shipped updater installs a revision: download over HTTP from the folder hub, verification, conversion, sealing, load
beside the serving model, golden items, trial and commit. Both revisions have the same weights, so no verdict depends on
chance. The minimum is measured in the same run, before and after; it receives from memory, so the hub's files are in
the page cache when the update begins.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from cli.bundles import import_bundle
from cli.hub import publish
from dev.bench import update_floor
from dev.bench.large_model import FOLDER, say, warm
from dev.bench.update_child import Seen
from dev.bench.update_floor import Floor
from dev.bench.update_model import SIZES, first_revision, next_revision
from dev.harness.demo_model import SHAPES
from dev.harness.process import ROOT, running_server

MODEL, FIRST, NEXT = "measured", "v1.0.0", "v1.0.1"
PORT, HUB_PORT = 50174, 50175
LIMIT_SECONDS = 1800.0
AIM, UPDATER_AIM_BYTES = 1.5, 150_000_000
WINDOW_SECONDS = 2.0
HUBS = {
    "http": f'hub_model = "bench/{MODEL}"',
    "folder": 'hub_folder = "{folder}/hub"',
}
SETTINGS = """
state_dir = "{folder}/state"
[[models]]
name = "measured"
precision = "{precision}"
[server]
port = {port}
metrics_port = -1
drain_delay_seconds = 0
[logs]
level = "info"
[updater]
metrics_port = -1
{endpoint}
[updater.models.measured]
{hub}
golden = "{folder}/golden"
poll_seconds = 0.5
gate = {{ max_cost_factor = 100.0 }}
observe = {{ window_seconds = {window}, max_seconds = 600, min_answers = 3, keep_warm_seconds = 1 }}
"""


@dataclass(frozen=True, slots=True)
class Run:
    """One update."""

    seen: Seen
    source_bytes: int
    bundle_bytes: int
    floors: tuple[Floor, Floor]  # before and after
    start_seconds: float  # of a Python with torch, whatever it does then


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="large", help="18 MB, 136 MB or 1.96 GB (default)")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--hub", choices=sorted(HUBS), default="http", help="over HTTP (default), or from its folder")
    parser.add_argument("--golden", type=int, default=4, help="items that the gate asks")
    options = parser.parse_args()
    FOLDER.mkdir(exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="update-", dir=FOLDER.resolve()))
    try:
        run = measure(folder, options)
    finally:
        shutil.rmtree(folder)
    show(run, options)
    return 0


def measure(folder: Path, options: argparse.Namespace) -> Run:
    """Do the whole run, in a new folder on the disk to measure."""
    first = first_revision(options.size)
    say("importing the revision that serves")
    imported = import_bundle(first, folder / "state", MODEL, FIRST, options.precision)
    _write_golden(folder / "golden", options.golden)
    say("publishing the next")
    source_bytes = publish(next_revision(first, folder / "next"), folder / "hub", MODEL, NEXT).size
    bundle_bytes = sum(file.size for file in imported.bundle.files)
    say("measuring the floor")
    before = update_floor.measure(folder, source_bytes, bundle_bytes)
    with _hub(folder) if options.hub == "http" else contextlib.nullcontext(""), _server(folder, options):
        warm((folder / "hub" / MODEL / NEXT).iterdir())  # a hub's disk is not ours
        say("updating")
        seen = _update(folder)
    say("measuring the floor again")
    after = update_floor.measure(folder, source_bytes, bundle_bytes)
    return Run(seen, source_bytes, bundle_bytes, (before, after), _start_seconds())


def steps_of(seen: Seen) -> dict[str, float]:
    """Seconds of each step, from the stop-watch's measurements."""
    seconds, at = seen.seconds, seen.at
    return {
        "transfer": seconds["StageRevision"],
        "verify": seconds["verify"],
        "convert": seconds["VerifyAndSeal"] - seconds["verify"] - seconds["seal"],
        "seal": seconds["seal"],
        "load": seconds["LoadBundle"],
        "gate": seconds["RunGate"],
        "observe": at["CommitLoad ends"] - at["ActivateLoad begins"],
    }


def show(run: Run, options: argparse.Namespace) -> None:
    """Print the table."""
    table = Table(
        title=f"an update of {run.source_bytes / 1e9:.2f} GB, hub: {options.hub}, {options.precision}; seconds"
    )
    for name in ("step", "took", "floor before", "floor after", "× floor"):
        table.add_column(name, justify="left" if name == "step" else "right")
    floors = {
        "transfer": [one.receive for one in run.floors],
        "verify": [one.read for one in run.floors],
        "convert": [one.write for one in run.floors],
    }
    steps = steps_of(run.seen)
    for name, took in steps.items():
        table.add_row(name, *_cells(took, floors.get(name)))
    to_sealed = sum(steps[name] for name in ("transfer", "verify", "convert", "seal"))
    table.add_section()
    table.add_row("transfer to seal", *_cells(to_sealed, [one.total for one in run.floors]))
    console = Console()
    console.print(table)
    console.print(
        f"aim: transfer to seal within {AIM}× the floor. The gate asked {options.golden} items of both revisions; "
        f"the trial's window was {WINDOW_SECONDS:g} s. "
        f"Published {run.source_bytes} bytes, sealed {run.bundle_bytes}. "
        f"Of the conversion, {run.start_seconds:.2f} s are what a start of Python with torch takes here."
    )
    console.print(
        f"peak memory: updater {run.seen.updater_peak_bytes / 1e6:.0f} MB (aim < {UPDATER_AIM_BYTES / 1e6:.0f}), "
        f"conversion {run.seen.convert_peak_bytes / 1e6:.0f} MB, pages of mapped files among them"
    )


def _start_seconds() -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import torch"], check=True, timeout=LIMIT_SECONDS)
    return time.perf_counter() - began


def _cells(took: float, floors: list[float] | None) -> list[str]:
    if floors is None:
        return [f"{took:.2f}", "–", "–", "–"]
    return [f"{took:.2f}", *(f"{one:.2f}" for one in floors), f"{took / (sum(floors) / len(floors)):.2f}"]


def _write_golden(folder: Path, count: int) -> None:
    """The first items of the demo's set without expected answers, since the weights are random."""
    folder.mkdir()
    rows = [json.loads(line) for line in (SHAPES / "golden" / "golden.jsonl").read_text().splitlines()[:count]]
    for row in rows:
        del row["expected"]
        shutil.copyfile(SHAPES / "golden" / row["image"], folder / row["image"])
    (folder / "golden.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")


@contextlib.contextmanager
def _server(folder: Path, options: argparse.Namespace) -> Iterator[None]:
    hub = HUBS[options.hub].format(folder=folder)
    endpoint = f'hub_endpoint = "http://127.0.0.1:{HUB_PORT}"' if options.hub == "http" else ""
    values = {"folder": folder, "precision": options.precision, "port": PORT, "window": WINDOW_SECONDS}
    with running_server(folder, SETTINGS.format(hub=hub, endpoint=endpoint, **values)):
        yield


@contextlib.contextmanager
def _hub(folder: Path) -> Iterator[str]:
    command = [sys.executable, "-m", "cli.main", "hub", "serve", str(folder / "hub"), "--port", str(HUB_PORT)]
    with (folder / "hub.log").open("wb") as log:
        child = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
    try:
        yield ""
    finally:
        child.send_signal(signal.SIGTERM)
        child.wait(10)


def _update(folder: Path) -> Seen:
    """Run the updater until it has committed the next revision; returns the stop-watch's measurements."""
    report = folder / "report.json"
    with (folder / "updater.log").open("wb") as log:
        done = subprocess.run(
            [sys.executable, "-m", "dev.bench.update_child", str(report)],
            cwd=ROOT,
            env={**os.environ, "HOTSLOT_CONFIG": str(folder / "hotslot.toml"), "no_proxy": "127.0.0.1"},
            stdout=log,
            stderr=log,
            timeout=LIMIT_SECONDS,
            check=False,
        )
    seen = Seen(**json.loads(report.read_text(encoding="utf-8"))) if report.exists() else None
    if seen is None or not seen.is_committed:
        tail = (folder / "updater.log").read_text(encoding="utf-8", errors="replace")[-3000:]
        raise SystemExit(f"the update was not committed (exit code {done.returncode}):\n{tail}")
    return seen


if __name__ == "__main__":
    sys.exit(main())
