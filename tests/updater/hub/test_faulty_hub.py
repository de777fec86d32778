"""The adapter on the hub server: it agrees with the hub's own client, and classifies every injected fault."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import pytest

from common.clock import SystemClock
from common.source import read_manifest
from dev.harness.hub import Hub as Standin
from dev.harness.hub import hub as serve_hub
from dev.harness.revisions import MODEL, publish_scripted
from dev.harness.scripted_updater import digest_of_scripted
from hubserver.server import HubServerOptions
from tests.updater.hub.conftest import ID, REVISION, WEIGHTS, WHOLE, failure
from updater.core.checks import CHECKS, HASHES
from updater.core.effects import EffectFailure, FailureKind, StageRevision
from updater.hub.client import HubHttpClient, HubHttpOptions
from updater.hub.modelscope import ModelScopeHub
from updater.perform import Ports, perform
from updater.store.bundles import BundleStore, StoreOptions
from updater.store.garbage import References
from updater.store.staging import StagingLimits
from updater.store.state_folder import ORIGIN_NAME, build_provenance, read_fetch_record
from updater.store.transfer import PaceRules

MODEL_ID = f"acme/{MODEL}"
WORD = "word-of-a-closed-network"
# What the hub's own client says, in a process of its own: it writes into the home folder.
STOCK = """
import hashlib, json, sys
from modelscope_hub import HubApi
url, model, token, revision, file = sys.argv[1:]
api = HubApi(endpoint=url, token=token or "")
client = api.legacy if hasattr(api, "legacy") else api._legacy
rows = client.list_repo_files(model, "model", revision=revision)
body = client.download_stream(model, "model", file, revision).content
print(json.dumps({
    "revisions": sorted(row["Revision"] for row in api.list_repo_revisions(model, "model")),
    "files": sorted([row["Path"], row["Size"], row["Sha256"]] for row in rows if row["Type"] == "blob"),
    "sha256": hashlib.sha256(body).hexdigest(),
}))
"""


@dataclass
class Both:
    """A hub server, and the adapter that downloads from it."""

    served: Standin
    folder: Path
    rules: HubHttpOptions
    token: str = ""
    pace: PaceRules = field(default_factory=PaceRules)
    computes_hashes: bool = True

    @property
    def hub(self) -> ModelScopeHub:
        """The adapter, new."""
        clock = SystemClock()
        client = HubHttpClient(self.rules, clock, lambda: self.token, lambda _scheme, _host: "")
        return ModelScopeHub(client, MODEL_ID, clock, lambda name: name[1:2].isdigit())

    @property
    def store(self) -> BundleStore:
        """The store, new."""
        limits = StagingLimits(0, self.pace, computes_hashes=self.computes_hashes)
        options = StoreOptions(self.folder / "state", limits)
        return BundleStore(options, MODEL, SystemClock(), lambda: None, References, digest_of_scripted)

    def stage(self) -> str:
        """Fetch the revision; the look has been before, and the hub goes wrong from now on."""
        hub = self.hub
        return self.store.stage(ID, hub.release(REVISION, WHOLE), hub, 1 << 30, WHOLE, is_fresh=False)


@pytest.fixture
def both(tmp_path: Path) -> Iterator[Both]:
    """A revision is there."""
    publish_scripted(tmp_path / "hub", REVISION)
    (tmp_path / "state").mkdir()
    with serve_hub(tmp_path) as served:
        yield Both(served, tmp_path, HubHttpOptions(served.url, stall_seconds=WHOLE))


def asked_in_vain(both: Both, ask: Callable[[], object]) -> tuple[str, str]:
    """Kind and reason of a failure."""
    failed = failure(ask)
    return failed.kind.value, failed.reason


def test_stock_client_adapter_and_stand_in_agree(tmp_path: Path) -> None:
    """On revisions, listing and bytes, with a token; and the digest is that of the folder."""
    for revision in (REVISION, "v1.1.0"):
        publish_scripted(tmp_path / "hub", revision)
    with serve_hub(tmp_path, HubServerOptions(find_token=lambda token: "reader" if token == WORD else "")) as served:
        both = Both(served, tmp_path, HubHttpOptions(served.url), WORD)
        hub = both.hub
        revisions, release = hub.revisions(WHOLE), hub.release("v1.1.0", WHOLE)
        content = b"".join(hub.read("v1.1.0", WEIGHTS, 0, WHOLE))
        home = {"HOME": str(tmp_path / "home"), "PATH": "/usr/bin:/bin", "NO_PROXY": "*"}
        command = [sys.executable, "-c", STOCK, served.url, MODEL_ID, WORD, "v1.1.0", WEIGHTS]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=home)
    assert done.returncode == 0, done.stderr
    stock = json.loads(done.stdout)
    ours = sorted([file.name, file.size, file.sha256] for file in release.files)
    assert list(revisions) == stock["revisions"]
    assert ours == stock["files"]
    assert [[file.name, file.size, file.sha256] for file in read_manifest(tmp_path / "hub" / MODEL / "v1.1.0")] == ours
    assert stock["sha256"] == next(sha256 for name, _, sha256 in ours if name == WEIGHTS)
    assert content == (tmp_path / "hub" / MODEL / "v1.1.0" / WEIGHTS).read_bytes()


@pytest.mark.parametrize(
    ("wrong", "kind", "reason"),
    [
        pytest.param("status=500", "TRANSIENT", "HUB_FAILED", marks=pytest.mark.fault("N1")),
        pytest.param("status=429 retry-after=7", "TRANSIENT", "RATE_LIMITED", marks=pytest.mark.fault("N3")),
        pytest.param("status=401", "DENIED", "HUB_DENIED", marks=pytest.mark.fault("N4")),
        pytest.param("status=403", "DENIED", "HUB_DENIED", marks=pytest.mark.fault("N4")),
        pytest.param("stall", "TRANSIENT", "HUB_STALLED", marks=pytest.mark.fault("N8")),
        pytest.param("stall after=3", "TRANSIENT", "HUB_STALLED", marks=pytest.mark.fault("N8")),
        pytest.param("reset", "TRANSIENT", "HUB_BROKE_OFF", marks=pytest.mark.fault("N10")),
        pytest.param("reset after=3", "TRANSIENT", "HUB_BROKE_OFF", marks=pytest.mark.fault("N10")),
        pytest.param("cut after=3", "TRANSIENT", "HUB_BROKE_OFF", marks=pytest.mark.fault("N11")),
        pytest.param("html", "TRANSIENT", "HUB_NOT_UNDERSTOOD", marks=pytest.mark.fault("N13")),
        pytest.param("redirect={target}", "TRANSIENT", "REDIRECT_CIRCLE", marks=pytest.mark.fault("N15")),
    ],
)
def test_every_injected_fault_is_classified(both: Both, wrong: str, kind: str, reason: str) -> None:
    """For every kind of request; afterwards everything works again."""
    release = both.hub.release(REVISION, WHOLE)
    questions: dict[str, Callable[[], object]] = {
        "revisions": lambda: both.hub.revisions(WHOLE),
        "files": lambda: both.hub.release(REVISION, WHOLE),
        "file": lambda: b"".join(both.hub.read(REVISION, WEIGHTS, 0, WHOLE)),
    }
    for where, ask in questions.items():
        both.served.arm(f"{where} {wrong} times=1")
        both.rules = replace(both.rules, stall_seconds=0.5 if wrong.startswith("stall") else WHOLE)
        assert (kind, reason) == asked_in_vain(both, ask)
        both.rules = replace(both.rules, stall_seconds=WHOLE)
        ask()
    assert release.source_digest == both.stage()


@pytest.mark.fault("N9")
def test_a_file_sent_byte_by_byte_is_cancelled(both: Both) -> None:
    """It continues where it was."""
    both.pace = PaceRules(min_bytes_a_second=1e6, window_seconds=0.5)
    both.served.arm(f"file:{WEIGHTS} drip after=100 rate=20 skip=1")
    assert asked_in_vain(both, both.stage) == ("TRANSIENT", "HUB_SLOW")
    both.served.arm()
    kept = (both.folder / "state" / "incoming" / ID / "files" / WEIGHTS).stat().st_size
    assert 100 <= kept < 4096
    both.pace = PaceRules()
    assert both.hub.release(REVISION, WHOLE).source_digest == both.stage()


@pytest.mark.fault("N12")
def test_endless_responses_are_cut_off(both: Both) -> None:
    """A listing at its size limit, a file at its listed size."""
    both.served.arm("revisions endless", "files endless times=1", f"file:{WEIGHTS} endless skip=1")
    assert asked_in_vain(both, lambda: both.hub.revisions(WHOLE)) == ("TRANSIENT", "HUB_NOT_UNDERSTOOD")
    assert asked_in_vain(both, lambda: both.hub.release(REVISION, WHOLE)) == ("TRANSIENT", "HUB_NOT_UNDERSTOOD")
    assert asked_in_vain(both, both.stage) == ("TRANSIENT", "CONTENT_MISMATCH")


@pytest.mark.fault("C4")
def test_a_bit_that_flips_once_costs_a_second_download(both: Both) -> None:
    """And no more."""
    both.served.arm(f"file:{WEIGHTS} flip at=9 skip=1 times=1")
    assert both.hub.release(REVISION, WHOLE).source_digest == both.stage()


@pytest.mark.fault("C4")
def test_a_bit_that_flips_every_time_fails_the_attempt(both: Both) -> None:
    """The hub or the network is at fault, not the content."""
    both.served.arm(f"file:{WEIGHTS} flip at=9 skip=1")
    assert asked_in_vain(both, both.stage) == ("TRANSIENT", "CONTENT_MISMATCH")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("../../evil.json", marks=pytest.mark.fault("P1")),
        pytest.param("/tmp/evil.json", marks=pytest.mark.fault("P2")),  # noqa: S108  is never opened
        pytest.param("..%5Cevil.json", marks=pytest.mark.fault("P3")),
        pytest.param("evil%00.json", marks=pytest.mark.fault("P4")),
        pytest.param("evil%0A.json", marks=pytest.mark.fault("P4")),
        pytest.param("e" * 300, marks=pytest.mark.fault("P5")),
    ],
)
def test_a_name_outside_of_the_folder_is_refused(both: Both, name: str) -> None:
    """The stock download writes it; ours builds no path from it."""
    both.served.arm(f"files list={name}")
    assert (FailureKind.PERMANENT.value, "LISTING_UNSAFE") == asked_in_vain(both, both.stage)
    assert list((both.folder / "state").rglob("evil*")) == []


@pytest.mark.fault("H11")
def test_hashes_that_the_hub_does_not_list_are_computed(both: Both) -> None:
    """What is staged has the digest that a listing with hashes would have; nothing claims that it was checked."""
    listed = both.hub.release(REVISION, WHOLE)
    both.served.arm("files unhashed")
    release = both.hub.release(REVISION, WHOLE)
    assert (release.source_digest, release.is_ready) == ("", True)
    assert both.stage() == listed.source_digest
    record = read_fetch_record(both.folder / "state" / "incoming" / ID / ORIGIN_NAME)
    assert record is not None
    assert WEIGHTS in record.computed
    folder = both.folder / "state" / "incoming" / ID / "files"
    provenance = build_provenance(
        folder.parent / ORIGIN_NAME, [check.title for check in CHECKS], record.fetched_at, None
    )
    assert provenance is not None
    assert HASHES.title not in provenance.checked


@pytest.mark.fault("H11")
@pytest.mark.reason("HASH_MISSING")
def test_missing_hashes_can_be_refused_by_policy(both: Both) -> None:
    """`missing_hashes = "refuse"`: a person must change the hub or the setting."""
    both.computes_hashes = False
    both.served.arm("files unhashed")
    assert asked_in_vain(both, both.stage) == ("DENIED", "HASH_MISSING")


@pytest.mark.fault("H11")
def test_a_partial_file_without_a_hash_is_not_continued(both: Both) -> None:
    """Nothing tells whether its first bytes belong to what the hub has now."""
    both.served.arm("files unhashed", f"file:{WEIGHTS} cut after=1000 skip=1")
    assert asked_in_vain(both, both.stage) == ("TRANSIENT", "HUB_BROKE_OFF")
    weights = both.folder / "state" / "incoming" / ID / "files" / WEIGHTS
    weights.write_bytes(b"x" * weights.stat().st_size)
    both.served.arm("files unhashed")
    digest = both.stage()
    both.served.arm()
    assert digest == both.hub.release(REVISION, WHOLE).source_digest


@pytest.mark.fault("H10")
def test_a_tag_that_moves_during_the_download_is_no_mismatch(both: Both) -> None:
    """The bytes of the new content do not match the old listing, and the hub lists another one by then."""
    before = both.hub.release(REVISION, WHOLE)

    class Moving:
        """The adapter, whose hub moves the tag before the weights are read."""

        place = both.hub.place
        revisions, release = both.hub.revisions, both.hub.release

        def read(self, revision: str, name: str, offset: int, deadline_seconds: float) -> Iterator[bytes]:
            if name == WEIGHTS:
                shutil.rmtree(both.folder / "hub" / MODEL / REVISION)
                publish_scripted(both.folder / "hub", REVISION, both.folder / "made-again", label="no")
            return both.hub.read(revision, name, offset, deadline_seconds)

    ports = Ports(Moving(), *(cast("Any", None),) * 2, both.store, cast("Any", None), SystemClock())
    result = perform(StageRevision(ID, REVISION, before.source_digest, is_fresh=False, max_bytes=1 << 30), ports)
    assert isinstance(result, EffectFailure)
    assert (result.kind, result.reason) == (FailureKind.NOT_READY, "LISTING_CHANGED")
