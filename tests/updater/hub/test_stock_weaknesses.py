"""What the hub's own download lets through, shown on it, and what ours makes of the same hub.

The trusted folder names of the hub's library are in `edges/test_store.py`: a state folder with such a name is refused.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.hub import publish
from common.clock import SystemClock
from dev.harness.hub import Hub as Standin
from dev.harness.hub import hub as serve_hub
from dev.harness.process import ROOT
from dev.harness.revisions import MODEL, model_folder, publish_scripted
from dev.harness.scripted_updater import digest_of_scripted
from tests.updater.hub.conftest import ID, WEIGHTS, WHOLE, failure
from updater.core.effects import EffectFailure, FailureKind
from updater.core.ports import EffectFailed
from updater.hub.client import HubHttpClient, HubHttpOptions
from updater.hub.modelscope import ModelScopeHub
from updater.store.bundles import BundleStore, StoreOptions
from updater.store.garbage import References
from updater.store.staging import StagingLimits

MODEL_ID = f"acme/{MODEL}"
REVISION = "v1.0.0"
# The hub's own client tries for minutes what will not get better here.
QUICK = {"MODELSCOPE_API_MAX_RETRIES": "1", "MODELSCOPE_DOWNLOAD_MAX_RETRIES": "1"}
Facts = dict[str, dict[str, bool]]


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Facts:
    """What the hub's own download does, all of it in one process."""
    place = tmp_path_factory.mktemp("stock")
    for revision in (REVISION, "master", "other"):
        publish_scripted(place / "hub", revision)
    _drop_words(place / "hub", "other")
    with serve_hub(place, allows_faults=True) as served:
        command = [sys.executable, "-m", "tests.updater.hub.stock", served.url, MODEL_ID]
        done = subprocess.run(
            [*command, str(place / "hub" / MODEL), str(place / "work")],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            cwd=ROOT,
            env={"PATH": os.environ["PATH"], "HOME": str(place / "home"), "no_proxy": "*", **QUICK},
        )
    assert done.returncode == 0, done.stderr
    facts: Facts = json.loads(done.stdout.splitlines()[-1])
    return facts


def _drop_words(hub: Path, revision: str) -> None:
    """Publish a revision again without its vocabulary: a file was deleted."""
    made = model_folder(hub.parent / "fewer", revision)
    (made / "vocab.json").unlink()
    shutil.rmtree(hub / MODEL / revision)
    publish(made, hub, MODEL, revision)


class Ours:
    """Our hub adapter and store, on a hub that can go wrong."""

    def __init__(self, served: Standin, place: Path) -> None:
        self.served, self.state = served, place / "state"
        self.state.mkdir()
        clock = SystemClock()
        client = HubHttpClient(
            HubHttpOptions(served.url, stall_seconds=5.0), clock, lambda: "", lambda _scheme, _host: ""
        )
        self.hub = ModelScopeHub(client, MODEL_ID, clock, lambda _: False)
        shared = StoreOptions(self.state, StagingLimits(0))
        self.store = BundleStore(shared, MODEL, clock, lambda: None, References, digest_of_scripted)

    def stage(self, revision: str = REVISION, update: str = ID) -> str:
        """Fetch a revision; its source digest."""
        release = self.hub.release(revision, WHOLE)
        return self.store.stage(update, release, self.hub, 1 << 30, WHOLE, is_fresh=False)

    def refused(self) -> EffectFailure:
        """How staging fails; nothing but its own folder was touched."""
        failed = failure(self.stage)
        assert {"incoming"} >= {path.name for path in self.state.iterdir()}
        return failed

    def staged(self, update: str = ID) -> Path:
        """Where fetched files lie."""
        return self.state / "incoming" / update / "files"


@pytest.fixture
def ours(tmp_path: Path) -> Iterator[Ours]:
    """A revision is there."""
    publish_scripted(tmp_path / "hub", REVISION)
    with serve_hub(tmp_path) as served:
        yield Ours(served, tmp_path)


