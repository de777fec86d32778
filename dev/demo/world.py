"""The tour's world: revisions, a hub, a state folder, and the real stack over them."""

import contextlib
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from common.sealing import ConvertLimits, run_convert
from common.settings import inherit_environment
from dev.bench.stack import MODEL, ROOT, SHAPES, Item, Scores, answers_of, golden_items, seal_revisions
from examples.shapes.layout import TABLE, TIED_TO_TABLE, WEIGHTS
from examples.shapes.overflow import WORD, overflow_directory
from examples.shapes.worsen import worsen_directory

PORT = 50174
ITEMS = 60
BETTER, WORSE, OVERFLOWING, AGAIN = "v1.1.0", "v1.2.0", "v1.3.0", "v1.4.0"
FIRST = "v1.0.0"
STOP_SECONDS = 60.0

# Short windows: the tour is to be over in two minutes.
SETTINGS = f"""
state_dir = "{{state}}"

[[models]]
name = "{MODEL}"
task = "visual-entailment"
precision = "float32"

[server]
port = {PORT}
metrics_port = -1
drain_delay_seconds = 0

[runner]
threads = 1

[updater]
metrics_port = -1

[updater.models.{MODEL}]
hub_folder = "{{hub}}"
golden = "{SHAPES / "golden"}"
poll_seconds = 0.5

[updater.models.{MODEL}.observe]
window_seconds = 5
max_seconds = 60
trial_lease_seconds = 30
keep_warm_seconds = 2
"""


@dataclass(frozen=True, slots=True)
class World:
    """Where everything lies, and what is right."""

    folder: Path
    items: list[Item]  # that every good revision can answer
    spoiling: list[Item]  # that the overflowing one cannot
    expected: Mapping[str, Mapping[str, list[Scores]]]  # by revision and item: the bare engine's

    @property
    def state(self) -> Path:
        """The stack's state folder."""
        return self.folder / "state"

    @property
    def settings(self) -> Path:
        """The tour's own settings."""
        return self.folder / "hotslot.toml"

    @property
    def log(self) -> Path:
        """What the stack says."""
        return self.folder / "log"

    def source(self, revision: str) -> Path:
        """A revision as somebody downloaded or trained it."""
        return self.folder / "models" / revision


def build(folder: Path) -> World:
    """Make revisions, bring the first one in, and ask the bare engine what is right."""
    (folder / "models").mkdir(parents=True)
    world = World(folder, golden_items(ITEMS), _spoiling_items(), {})
    for revision in (FIRST, BETTER):
        shutil.copytree(SHAPES / revision, world.source(revision))
    worsen_directory(world.source(BETTER), world.source(WORSE))
    overflow_directory(world.source(BETTER), world.source(OVERFLOWING))
    publish_again(world.source(BETTER), world.source(AGAIN))
    state = SETTINGS.format(state=world.state, hub=folder / "hub")
    world.settings.write_text(state, encoding="utf-8")
    bundles = dict(seal_revisions(world.state, {FIRST: world.source(FIRST)}))
    bare = folder / "bare"  # apart, so that the updater finds nothing done already
    bare.mkdir()
    expected = {FIRST: answers_of(world.state, bundles[FIRST], [*world.items, *world.spoiling])}
    for revision in (BETTER, OVERFLOWING, AGAIN):
        bundle = run_convert(world.source(revision), bare, revision, ConvertLimits(), "float32")
        items = world.items if revision == OVERFLOWING else [*world.items, *world.spoiling]
        expected[revision] = answers_of(bare, bundle, items)
    return World(folder, world.items, world.spoiling, expected)


def publish_again(folder: Path, out: Path) -> None:
    """Copy a model directory with the same numbers in other bytes: a new revision that answers as the old one."""
    shutil.copytree(folder, out)
    weights = torch.load(folder / WEIGHTS, weights_only=True)
    table = weights[TABLE].to(torch.float32)
    weights.update(dict.fromkeys((TABLE, *TIED_TO_TABLE), table))
    torch.save(weights, out / WEIGHTS)


def hub_add(world: World, revision: str) -> None:
    """Publish a revision as an operator does it: `hotslot hub add`."""
    command = [str(Path(sys.executable).parent / "hotslot"), "hub", "add", str(world.source(revision)), revision]
    subprocess.run(command, env=_environment(world), check=True, stdout=subprocess.DEVNULL, cwd=ROOT, timeout=60)


@contextlib.contextmanager
def running_stack(world: World) -> Iterator[subprocess.Popen[bytes]]:
    """The stack under supervisord, as in a container; its log beside the state."""
    with world.log.open("wb") as log:
        child = subprocess.Popen(
            [str(ROOT / "deploy" / "run-stack")],
            env=_environment(world),
            stdout=log,
            stderr=log,
            cwd=ROOT,
            process_group=0,
        )
    try:
        yield child
    finally:
        child.send_signal(signal.SIGTERM)
        child.wait(STOP_SECONDS)


def _environment(world: World) -> dict[str, str]:
    return {**inherit_environment(), "HOTSLOT_CONFIG": str(world.settings), "HOTSLOT_PYTHON": sys.executable}


def _spoiling_items() -> list[Item]:
    """A few golden pictures, asked with the word that no golden item has."""
    made = []
    for name, request in golden_items(6):
        request.statements[:] = [f"there are {WORD} stars"]
        made.append((f"{name}-{WORD}", request))
    return made
