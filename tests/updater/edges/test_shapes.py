"""The shipped updater with a real model: published, converted in a child process, gated, activated, rolled back."""

import os
import pickle
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from common.bundle import bundle_folder, read_bundle
from dev.harness.process import ROOT, UpdaterProcess
from dev.parity.make_model import Recipe, make_model
from examples.shapes.permute import permute_directory
from hotslot.entailment.v1 import entailment_pb2
from hotslot.updates.v1 import updates_pb2 as pb
from tests.updater.edges.conftest import MakeWorld
from tests.updater.edges.world import World

SHAPES = ROOT / "examples" / "shapes"
PICTURE = SHAPES / "golden" / "shapes-001.png"


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_published_model_is_converted_gated_and_served(make_world: MakeWorld, tmp_path: Path) -> None:
    """A first install; then one as `save_pretrained` writes it, which is held without a golden set; then a rollback."""
    world = make_world(golden=False, observe={"window_seconds": 1.0, "min_answers": 8})
    world.stack.start(until_ready=False)
    world.updater = UpdaterProcess(world.folder, world.stack.config, program="updater.daemon")
    hotslot(world, "hub", "add", str(SHAPES / "v1.0.0"), "v1.0.0")
    world.wait(lambda: _serves(world, "v1.0.0"), "the first revision is committed", 150)

    permute_directory(SHAPES / "v1.0.0", tmp_path / "permuted")
    weights = tmp_path / "permuted" / "pytorch_model.bin"
    torch.save({f"model.{name}": tensor for name, tensor in torch.load(weights, weights_only=True).items()}, weights)
    hotslot(world, "hub", "add", str(tmp_path / "permuted"), "v1.0.1")
    world.wait(lambda: world.status().stage == pb.UPDATE_STAGE_HELD, "it is held without a golden set", 150)
    assert "hotslot golden record" in world.status().advice
    hotslot(world, "updates", "approve", world.status().current.source_digest)
    world.wait(lambda: _serves(world, "v1.0.1"), "the second revision is committed", 150)
    row = world.committed()
    assert row is not None
    notes = read_bundle(bundle_folder(world.state, row.bundle_digest)).notes
    assert "pytorch_model.bin: the tensors' names begin with 'model.'; the prefix is removed" in notes

    hotslot(world, "updates", "rollback")
    world.wait(lambda: _serves(world, "v1.0.0"), "the first one is back", 60)
    assert world.is_quarantined("v1.0.1")
    assert world.status().paused
    assert "v1.0.1" in hotslot(world, "updates", "history")


class Hostile:
    """A pickle that would run a command."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        """Name the command."""
        return os.system, ("touch /tmp/hotslot-was-here",)


def _hostile(weights: Path) -> None:
    weights.write_bytes(pickle.dumps(OrderedDict(x=Hostile()), 2))


def _not_a_number(weights: Path) -> None:
    tensors = torch.load(weights, weights_only=True)
    tensors["decoder.layers.1.fc2.weight"][5, 7] = float("nan")
    torch.save(tensors, weights)


@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        pytest.param(_hostile, "imports posix.system, supported: tensors only", marks=pytest.mark.fault("P9")),
        pytest.param(_not_a_number, "decoder.layers.1.fc2.weight holds NaN", marks=pytest.mark.fault("C11")),
    ],
)
def test_broken_weights_do_not_affect_serving(
    spoil: Callable[[Path], None], sentence: str, make_world: MakeWorld, tmp_path: Path
) -> None:
    """Calls are answered while the conversion of a broken revision fails."""
    world = make_world()
    world.start()
    assert world.updater is not None
    world.updater.stop()
    world.updater = UpdaterProcess(world.folder, world.stack.config, program="updater.daemon")
    published = tmp_path / "published"
    published.mkdir()
    make_model(published, Recipe(seed=5))
    spoil(published / "pytorch_model.bin")
    hotslot(world, "hub", "add", str(published), "v1.0.1")

    answers = world.ask_until(lambda: world.is_quarantined("v1.0.1"), "it is refused")

    assert set(answers) == {"v1.0.0"}
    assert sentence in hotslot(world, "updates", "history", "--json") + world.updater.tail()


def hotslot(world: World, *words: str) -> str:
    """Run the command line as an operator does."""
    environment = {
        **os.environ,
        "HOTSLOT_CONFIG": str(world.stack.config),
        "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "protos"))),
    }
    command = [sys.executable, "-m", "cli.main", *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _serves(world: World, revision: str) -> bool:
    row = world.committed()
    if row is None or row.revision != revision or world.status().stage != pb.UPDATE_STAGE_IDLE:
        return False
    request = entailment_pb2.PredictRequest(statements=["there is a triangle"])
    request.image.content = PICTURE.read_bytes()
    return world.stack.entailment.Predict(request, timeout=30).served_by.revision == revision