@pytest.mark.fault("P1")
@pytest.mark.fault("P2")
def test_a_listing_cannot_write_outside_of_the_folder(stock: Facts, ours: Ours, tmp_path: Path) -> None:
    """The stock download writes beside its folder; ours builds no path from such a name."""
    assert stock["names_lead_outside"] == {"climbed": True, "absolute": True}
    for name in ("../../climbed", str(tmp_path / "absolute")):
        ours.served.arm(f"files list={name}")
        assert ((failed := ours.refused()).kind, failed.reason) == (FailureKind.PERMANENT, "LISTING_UNSAFE")
    assert [*tmp_path.rglob("climbed"), *tmp_path.rglob("absolute")] == []


def test_a_file_without_a_hash_gets_another_digest_with_each_content(stock: Facts, ours: Ours) -> None:
    """The stock download accepts it, even with a flipped bit; ours computes what it is, and names that."""
    assert stock["files_without_a_hash_are_not_checked"]["is_wrong"]
    digest = ours.hub.release(REVISION, WHOLE).source_digest
    ours.served.arm("files unhashed", f"file:{WEIGHTS} flip at=3")
    assert digest != ours.stage()


@pytest.mark.fault("C1")
def test_an_incomplete_download_is_never_used(stock: Facts, ours: Ours) -> None:
    """The stock download returns it at the next call; ours downloads the rest and verifies all files."""
    assert stock["an_incomplete_snapshot_counts_later"] == {"failed": True, "has_weights": False}
    ours.served.arm(f"file:{WEIGHTS} status=404")
    for _ in range(2):
        failed = ours.refused()
        assert (failed.kind, failed.reason) == (FailureKind.NOT_READY, "FILE_MISSING")
    digest = ours.hub.release(REVISION, WHOLE).source_digest
    with pytest.raises(EffectFailed):
        ours.store.verify(ours.staged(), digest, "")
    ours.served.arm()
    assert digest == ours.stage()
    ours.store.verify(ours.staged(), digest, "")


@pytest.mark.fault("C1")
def test_a_file_that_cannot_be_downloaded_is_not_skipped(stock: Facts, ours: Ours) -> None:
    """The stock download can skip it with a warning; ours cannot."""
    assert stock["a_file_is_dropped_with_a_warning"] == {"has_weights": False, "has_others": True}
    ours.served.arm(f"file:{WEIGHTS} status=500")
    assert ((failed := ours.refused()).kind, failed.reason) == (FailureKind.TRANSIENT, "HUB_FAILED")


def test_downloaded_files_are_never_rewritten(stock: Facts, ours: Ours) -> None:
    """The stock download rewrites a moved branch in place; ours stores it under another digest."""
    assert all(stock["a_moved_branch_is_rewritten_in_place"].values())
    first = ours.stage()
    before = (ours.staged() / WEIGHTS).read_bytes()
    shutil.rmtree(ours.served.folder / MODEL / REVISION)
    publish_scripted(ours.served.folder, REVISION, ours.served.folder.parent / "again", weights_bytes=5000)
    second = ours.stage(update="20260102-030405-fedcba")
    assert first != second
    assert before == (ours.staged() / WEIGHTS).read_bytes()
    assert before != (ours.staged("20260102-030405-fedcba") / WEIGHTS).read_bytes()


def test_downloaded_files_stay_usable_without_the_hub(stock: Facts, ours: Ours) -> None:
    """The stock download fails although all files are there."""
    assert stock["a_hub_that_is_down_fails_what_is_cached"] == {"is_there": True, "failed": True}
    digest = ours.stage()
    ours.served.arm("any status=503")
    assert ((failed := failure(ours.stage)).kind, failed.reason) == (FailureKind.TRANSIENT, "HUB_FAILED")
    ours.store.verify(ours.store.source_folder(ID, digest, is_kept=False), digest, "")
